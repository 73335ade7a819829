"""Token Cleaning: train on the answer tokens that have something to teach, and on no others.

The score of a token is its log-probability by a reference, the base fine-tuned on a part of the data, less that by the
base: high where there was something to learn. The other tokens keep their place, and carry no loss.
"""

import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import typer

from amends.curate._pools.pool import Outcome
from amends.curate._token_cleaning.masks import (
    Floats,
    Level,
    Mask,
    check_choice,
    needed_reduction,
    offsets_of,
    token_mask,
)
from amends.curate._token_cleaning.page import examples, summary, warnings_of
from amends.curate._token_cleaning.rows import (
    Scored,
    lengths,
    outcome_of,
    read_token_pool,
    save_dataset,
    source_of,
    to_dataset,
)
from amends.curate._token_cleaning.stages import (
    ChosenTokensTrainer,
    Stages,
    Training,
    check_tokenizer,
    clean,
    log_probabilities,
    part_name,
    parts_of,
)
from amends.io.atomic import check_new, lock, new_file, new_folder, sha256_json, write_json, write_manifest, write_text
from amends.io.console import say
from amends.io.errors import InputError
from amends.io.options import ModelOption, SeedOption
from amends.io.run import describe
from amends.io.write import kind_of
from amends.lm.load import Loaded, load, save_model, shares_base, weights_sha256
from amends.lm.pairs import Pair
from amends.lm.rows import context_limit, encode_rows
from amends.lm.templates import turn_end
from amends.report.tokens import Example, render_tokens

CHUNKS = 5
TRAINED = ("lora_rank", "learning_rate", "epochs", "batch_size", "accumulation")
"""Options of a training, but for the seed."""
__all__ = [
    "ChosenTokensTrainer",
    "Cleaned",
    "Scored",
    "Training",
    "needed_reduction",
    "run",
    "score",
    "to_dataset",
    "token_mask",
]


@dataclass(frozen=True, eq=False)
class Cleaned:
    """What a cleaning found; the run folder holds the same."""

    outcome: Outcome
    """What became of every row."""
    scored: Scored
    """Of the rows that could be scored."""
    mask: Mask
    """(M,): the tokens that carry loss."""
    summary: dict[str, Any]
    """As summary.json has it."""
    record: dict[str, Any]
    """As run.json has it."""
    model: Loaded | None
    """Self-evolving: what was trained on the cleaned tokens."""

    def to_dataset(self) -> datasets.Dataset:
        """Rows that any trainer takes: `to_dataset`."""
        return to_dataset(self.scored.rows, self.mask, self.scored.offsets)


def score(
    base: str | Path | Loaded, reference: str | Path | Loaded, pairs: Sequence[Pair], *, max_length: int = 2048
) -> Scored:
    """Score each answer token: S = log p_reference - log p_base, of the token given the true ones before it.

    Parameters
    ----------
    base, reference : str, Path or Loaded
        What `amends.lm.load` takes, read one after the other; or models that are loaded already.
    pairs : list of Pair
        From `amends.lm.pairs.read_pairs`.
    max_length : int, default 2048
        Most tokens of a prompt with its answer.

    Raises
    ------
    InputError : a row is too long; the two have different tokenizers or chat templates.
    """
    first: Loaded | None = base if isinstance(base, Loaded) else load(base)
    assert first is not None
    tokenizer = first.tokenizer
    rows = encode_rows(tokenizer, pairs, context_limit(first.model, max_length))
    of_base = log_probabilities(first.model, rows, tokenizer.pad_token_id, "base")
    if isinstance(reference, Loaded):
        second = reference
    else:
        if isinstance(base, Loaded) or not shares_base(first, reference):
            first = None  # freed before the next one is read
        second = load(reference, instead_of=first)
    check_tokenizer(second, tokenizer)
    of_reference = log_probabilities(second.model, rows, tokenizer.pad_token_id, "reference")
    return Scored([pair.where for pair in pairs], rows, of_reference - of_base, offsets_of(lengths(rows)))


def run(
    data: Any,
    *,
    base: str | Path,
    out: str | Path | None = None,
    reference: str | Path | None = None,
    warmup_rows: int = 0,
    self_evolving: bool = False,
    chunks: int | None = None,
    keep: float | None = None,
    level: Level = "global",
    threshold: float | None = None,
    keep_ends: bool = True,
    source_column: str | None = None,
    max_length: int = 2048,
    question_column: str | None = None,
    answer_column: str | None = None,
    training: Training | None = None,
) -> Cleaned:
    """Clean the tokens of a pool, with a fixed reference or self-evolving.

    Parameters
    ----------
    data : path, list of paths, `datasets.Dataset`, data frame, or list of dictionaries
        Rows with a prompt and an answer, in a shape that `amends.lm.pairs.read_pairs` knows.
    base, reference : str or Path
        What `amends.lm.load` takes. One model is held at a time.
    out : path, optional
        Run folder to make. Until it is there, what is done stands in OUT.stages, and the same request goes on from it.
    warmup_rows : int, optional
        Make the reference here, of this many rows at the beginning, which keep all tokens.
    self_evolving : bool, default False
        Make it of the first of `chunks` (default 5) equal parts, and go on part by part (`clean`).
    keep_ends : bool, default True
        Keep the token that closes an answer wherever another one of it is kept.
    training : Training, optional
        How models are made here; not with `reference`, as none is.

    The others are as on the command line, and as in `token_mask`.

    Raises
    ------
    InputError : what the user can mend.
    """
    options = dict(locals())
    how = training or Training()
    config = {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}
    config |= {"data": _named(data), "training": asdict(how)}
    if out is not None:
        check_new(out)
    check_choice(level, keep, threshold, source_column is not None)
    if (reference is not None) + (warmup_rows > 0) + self_evolving != 1:
        raise InputError("a reference is needed: give one of --reference, --warmup-rows and --self-evolving.")
    if ignored := unused(how if reference is not None else None, chunks if not self_evolving else None):
        raise InputError(ignored)
    num_chunks = (CHUNKS if chunks is None else chunks) if self_evolving else 0
    started = time.time()
    with lock(out) if out is not None else nullcontext():
        say("reading the model and the data")
        loaded = load(base, trainable=True)
        tokenizer, digests = loaded.tokenizer, {"base": weights_sha256(loaded.model)}
        limit = context_limit(loaded.model, max_length)
        pool = read_token_pool(data, tokenizer, limit, question_column, answer_column)
        bounds = parts_of(len(pool.pairs), reference is not None, warmup_rows, num_chunks)
        first = bounds[0] if reference is not None else bounds[1]
        sources = [source_of(pool.rows[i], source_column) for i in pool.numbers] if source_column else None
        offsets = offsets_of(lengths(pool.packed))
        ends = np.zeros(offsets[-1], dtype=bool)
        ends[offsets[1:] - 1] = bool(turn_end(tokenizer))

        def choose(begin: int, end: int, scores: Floats) -> Mask:
            return token_mask(
                scores,
                offsets[begin : end + 1] - offsets[begin],
                keep=keep,
                level=level,
                threshold=threshold,
                always_keep=ends[offsets[begin] : offsets[end]] if keep_ends else None,
                sources=sources[begin:end] if sources else None,
            )

        asked = {"config": config | {"out": None}, "weights": digests, "rows": sha256_json(pool.packed)}
        folder = None if out is None else Path(f"{Path(out)}.stages")
        stages = Stages(folder, asked, loaded)
        del loaded  # held by the stages alone
        say(f"scoring {len(pool.pairs) - first} of {len(pool.rows)} rows")
        scores, beside, mask = clean(
            stages,
            pool.packed,
            bounds,
            choose,
            how,
            base=str(base),
            reference=None if reference is None else str(reference),
            self_evolving=self_evolving,
        )
        last = f"theta-{len(bounds) - 1 if self_evolving else 1}"
        learned = stages.model(last, made=True) if reference is None else stages.model(str(reference))
        digests["model" if self_evolving else "reference"] = weights_sha256(learned.model)
        parts = [part_name(i, bounds, first) for i in range(len(pool.pairs))]
        num_ends = int((mask & ends)[offsets[first] :].sum()) if keep_ends else 0
        told = summary(pool, scores, mask, offsets, first, num_ends, parts, sources, tokenizer, beside)
        outcome = outcome_of(pool, scores, mask, offsets, first)
        told["rows"] = outcome.counts()
        warnings = warnings_of(scores[offsets[first] :], told)
        for warning in warnings:
            say(f"warning: {warning}")
        record = describe(
            command="curate token_cleaning",
            config=config,
            seed=how.seed,
            data={"data": outcome.about(data)},
            weights=digests,
            seconds={"in all": round(time.time() - started, 1)},
            stopped="all rows looked at",
            warnings=warnings,
        )
        scored = Scored([pair.where for pair in pool.pairs], pool.packed, scores, offsets)
        cleaned = Cleaned(outcome, scored, mask, told, record, learned if reference is None else None)
        if out is not None:
            write(cleaned, Path(out), kind_of(data), examples(pool, mask, offsets, first, tokenizer))
            assert folder is not None
            shutil.rmtree(folder)
        return cleaned


def unused(training: Training | None, chunks: int | None) -> str | None:
    """Name the options that were changed and would be ignored: of a training that there is not, of chunks."""
    if chunks is not None:
        return f"--chunks {chunks}: goes with --self-evolving. Leave it out."
    changed = dict(asdict(training).items() - asdict(Training()).items()) if training is not None else {}
    return needless({name: value for name, value in changed.items() if name in TRAINED})


def needless(given: Mapping[str, Any]) -> str | None:
    """Say that options of a training go with none."""
    names = sorted(f"--{name.replace('_', '-')} {value}" for name, value in given.items())
    return (
        f"{', '.join(names)}: how a reference is made here, but --reference gives one. Leave it out." if names else None
    )


def write(cleaned: Cleaned, out: Path, kind: str, shown: Sequence[Example]) -> None:
    """Write the run folder in one move."""
    scored, mask = cleaned.scored, cleaned.mask
    seen = np.isfinite(scored.scores)
    with new_folder(out) as folder:
        if mask.any():
            save_dataset(cleaned.to_dataset(), folder / "cleaned")
        cleaned.outcome.write(folder, kind)
        write_scores(folder / "scores.parquet", scored, mask)
        if cleaned.model is not None:
            made = "model" if cleaned.record["config"]["self_evolving"] else "reference"
            save_model(cleaned.model.model, cleaned.model.tokenizer, folder / made, cleaned.model.base)
        write_json(folder / "summary.json", cleaned.summary)
        write_json(folder / "run.json", cleaned.record)
        scores = {"kept": scored.scores[mask & seen], "dropped": scored.scores[~mask & seen]}
        write_text(folder / "report.html", render_tokens(cleaned.record, cleaned.summary, shown, scores))
        write_manifest(folder)


def write_scores(path: Path, scored: Scored, mask: Mask) -> None:
    """Write a row's place, answer tokens, scores (missing where it made the reference), and what is kept."""
    ids = np.array([i for row in scored.rows for i in row.answers[0]], dtype=np.int32)
    offsets = pa.array(scored.offsets, pa.int64())
    columns = {
        "token_ids": pa.array(ids),
        "scores": pa.array(scored.scores, mask=np.isnan(scored.scores)),
        "kept": pa.array(mask),
    }
    lists = {name: pa.LargeListArray.from_arrays(offsets, values) for name, values in columns.items()}
    with new_file(path) as temporary:
        pq.write_table(pa.table({"where": pa.array(scored.where)} | lists), temporary)


def _named(data: Any) -> str:
    """Say in words what the rows were read from."""
    if isinstance(data, str | Path):
        return str(data)
    paths = [str(item) for item in data if isinstance(item, str | Path)] if isinstance(data, list | tuple) else []
    return ", ".join(paths) or "rows given from Python"


def command(
    ctx: typer.Context,
    data: Annotated[list[str], typer.Argument(help="Rows with a prompt and an answer; several files are one pool.")],
    out: Annotated[Path, typer.Option(help="Run folder to make; must not exist.")],
    base: ModelOption,
    reference: Annotated[str | None, typer.Option(help="The base, fine-tuned on rows like these.")] = None,
    warmup_rows: Annotated[
        int, typer.Option(help="Make the reference of this many rows at the beginning, which keep all tokens.", min=0)
    ] = 0,
    self_evolving: Annotated[
        bool,
        typer.Option(
            "--self-evolving",
            help="Make it of the first chunk; clean each chunk with the newest model and train that on what is kept.",
        ),
    ] = False,
    chunks: Annotated[
        int | None,
        typer.Option(help="Self-evolving: equal parts, in the order of the rows; 5 if none is given.", min=2),
    ] = None,
    keep: Annotated[
        float | None, typer.Option(help="Share of the answer tokens that is kept; 0.6 unless --threshold is given.")
    ] = None,
    level: Annotated[
        Literal["global", "sample", "threshold"],
        typer.Option(help="Rank tokens of all rows together, of each row alone, or take those above --threshold."),
    ] = "global",
    threshold: Annotated[
        float | None, typer.Option(help="Level threshold: keep tokens with a higher score, nats.")
    ] = None,
    keep_ends: Annotated[
        bool, typer.Option(help="Keep the token that closes an answer wherever another one of it is kept.")
    ] = True,
    source_column: Annotated[
        str | None, typer.Option(help="Column of the source; the share is kept of each source's tokens.")
    ] = None,
    max_length: Annotated[
        int, typer.Option(help="Most tokens of a prompt with its answer; a longer row is refused.", min=2)
    ] = 2048,
    question_column: Annotated[str | None, typer.Option(help="Column of the question, if it has another name.")] = None,
    answer_column: Annotated[str | None, typer.Option(help="Column of the answer, if it has another name.")] = None,
    lora_rank: Annotated[int, typer.Option(help="Of models made here: LoRA rank; 0 tunes all weights.", min=0)] = 64,
    learning_rate: Annotated[float, typer.Option(help="Peak of a linear schedule, 3 % warm-up.", min=0)] = 1e-4,
    epochs: Annotated[float, typer.Option(help="Passes over each part that is learned.", min=0)] = 1,
    batch_size: Annotated[int, typer.Option(help="Rows that go through the model together.", min=1)] = 8,
    accumulation: Annotated[int, typer.Option(help="Batches summed up before each step.", min=1)] = 6,
    seed: SeedOption = 0,
) -> None:
    """Choose the answer tokens of DATA that are worth learning, and write rows that a trainer takes."""
    sources = {name: str(ctx.get_parameter_source(name)) for name in TRAINED}
    typed = {name: ctx.params[name] for name, of in sources.items() if of.endswith(("COMMANDLINE", "DEFAULT_MAP"))}
    if reference is not None and (ignored := needless(typed)):  # also where the value is the default
        raise InputError(ignored)
    cleaned = run(
        data if len(data) > 1 else data[0],
        base=base,
        out=out,
        reference=reference,
        warmup_rows=warmup_rows,
        self_evolving=self_evolving,
        chunks=chunks,
        keep=keep,
        level=level,
        threshold=threshold,
        keep_ends=keep_ends,
        source_column=source_column,
        max_length=max_length,
        question_column=question_column,
        answer_column=answer_column,
        training=Training(lora_rank, learning_rate, epochs, batch_size, accumulation, seed),
    )
    told = cleaned.summary
    say(f"{told['kept']} of {told['tokens']} scored answer tokens are kept, of {told['rows']['kept']} rows")
    trained_on = f"rows to train on are in {out / 'cleaned'}" if cleaned.mask.any() else "there is nothing to train on"
    say(f"done: {out / 'report.html'}; {trained_on}")
