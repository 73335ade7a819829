"""The samples of a training: rows that are drawn anew each epoch, and packed into the parts of a batch."""

import random
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor
from torch.utils.data import Dataset

from amends.lm.logprobs import PackedRow, lines_of, pack, pack_notes


class TrainRow(NamedTuple):
    """One packed row and the part it plays in the loss."""

    packed: PackedRow
    is_retain: bool = False
    notes: Tensor | None = None
    """What was noted of its answer tokens before the training (`amends.lm.logprobs.note`), (answer tokens, K)."""


class KeyedRows(Dataset[list[TrainRow]]):
    """Samples whose random draws depend on (seed, epoch, sample) alone: not on batches, order, processes or resume."""

    def __init__(self, num_samples: int, draw: Any, seed: int) -> None:
        self.num_samples, self.draw, self.seed, self.epoch = num_samples, draw, seed, 0

    def __len__(self) -> int:
        return self.num_samples

    def set_epoch(self, epoch: int) -> None:
        """Take note of the epoch that starts; `TellEpoch` calls it."""
        self.epoch = epoch

    def __getitem__(self, index: int) -> list[TrainRow]:
        """Draw the sample's rows for the current epoch."""
        rows: list[TrainRow] = self.draw(index, random.Random(f"{self.seed} {self.epoch} {index}"))
        return rows


class Collate:
    """Pack the rows of a batch of samples, in parts that go through the model one after the other.

    Rows to keep are a part of their own; with `by_line` so is each line. On a CPU, which a line fills, that is as fast,
    and only one line's activations are in memory.
    """

    def __init__(self, pad_id: int | None, by_line: bool = False) -> None:
        self.pad_id, self.by_line = pad_id, by_line

    def __call__(self, samples: Sequence[list[TrainRow]]) -> dict[str, Any]:
        """Tensors of `amends.lm.logprobs.pack`, and those of `pack_notes` where there is such, of the first part.

        is_retain says whether it holds rows to keep; the other parts, if there are any, are a list under "more".
        """
        rows = [row for sample in samples for row in sample]
        kinds = [[row for row in rows if row.is_retain == is_retain] for is_retain in (False, True)]
        first, *more = [self.part(part) for kind in kinds if kind for part in self.parts(kind)]
        return first | ({"more": more} if more else {})

    def parts(self, rows: list[TrainRow]) -> list[list[TrainRow]]:
        """Part rows of one kind."""
        if not self.by_line:
            return [rows]
        return [[rows[i] for i in sorted(line)] for line in lines_of([row.packed for row in rows])]

    def part(self, rows: Sequence[TrainRow]) -> dict[str, Any]:
        """Tensors of some rows that go through the model together."""
        batch = pack([row.packed for row in rows], self.pad_id)
        notes = [row.notes for row in rows]
        noted = {} if all(n is None for n in notes) else pack_notes(notes, batch["answer"].shape[1])
        return batch | noted | {"is_retain": rows[0].is_retain}


def num_samples_in(batch: Mapping[str, Any]) -> int:
    """Count the samples in all parts of a batch; a row to keep belongs to the sample of another row."""
    return sum(len(part["answer"]) for part in (batch, *batch.get("more", ())) if not part["is_retain"])
