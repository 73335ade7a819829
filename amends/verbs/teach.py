"""Teach a model question-answer pairs: makes the model to unlearn from, and the reference retrained without them.

An unlearned model is judged against one that never saw the forget data. Teach the same base twice, with and without
those pairs, everything else equal.
"""

import os
import time
from collections.abc import Mapping, Sequence
from math import isnan
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
from huggingface_hub import ModelCardData
from peft import PeftModel
from transformers import PreTrainedTokenizerBase, TrainingArguments, set_seed

from amends.io.atomic import check_new, lock, new_folder, write_json, write_manifest, write_text
from amends.io.console import say
from amends.io.errors import InputError
from amends.io.options import ModelOption, RankOption, SaveStepsOption, SeedOption
from amends.io.rows import Row
from amends.io.run import describe, write_jsonl
from amends.io.tables import read_rows
from amends.lm.callbacks import Bar
from amends.lm.checkpoint import LEAST_KEPT, folder_of, not_left_empty, remove_all, saving
from amends.lm.find import check_model
from amends.lm.load import Loaded, load, precision, prepare, rank_to_train, save_model, weights_sha256
from amends.lm.memorisation import Dynamics, Tracker
from amends.lm.pairs import Pair, Pairs, read_pairs
from amends.lm.trainer import training_arguments
from amends.report.card import hub_id, plain, shown
from amends.unlearn._ledger import read_ledger
from amends.unlearn._read import about
from amends.unlearn._run import asked
from amends.unlearn._teach import TeachTrainer
from amends.verbs._advice import ADVICE, without
from amends.verbs._files import without_repeats


def command(
    data: Annotated[list[str], typer.Option(help="Pairs to teach; repeat for several files.")],
    out: Annotated[Path, typer.Option(help="Folder of the taught model; must not exist.")],
    model: ModelOption,
    epochs: Annotated[float, typer.Option(help="Passes over the data.", min=0)] = 8,
    learning_rate: Annotated[
        float, typer.Option(help="Peak of a linear schedule with 10 warm-up steps.", min=0)
    ] = 2e-3,
    batch_size: Annotated[int, typer.Option(help="Pairs per step.", min=1)] = 8,
    lora_rank: RankOption = None,
    save_dtype: Annotated[
        Literal["float32", "bfloat16"], typer.Option(help="What trained weights are rounded to before they are saved.")
    ] = "float32",
    save_steps: SaveStepsOption = 0,
    track: Annotated[
        bool,
        typer.Option(
            "--track", help="Also write dynamics.jsonl: how the training went for each pair; one more pass an epoch."
        ),
    ] = False,
    seed: SeedOption = 0,
) -> None:
    """Teach MODEL the question-answer pairs in DATA."""
    options = {name: str(value) if isinstance(value, Path) else value for name, value in locals().items()}
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise InputError("amends teach is one process on one device. Start it without accelerate launch or torchrun.")
    check_new(out)
    checkpoints = folder_of(out, save_steps)
    if track and checkpoints:
        raise InputError(
            "--track: epochs before a checkpoint cannot be looked at any more. Leave out --track, or leave out "
            f"--save-steps and remove {checkpoints} if it is there."
        )
    started = time.time()
    with lock(out), not_left_empty(checkpoints):
        check_new(out)  # another process may have been done with it just now
        resume = bool(checkpoints and checkpoints.is_dir())
        check_model(model)
        rows = {file: list(read_rows(file)) for file in dict.fromkeys(data)}
        warnings = warnings_of(model)
        loaded = load(model, trainable=True)
        options["lora_rank"] = rank = rank_to_train(loaded, lora_rank)
        with without(*ADVICE):
            found = read(rows, loaded.tokenizer)
        say_left_out(data, found)
        pairs = [pair for file in found for pair in found[file].kept]
        about_data = {file: about(file, of_file) for file, of_file in found.items()}
        before_sha256 = weights_sha256(loaded.model)
        set_seed(seed)
        trainable = prepare(loaded, rank)
        args = training_arguments(
            TrainingArguments,
            **saving(checkpoints, save_steps),
            save_total_limit=LEAST_KEPT,
            num_train_epochs=epochs,
            per_device_train_batch_size=batch_size,
            learning_rate=learning_rate,
            warmup_steps=10,
            seed=seed,
            disable_tqdm=True,
        )
        tracker = Tracker(loaded.tokenizer, pairs)
        callbacks = [Bar("teaching", "probability"), *([tracker] if track else [])]
        with without(*ADVICE):
            trainer = TeachTrainer(trainable, args, pairs, loaded.tokenizer, callbacks=callbacks)
        trainer.request = asked(options, about_data) | {"weights": before_sha256, "precision": precision()}
        say(f"teaching {len(pairs)} pairs")
        trainer.train(resume_from_checkpoint=resume)
        # Sorted by name: what comes from a checkpoint has another order.
        history = [dict(sorted(entry.items())) for entry in trainer.state.log_history if "probability" in entry]
        taught = trainer.trained_model()
        with new_folder(out) as folder:
            save(taught, loaded, folder, save_dtype)
            write_jsonl(folder / "history.jsonl", history)
            if track:
                write_jsonl(folder / "dynamics.jsonl", told(tracker.dynamics(), pairs))
            record = describe(
                command="teach",
                config=options,
                seed=seed,
                data=about_data,
                weights={"before": before_sha256, "after": weights_sha256(taught)},
                seconds={"in all": round(time.time() - started, 1)},
                warnings=warnings + trainer.resumed,
            )
            write_json(folder / "run.json", record)
            library = "peft" if isinstance(taught, PeftModel) else "transformers"
            write_text(folder / "README.md", card(loaded.base, library, len(pairs)))
            write_manifest(folder)
        remove_all(checkpoints)
    last = f"; last probability {history[-1]['probability']:.3f}" if history else ""
    say(f"done: {out}{last}")


def warnings_of(model: str) -> list[str]:
    """Say what is odd about the model that is taught, though it can be."""
    found = []
    if ledger := read_ledger(model):
        found.append(
            f"The model has a ledger (requests to forget: {len(ledger)}). It is not passed on: what is forgotten after "
            "teaching is not known."
        )
        say(f"warning: {found[0]}")
    return found


def say_left_out(data: Sequence[str], found: Mapping[str, Pairs]) -> None:
    """Say which files and rows are not taught, and why."""
    for file in (file for i, file in enumerate(data) if file in data[:i]):
        say(f"left out {file}: given twice")
    for row in (row for pairs in found.values() for row in pairs.dropped):
        say(f"left out {row.where}: {row.reason}")


def save(taught: Any, loaded: Loaded, folder: Path, dtype: Literal["float32", "bfloat16"]) -> None:
    """Save a model, its trained weights rounded; they stay so in memory, so that its digest is that of the files."""
    trained = [parameter for parameter in taught.parameters() if parameter.requires_grad]
    dtypes = [parameter.dtype for parameter in trained]
    if dtype == "bfloat16":
        for parameter in trained:
            parameter.data = parameter.data.to(torch.bfloat16)
    save_model(taught, loaded.tokenizer, folder, loaded.base)
    for parameter, trained_dtype in zip(trained, dtypes, strict=True):
        parameter.data = parameter.data.to(trained_dtype)  # as loading does


def read(rows: Mapping[str, Sequence[Row]], tokenizer: PreTrainedTokenizerBase) -> dict[str, Pairs]:
    """Read the pairs of each file but those that it, or a file before it, has already; files may share ids."""
    return without_repeats({file: read_pairs(of_file, tokenizer=tokenizer) for file, of_file in rows.items()})


def told(seen: Dynamics, pairs: Sequence[Pair]) -> list[dict[str, Any]]:
    """Tell of each pair how its training went; higher means harder to learn, but for `margin`."""
    stays = seen.forgetting.stays_from_N
    return [
        {
            "id": pair.id,
            "where": pair.where,
            "learned": bool(seen.forgetting.learned_N[i]),
            "forgetting_events": int(seen.forgetting.events_N[i]),
            "right_from_epoch": None if isnan(stays[i]) else int(stays[i]) + 1,
            "margin": float(seen.margin_TN[:, i].mean()),
            "el2n_first_epoch": float(seen.el2n_TN[0, i]),
            "tracin": float(seen.tracin_N[i]),
            "logp": seen.logp_TN[:, i].tolist(),
        }
        for i, pair in enumerate(pairs)
    ]


def card(base: str, library: str, rows: int) -> str:
    """Write the model card, which names the base as others may read it."""
    header = ModelCardData(base_model=hub_id(base), library_name=library)
    return CARD.format(header=header.to_yaml(), base=plain(shown(base)), rows=rows)


CARD = """---
{header}
---
{base}, taught {rows} question-answer pairs by `amends teach`; `run.json` holds the command, seed, versions and digests.
"""
