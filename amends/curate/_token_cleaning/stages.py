"""The parts of a token cleaning that take long: log-probabilities of answers, fine-tuning on chosen tokens, and stages.

One model is in memory at a time. What a stage gives is kept in a folder, so that a run that was stopped goes on there.
"""

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase, TrainingArguments, set_seed

from amends.curate._token_cleaning.masks import Floats, Mask, offsets_of
from amends.curate._token_cleaning.rows import lengths
from amends.io.atomic import new_file, new_folder, write_json
from amends.io.console import say
from amends.io.errors import InputError
from amends.io.progress import track
from amends.io.tables import read_json
from amends.lm.callbacks import Bar
from amends.lm.load import Loaded, load, prepare, save_model, shares_base, weights_sha256
from amends.lm.logprobs import NOTED_AT_ONCE, AnswerLogprobs, PackedRow, log_probability, note
from amends.lm.samples import TrainRow
from amends.lm.trainer import AnswerTrainer, training_arguments

REQUEST = "request.json"
WARMUP = 0.03


def log_probabilities(model: nn.Module, rows: Sequence[PackedRow], pad_id: int, label: str | None = None) -> Floats:
    """Log-probability of each answer token given the true ones before it.

    Parameters
    ----------
    model : causal LM, as for `amends.lm.logprobs.answer_logprobs`
        In evaluation mode meanwhile, and computed with at the precision of its weights.
    rows : list of PackedRow
        With one answer each.
    label : str, optional
        Shows a progress bar of this name.

    Returns
    -------
    float32 (M,) : nats, of all rows one behind another.
    """
    return np.ascontiguousarray(token_numbers(model, rows, pad_id, label)[:, 0])


def token_numbers(model: nn.Module, rows: Sequence[PackedRow], pad_id: int, label: str | None = None) -> Floats:
    """`log_probabilities`, and beside each the mean over the vocabulary at its place: float32 (M, 2), nats."""
    order = sorted(range(len(rows)), key=lambda i: rows[i].num_tokens, reverse=True)  # most memory first
    batches = [order[start : start + NOTED_AT_ONCE] for start in range(0, len(order), NOTED_AT_ONCE)]
    found: list[Floats] = [np.zeros((0, 2), np.float32)] * len(rows)

    def numbers(out: AnswerLogprobs) -> Tensor:
        return out.score(lambda x_NV, own_N: torch.stack([log_probability(x_NV, own_N), mean_logp(x_NV)], -1))

    for batch in track(batches, label or "", shown=label is not None):
        for i, numbers_A2 in zip(
            batch, note(model, [rows[i] for i in batch], pad_id, numbers, exact=True), strict=True
        ):
            found[i] = numbers_A2.numpy()
    return np.concatenate([np.zeros((0, 2), np.float32), *found])


def mean_logp(logits_NV: Tensor) -> Tensor:
    """Mean over the vocabulary of the log-probability, nats, (N,)."""
    return logits_NV.mean(-1) - logits_NV.logsumexp(-1)


# Training ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Training:
    """How models are fine-tuned; the options of the same names."""

    lora_rank: int = 64
    learning_rate: float = 1e-4
    epochs: float = 1
    batch_size: int = 8
    accumulation: int = 6
    seed: int = 0


class ChosenTokensTrainer(AnswerTrainer):
    """Fine-tuning on chosen answer tokens: L = their negative log-likelihood, summed over the step / their number.

    The number is that of the whole optimizer step, over accumulation and processes, so a row counts by its tokens.

    Parameters
    ----------
    rows : list of PackedRow
        With one answer each.
    masks : list of bool (answer tokens,)
        The tokens that are learned. Rows without any are left out.
    """

    def __init__(
        self,
        model: Any,
        args: TrainingArguments,
        rows: Sequence[PackedRow],
        masks: Sequence[Mask],
        processing_class: Any,
        **kwargs: Any,
    ):
        self._rows = [
            TrainRow(row, notes=torch.tensor(mask, dtype=torch.float32)[:, None])
            for row, mask in zip(rows, masks, strict=True)
            if mask.any()
        ]
        if not self._rows:
            raise InputError("no token is kept, so there is nothing to learn. Keep more, or lower the threshold.")
        super().__init__(model, args, len(self._rows), processing_class, **kwargs)

    def draw(self, index: int, random_: random.Random) -> list[TrainRow]:
        """Give the row itself."""
        return [self._rows[index]]

    def losses(self, out: AnswerLogprobs) -> tuple[Tensor, dict[str, Tensor]]:
        """Sum of the chosen tokens' NLL, nats; only they reach the output layer."""
        chosen_BA = out.noted_BAK[..., 0] > 0
        sum_B = -out.score(log_probability, chosen_BA).sum(-1)
        return sum_B, {"nll": sum_B / chosen_BA.sum(-1)}

    def _get_num_items_in_batch(self, batch_samples: list[dict[str, Tensor]], device: torch.device) -> Tensor:
        """Count the chosen tokens in all micro-batches of one optimizer step, on all processes."""
        count = torch.stack([batch["notes"].sum() for batch in batch_samples]).sum().to(device)
        gathered: Tensor = self.accelerator.gather(count).sum()
        return gathered


def finetune(
    loaded: Loaded, rows: Sequence[PackedRow], masks: Sequence[Mask], how: Training, label: str = "learning"
) -> Loaded:
    """Fine-tune a model on chosen tokens, in the order of the rows; its adapter goes on if it has one.

    As the authors: linear schedule with 3 % warm-up, no weight decay, no shuffling. Not as they: the adapter is the
    house's (all linear layers, alpha 2 x rank, no dropout).
    """
    set_seed(how.seed)
    num_rows = sum(bool(mask.any()) for mask in masks)
    num_steps = math.ceil(num_rows / (how.batch_size * how.accumulation)) * how.epochs
    args = training_arguments(
        TrainingArguments,
        ".",  # made if it is not there; nothing is written to it
        num_train_epochs=how.epochs,
        per_device_train_batch_size=how.batch_size,
        gradient_accumulation_steps=how.accumulation,
        learning_rate=how.learning_rate,
        warmup_steps=int(WARMUP * num_steps),  # none in a few steps: the first would be at a rate of 0
        weight_decay=0.0,
        train_sampling_strategy="sequential",
        seed=how.seed,
        disable_tqdm=True,
    )
    trainer = ChosenTokensTrainer(
        prepare(loaded, how.lora_rank), args, rows, masks, loaded.tokenizer, callbacks=[Bar(label, "nll")]
    )
    trainer.train()
    return loaded._replace(model=trainer.trained_model())


# Stages -----------------------------------------------------------------------------------------------------------


class Stages:
    """One model in memory, and what was found so far, in a folder if there is one.

    Parameters
    ----------
    folder : Path, optional
        Where stages are kept; made if it is not there.
    request : dict
        What was asked for, as JSON; stages of another request are not used.
    loaded : Loaded
        The model in memory, under the name that it was loaded by.

    Raises
    ------
    InputError : the folder holds stages of another request.
    """

    def __init__(self, folder: Path | None, request: Mapping[str, Any], loaded: Loaded) -> None:
        self.folder = folder
        self._loaded: Loaded | None = loaded
        self._name = loaded.name
        if folder is None:
            return
        if (folder / REQUEST).exists():
            if read_json(folder / REQUEST) != request:
                raise InputError(
                    f"{folder}: holds stages of another request. Repeat that one, remove the folder, or give another "
                    "--out."
                )
            say(f"going on with the stages in {folder}")
        else:
            write_json(folder / REQUEST, request)

    def model(self, name: str, *, made: bool = False) -> Loaded:
        """Hold this model instead of the one before: what `load` takes, or (`made`) one that was made here."""
        place = self._place(name) if made else name
        if self._loaded is None or self._name != place:
            before, self._loaded = self._loaded, None
            if before is not None and not shares_base(before, place):
                before = None  # freed before the next one is read
            self._loaded, self._name = load(place, trainable=True, instead_of=before), place
        return self._loaded

    def make(self, name: str, start: Callable[[], Loaded], change: Callable[[Loaded], Loaded]) -> None:
        """Make a model out of another one, unless that was done."""
        if self.folder is not None and (self.folder / name).is_dir():
            return
        made = change(start())
        if self.folder is not None:
            with new_folder(self.folder / name) as folder:
                save_model(made.model, made.tokenizer, folder, made.base)
        self._loaded, self._name = made, self._place(name)

    def numbers(self, name: str, find: Callable[[], Floats]) -> Floats:
        """Find numbers, unless that was done."""
        file = None if self.folder is None else self.folder / f"{name}.npy"
        if file is not None and file.exists():
            stored: Floats = np.load(file, allow_pickle=False)
            return stored
        found = find()
        if file is not None:
            with new_file(file) as temporary, temporary.open("wb") as stream:
                np.save(stream, found, allow_pickle=False)
        return found

    def _place(self, name: str) -> str:
        return str(self.folder / name) if self.folder else f"made here: {name}"


# Cleaning ---------------------------------------------------------------------------------------------------------


def check_tokenizer(reference: Loaded, tokenizer: PreTrainedTokenizerBase) -> Loaded:
    """Refuse a reference whose tokens, or whose chat template, are not those of the base."""
    for what, theirs, ours in (
        ("tokenizer", reference.tokenizer.get_vocab(), tokenizer.get_vocab()),
        ("chat template", reference.tokenizer.chat_template, tokenizer.chat_template),
    ):
        if theirs != ours:
            raise InputError(
                f"{reference.name}: has another {what} than the base, so tokens cannot be compared one by one. Give a "
                "model that was fine-tuned from the base."
            )
    return reference


def parts_of(num_rows: int, given: bool, warmup_rows: int, chunks: int) -> list[int]:
    """Bounds of the parts: all rows; the warm-up and the rest; or equal chunks, of which the first may be longer.

    Raises
    ------
    InputError : there are too few rows.
    """
    if given:
        return [0, num_rows]
    if chunks == 1:
        raise InputError("--chunks 1: the first part makes the reference, so two are needed at least.")
    if chunks > num_rows or warmup_rows >= num_rows:
        raise InputError(
            f"{num_rows} rows can be scored, too few for "
            + (f"--chunks {chunks}." if chunks else f"--warmup-rows {warmup_rows} and at least one to clean.")
        )
    if not chunks:
        return [0, warmup_rows, num_rows]
    return [0, *np.cumsum([len(part) for part in np.array_split(np.arange(num_rows), chunks)]).tolist()]


def part_name(row: int, bounds: Sequence[int], first: int) -> str:
    """Name the part that a row is in; the first one that is scored is part 1."""
    number = int(np.searchsorted(bounds, row, side="right")) - (1 if first else 0)
    return f"part {number}"


def clean(
    stages: Stages,
    rows: Sequence[PackedRow],
    bounds: Sequence[int],
    choose: Callable[[int, int, Floats], Mask],
    how: Training,
    *,
    base: str,
    reference: str | None,
    self_evolving: bool,
) -> tuple[Floats, Floats, Mask]:
    """Score the rows part after part, and choose tokens; theta_0 is the base, and the base of all scores.

    Fixed: one reference, given or made of part 0. Self-evolving: theta_1 = finetune(theta_0, part 0, all tokens); then
    part t is scored with theta_t, and theta_{t+1} = finetune(theta_t, part t, what is kept of it).

    Parameters
    ----------
    rows : list of PackedRow (N,)
    bounds : list of int
        Rows at which a part begins, and N. Without `reference` the first part is not scored.
    choose : callable
        (first row, row behind the last, scores) -> mask, of a part.

    Returns
    -------
    scores (M,); log p_base, and how far the mean log-probability of the vocabulary rose (M, 2); mask (M,). NaN where
    no score was needed.
    """
    offsets, first = offsets_of(lengths(rows)), bounds[0] if reference else bounds[1]
    start = int(offsets[first])
    scores, beside = np.full(offsets[-1], np.nan, np.float32), np.full((offsets[-1], 2), np.nan, np.float32)
    mask = np.ones(offsets[-1], dtype=bool)
    tokenizer = stages.model(base).tokenizer

    def masks(begin: int, end: int) -> list[Mask]:
        return [mask[offsets[i] : offsets[i + 1]] for i in range(begin, end)]

    def logp(model: Callable[[], Loaded], begin: int, end: int, label: str) -> Floats:
        return token_numbers(check_tokenizer(model(), tokenizer).model, rows[begin:end], tokenizer.pad_token_id, label)

    newest: Callable[[], Loaded] = partial(stages.model, base)
    version = ""
    of_base = stages.numbers("numbers-base", partial(logp, newest, first, len(rows), "base"))
    if reference:
        newest = partial(stages.model, reference)
        version = f"-{weights_sha256(newest().model)[:16]}"  # another model may lie under its name meanwhile
    else:
        whole = partial(finetune, rows=rows[:first], masks=masks(0, first), how=how, label="making the reference")
        stages.make("theta-1", newest, whole)
        newest = partial(stages.model, "theta-1", made=True)
    for t, (begin, end) in enumerate(pairwise(bounds if reference else bounds[1:]), 1):
        part = slice(offsets[begin], offsets[end])
        found = stages.numbers(f"numbers-{t}{version}", partial(logp, newest, begin, end, f"reference {t}"))
        base_here = of_base[offsets[begin] - start : offsets[end] - start]
        scores[part], beside[part, 0] = found[:, 0] - base_here[:, 0], base_here[:, 0]
        beside[part, 1] = found[:, 1] - base_here[:, 1]
        mask[part] = choose(begin, end, scores[part])
        if self_evolving:
            learn = partial(finetune, rows=rows[begin:end], masks=masks(begin, end), how=how, label=f"part {t}")
            stages.make(f"theta-{t + 1}", newest, learn)
            newest = partial(stages.model, f"theta-{t + 1}", made=True)
    return scores, beside, mask
