"""Teach a model question-answer pairs: makes the model to unlearn from, and the reference retrained without them.

An unlearned model is judged against one that never saw the forget data. Teach the same base twice, with and without
those pairs, everything else equal.
"""

import random
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
from rich.console import Console
from torch import Tensor
from transformers import TrainingArguments, set_seed

from amends.io.atomic import check_new, new_folder, sha256_json, write_json, write_manifest, write_text
from amends.io.errors import InputError
from amends.io.run import describe, write_jsonl
from amends.io.tables import read_rows
from amends.lm.load import add_lora, load, save_model, weights_sha256
from amends.lm.logprobs import AnswerLogprobs, masked_mean, packed_row
from amends.lm.pairs import Pair, encode, read_pairs
from amends.lm.trainer import AnswerTrainer, Bar, TrainRow, training_arguments


class TeachTrainer(AnswerTrainer):
    """Supervised fine-tuning on answers: L = mean over samples of the mean negative log-likelihood per answer token."""

    def __init__(self, model: Any, args: TrainingArguments, pairs: list[Pair], processing_class: Any, **kwargs: Any):
        self._rows = [TrainRow(packed_row(encode(processing_class, pair.prompt, [pair.answer]))) for pair in pairs]
        super().__init__(model, args, len(pairs), processing_class, **kwargs)

    def draw(self, index: int, random_: random.Random) -> list[TrainRow]:
        """The pair itself."""
        return [self._rows[index]]

    def losses(self, out: AnswerLogprobs, is_retain_B: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean NLL per answer token, and the token-normalised probability exp(mean log p)."""
        mean_logp_B = masked_mean(out.logp_BA, out.mask(0))
        return -mean_logp_B, {"probability": mean_logp_B.exp()}


def command(
    data: Annotated[list[str], typer.Option(help="Pairs to teach; repeat for several files.")],
    out: Annotated[Path, typer.Option(help="Folder of the taught model; must not exist.")],
    model: Annotated[str, typer.Option(help="Hub id, model folder, PEFT adapter folder, .gguf file, or package:NAME/FILE.")],
    rows: Annotated[int | None, typer.Option(help="Use only the first rows of each group of --group-by.", min=1)] = None,
    group_by: Annotated[str, typer.Option(help="Column that --rows counts by.")] = "author",
    epochs: Annotated[float, typer.Option(help="Passes over the data.", min=0)] = 8,
    learning_rate: Annotated[float, typer.Option(help="Peak of a linear schedule with 10 warm-up steps.", min=0)] = 2e-3,
    batch_size: Annotated[int, typer.Option(help="Pairs per step.", min=1)] = 8,
    lora_rank: Annotated[int, typer.Option(help="LoRA rank; 0 tunes all weights.", min=0)] = 16,
    save_dtype: Annotated[
        Literal["float32", "bfloat16"], typer.Option(help="What trained weights are rounded to before they are saved.")
    ] = "float32",
    seed: Annotated[int, typer.Option(help="Seed of every random choice.")] = 0,
) -> None:
    """Teach MODEL the question-answer pairs in DATA."""
    options = dict(locals())
    check_new(out)
    started, console = time.time(), Console(stderr=True)
    pairs = [pair for file in data for pair in read_taught(file, rows, group_by)]
    loaded = load(model)
    base_sha256 = weights_sha256(loaded.model)
    set_seed(seed)
    trainable = add_lora(loaded.model, lora_rank) if lora_rank else loaded.model.requires_grad_(True)
    args = training_arguments(
        TrainingArguments,
        "unused",
        num_train_epochs=epochs,
        per_device_train_batch_size=batch_size,
        learning_rate=learning_rate,
        warmup_steps=10,
        seed=seed,
        disable_tqdm=True,
    )
    trainer = TeachTrainer(trainable, args, pairs, loaded.tokenizer, callbacks=[Bar("teaching", "probability", console)])
    console.print(f"amends: teaching {len(pairs)} pairs", highlight=False)
    trainer.train()
    taught = trainer.accelerator.unwrap_model(trainer.model).eval()
    if save_dtype == "bfloat16":
        for parameter in taught.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(torch.bfloat16)
    with new_folder(out) as folder:
        save_model(taught, loaded.tokenizer, folder, loaded.base)
        history = [entry for entry in trainer.state.log_history if "probability" in entry]
        write_jsonl(folder / "history.jsonl", history)
        record = describe(
            command="teach",
            config=options,
            seed=seed,
            data={"rows": len(pairs), "sha256": sha256_json([(p.prompt, p.answer) for p in pairs])},
            weights={"before": base_sha256},
            seconds=round(time.time() - started, 1),
        )
        write_json(folder / "run.json", record)
        write_text(folder / "README.md", CARD.format(base=loaded.base, rows=len(pairs)))
        write_manifest(folder)
    console.print(f"amends: done: {out}; last probability {history[-1]['probability']:.3f}", highlight=False)


CARD = """---
base_model: {base}
library_name: peft
---
Taught {rows} question-answer pairs by `amends teach`; `run.json` holds the command, seed, versions and digests.
"""


def read_taught(file: str, rows: int | None, group_by: str) -> list[Pair]:
    """Pairs of a file, or of the first `rows` rows of each group in it."""
    found, seen = list(read_rows(file)), dict[Any, int]()
    if rows is None:
        return read_pairs(found).kept
    kept = []
    for row in found:
        if group_by not in row.data:
            raise InputError(f'{row.where}: no column "{group_by}" to count --rows by. Name one with --group-by.')
        seen[row.data[group_by]] = seen.get(row.data[group_by], 0) + 1
        if seen[row.data[group_by]] <= rows:
            kept.append(row)
    return read_pairs(kept).kept
