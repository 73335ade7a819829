"""Audit what a model has memorised: its training records, the most memorised first."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, NamedTuple

import numpy as np
import typer
from transformers import PreTrainedTokenizerBase

from amends.io.atomic import check_new, new_folder, write_json, write_manifest, write_text
from amends.io.bounds import check_options
from amends.io.console import say
from amends.io.errors import InputError
from amends.io.options import ModelOption, listed
from amends.io.run import describe, told, write_jsonl
from amends.lm.find import check_model
from amends.lm.load import Loaded, fitting, load, shares_base, weights_sha256
from amends.lm.logprobs import PackedRow, naming
from amends.lm.memorisation import AnswerScores, answer_scores, record_row
from amends.lm.pairs import Pair
from amends.lm.rows import context_limit, context_of
from amends.lm.turns import model_for
from amends.maths.arrays import FloatArray
from amends.maths.memorisation import mean_rank, num_tokens
from amends.maths.words import word_scores
from amends.report.audit import render_audit
from amends.unlearn._request import Data
from amends.verbs._holdout import WORDS, Membership, compare, warnings_of_holdout
from amends.verbs._measures import MEASURES, Numbers, chosen_measures, reasons
from amends.verbs._records import NOTHING, Reading, read, row_of

COMBINED = "combined"
SAME_WEIGHTS = (
    "The reference has the weights of the model, so it saw the records: what is said beside it is 0 and counts in the "
    "rank all the same. Give a model that was not trained on them."
)
EIDETIC = (1, 10, 100)
"""k for which the records are counted that are k-eidetic: extractable, and at most k times among the data. Source:
Carlini et al. 2021, definition 2, of records where it is of documents."""


@dataclass(frozen=True, eq=False)
class Audit:
    """What an audit found; the run folder holds the same."""

    pairs: list[Pair]
    """The records, in input order; so are the arrays below."""
    scores: dict[str, FloatArray]
    """Of each measure a number a record, higher where more is memorised; NaN where it has none."""
    combined: FloatArray
    """Mean rank over these measures, 0 to 1, among records and holdout together."""
    order: list[int]
    """Numbers of the records, most memorised first."""
    missing: dict[str, list[str | None]]
    """Of each measure why a record has no finite number; None where it has."""
    copies: list[int]
    """How often each record stands in the data, itself among them; equal ones are one record."""
    holdout: list[Pair]
    holdout_scores: dict[str, FloatArray]
    """As `scores`, with "combined" among them."""
    membership: dict[str, Membership]
    """Of each measure, "combined", and "words": of a classifier that never saw the model. Empty without holdout."""
    record: dict[str, Any]
    """As run.json has it."""

    def ranked(self, top: int | None = None) -> list[dict[str, Any]]:
        """Give the most memorised records, first first, in a shape that is read as rows to forget."""
        return [row_of(self.pairs[i]) for i in self.order[:top]]


def run(
    model: str | Path | Any,
    data: Data | Sequence[str | Path],
    *,
    out: str | Path | None = None,
    reference: str | Path | Any = None,
    holdout: Data | None = None,
    top: int = 100,
    measures: Sequence[str] = (),
    share: float = 0.2,
    answer_prefix: int = 0,
    temperature: float = 1.0,
    top_k: int = 0,
    max_length: int = 1024,
    reading: Reading | None = None,
    seed: int = 0,
    processing_class: PreTrainedTokenizerBase | None = None,
) -> Audit:
    """Audit a model by one forward pass over its records, and one more of the reference if there is one.

    Parameters
    ----------
    model, reference : str, Path or model
        What `amends.lm.load` takes, or a model that is loaded already (with `processing_class`). The reference has the
        same tokenizer and was not trained on the records.
    data : path, list of paths, or list of dictionaries
        The training records.
    out : path, optional
        Run folder to make.
    holdout : path or list of dictionaries, optional
        Rows of the same kind that the model never saw.
    measures : list of str, optional
        Names in `amends.verbs._measures.MEASURES`, as on the command line; default: all but "gradient", with a
        reference those that need it.
    reading : Reading, optional
        How records are read.
    seed : int, default 0
        Of the folds of the classifier of words; nothing else is drawn.

    The others are as on the command line.

    Raises
    ------
    InputError : what the user can mend; nothing is written then.
    """
    options = {name: value for name, value in locals().items() if name != "processing_class"}
    if out is not None:
        check_new(out)
    started, how = time.time(), reading or Reading()
    check_options(command, options | vars(how))
    chosen = chosen_measures(listed([measures] if isinstance(measures, str) else measures), reference is not None)
    for named in [m for m in (model, reference) if isinstance(m, str | Path)]:
        check_model(named)
    say("reading the model and the data")
    loaded = load(model) if isinstance(model, str | Path) else model_for(model, processing_class)
    tokenizer = loaded.tokenizer
    if processing_class is not None:
        tokenizer = fitting(processing_class, loaded.model, loaded.name)
    limit = context_limit(loaded.model, max_length)
    of_data = read(data, "data", how, tokenizer, limit)
    of_holdout = read(holdout, "holdout", how, tokenizer, limit, of_data) if holdout is not None else NOTHING
    records, others = of_data.pairs, of_holdout.pairs
    for row in (*records.dropped, *others.dropped):
        say(f"left out {row.where}: {row.reason}")
    pairs, num = [*records.kept, *others.kept], len(records.kept)
    rows = [record_row(tokenizer, pair.prompt, [pair.answer]) for pair in pairs]
    say(f"auditing {num} records" + (f" beside {len(others.kept)} rows of the holdout" if others.kept else ""))
    settings = {"gradients": "gradient" in chosen, "temperature": temperature, "top_k": top_k}
    in_place = isinstance(model, str | Path) and isinstance(reference, str | Path) and shares_base(loaded, reference)
    asked = ask_both(loaded, reference, rows, pairs, tokenizer, settings, in_place=in_place)
    numbers = Numbers(asked.model, asked.reference, [pair.answer for pair in pairs], share, answer_prefix)
    scores = {name: MEASURES[name].of(numbers) for name in chosen}
    lengths = num_tokens(asked.model.logp_NA).tolist()
    combined = mean_rank(list(scores.values()))
    if unranked := [pairs[i].where for i in np.flatnonzero(np.isnan(combined))]:
        raise InputError(f"{unranked[0]}: has no number of any measure. Lower --answer-prefix.")
    both = scores | {COMBINED: combined}
    membership = beside_holdout(both, pairs, num, seed) if others.kept else {}
    warnings = warnings_of_holdout(membership)
    if asked.digests.get("reference") == asked.digests["before"]:
        warnings.append(SAME_WEIGHTS)
    for warning in warnings:
        say(f"warning: {warning}")
    record = describe(
        command="audit",
        config={name: told(value) for name, value in options.items()} | {"measures": chosen, "reading": vars(how)},
        seed=seed,
        data=of_data.told | of_holdout.told,
        weights=asked.digests,
        seconds={"in all": round(time.time() - started, 1)},
        stopped="all records looked at",
        warnings=warnings,
    )
    audit = Audit(
        pairs=records.kept,
        scores={name: score[:num] for name, score in scores.items()},
        combined=combined[:num],
        order=sorted(range(num), key=lambda i: (-combined[i], i)),
        missing={name: reasons(name, score[:num], lengths[:num], answer_prefix) for name, score in scores.items()},
        copies=of_data.copies,
        holdout=others.kept,
        holdout_scores={name: score[num:] for name, score in both.items()},
        membership=membership,
        record=record,
    )
    if out is not None:
        write(audit, Path(out), top)
    return audit


class Asked(NamedTuple):
    """What the models say of the tokens of all rows."""

    model: AnswerScores
    reference: AnswerScores | None
    digests: dict[str, str]
    """Of their weights, by role."""


def ask_both(
    loaded: Loaded,
    reference: Any,
    rows: Sequence[PackedRow],
    pairs: Sequence[Pair],
    tokenizer: PreTrainedTokenizerBase,
    settings: Mapping[str, Any],
    *,
    in_place: bool,
) -> Asked:
    """Ask the model, then the reference, if there is one.

    Parameters
    ----------
    settings : mapping
        Of `answer_scores`, for the model alone.
    in_place : bool
        Whether the reference takes the model's place, and so has its context; any other is looked at before the model
        is asked.

    Raises
    ------
    InputError : the reference has another tokenizer, or does not take the longest row.
    """
    beside: Any = None
    if reference is not None and not in_place:
        beside = reference_for(reference, None, tokenizer)
        check_context(beside, rows, pairs)
    digests = {"before": weights_sha256(loaded.model)}
    with naming(f"--model {loaded.name}"):
        found = answer_scores(loaded.model, rows, tokenizer.pad_token_id, label="model", **settings)
    if reference is None:
        return Asked(found, None, digests)
    if in_place:
        beside = reference_for(reference, loaded, tokenizer)
    digests["reference"] = weights_sha256(beside)
    with naming("--reference"):
        return Asked(found, answer_scores(beside, rows, tokenizer.pad_token_id, label="reference"), digests)


def beside_holdout(
    scores: Mapping[str, FloatArray], pairs: Sequence[Pair], num_records: int, seed: int
) -> dict[str, Membership]:
    """Say how well each score, and words alone, tell the records from the rows of the holdout behind them."""
    texts = [f"{pair.question} {pair.answer}" for pair in pairs]
    words = word_scores(texts[:num_records], texts[num_records:], np.random.default_rng(seed))
    found = {name: compare(score[:num_records], score[num_records:]) for name, score in scores.items()}
    return found | {WORDS: compare(*words)}


def reference_for(reference: Any, instead_of: Loaded | None, tokenizer: PreTrainedTokenizerBase) -> Any:
    """Load the reference, or take it as it is.

    Raises
    ------
    InputError : it has another tokenizer.
    """
    if not isinstance(reference, str | Path):
        return reference
    beside = load(reference, instead_of=instead_of)
    if beside.tokenizer.get_vocab() != tokenizer.get_vocab():
        raise InputError(f"{reference}: has another tokenizer than the model, so tokens cannot be compared one by one.")
    return beside.model


def check_context(reference: Any, rows: Sequence[PackedRow], pairs: Sequence[Pair]) -> None:
    """Refuse a reference that does not take the longest of the rows.

    Raises
    ------
    InputError
    """
    longest = max(range(len(rows)), key=lambda i: rows[i].num_tokens)
    context, num_tokens = context_of(reference), rows[longest].num_tokens
    if context and num_tokens > context:
        cut = "lower --prefix-tokens and --continuation-tokens" if pairs[longest].is_text else "shorten or split it"
        raise InputError(
            f"--reference: takes {context} tokens, and {pairs[longest].where} has {num_tokens}. Give one with a longer "
            f"context, {cut}, or leave such rows out with --max-length {context} --skip-bad-rows."
        )


def summary(audit: Audit) -> dict[str, Any]:
    """Of each score its meaning, its mean over the records, and how it tells them from the holdout."""
    meanings = {name: MEASURES[name].meaning for name in audit.scores} | {COMBINED: "mean rank over the measures"}
    found: dict[str, Any] = {}
    for name, meaning in meanings.items():
        values = audit.combined if name == COMBINED else audit.scores[name]
        there = values[np.isfinite(values)]
        found[name] = {
            "meaning": meaning,
            "mean": float(there.mean()) if there.size else None,
            "n": int(there.size),
            "left_out": len(values) - int(there.size),
        }
    if "extractable" in found:
        rows = zip(audit.scores["extractable"], audit.copies, strict=True)
        there_too = [copies for given, copies in rows if given == 1]
        found["extractable"]["eidetic"] = {str(k): sum(copies <= k for copies in there_too) for k in EIDETIC}
    if WORDS in audit.membership:
        found[WORDS] = {"meaning": "a classifier of words that never saw the model; near 0.5 for a fair holdout"}
    for name, member in audit.membership.items():
        found[name]["holdout"] = member._asdict() | {"n": len(audit.holdout)}
    return found


def write(audit: Audit, out: Path, top: int) -> None:
    """Write the run folder in one move."""
    rank = {i: place for place, i in enumerate(audit.order, 1)}
    with new_folder(out) as folder:
        write_jsonl(
            folder / "scores.jsonl",
            (
                {
                    "id": pair.id,
                    "where": pair.where,
                    "copies": audit.copies[i],
                    "rank": rank[i],
                    COMBINED: float(audit.combined[i]),
                }
                | {name: float(score[i]) for name, score in audit.scores.items()}
                | {"missing": {name: why[i] for name, why in audit.missing.items() if why[i]}}
                for i, pair in enumerate(audit.pairs)
            ),
        )
        if audit.holdout:
            write_jsonl(
                folder / "holdout.jsonl",
                (
                    {"id": p.id, "where": p.where} | {name: float(s[i]) for name, s in audit.holdout_scores.items()}
                    for i, p in enumerate(audit.holdout)
                ),
            )
        write_jsonl(folder / "ranked.jsonl", audit.ranked(top))
        write_json(folder / "summary.json", summary(audit))
        write_json(folder / "run.json", audit.record)
        shown = [(audit.pairs[i].where, audit.pairs[i].question, audit.pairs[i].answer) for i in audit.order[:top]]
        ranks = {"records": audit.combined.tolist()}
        if audit.holdout:
            ranks["holdout, never seen"] = audit.holdout_scores[COMBINED].tolist()
        write_text(folder / "report.html", render_audit(audit.record, summary(audit), shown, ranks))
        write_manifest(folder)


def command(
    model: ModelOption,
    data: Annotated[list[str], typer.Option(help="Training records; repeat for several files.")],
    out: Annotated[Path, typer.Option(help="Run folder to make; must not exist.")],
    reference: Annotated[str | None, typer.Option(help="Model that was not trained on the records.")] = None,
    holdout: Annotated[str | None, typer.Option(help="Rows of the same kind that the model never saw.")] = None,
    top: Annotated[int, typer.Option(help="Most records in ranked.jsonl.", min=1)] = 100,
    measures: Annotated[
        list[str] | None,
        typer.Option(help="Measure to take and rank by; repeat for several. Default: all but gradient."),
    ] = None,
    share: Annotated[float, typer.Option(help="Share of the tokens that Min-K takes.", min=0.01, max=1)] = 0.2,
    answer_prefix: Annotated[
        int, typer.Option(help="Tokens of the answer that extraction is given, beside the question.", min=0)
    ] = 0,
    temperature: Annotated[float, typer.Option(help="Of the sampler that extraction supposes.", min=0.01)] = 1.0,
    top_k: Annotated[int, typer.Option(help="Tokens it draws from; 0: all.", min=0)] = 0,
    max_length: Annotated[int, typer.Option(help="Most tokens of a prompt with its answer.", min=2)] = 1024,
    question_column: Annotated[str | None, typer.Option(help="Column of the question, if it has another name.")] = None,
    answer_column: Annotated[str | None, typer.Option(help="Column of the answer, if it has another name.")] = None,
    skip_bad_rows: Annotated[
        bool, typer.Option(help="Leave faulty rows out and count them, instead of stopping.")
    ] = False,
    prefix_tokens: Annotated[int, typer.Option(help="Plain text: tokens of each prefix.", min=1)] = 100,
    continuation_tokens: Annotated[int, typer.Option(help="Plain text: tokens of each continuation.", min=1)] = 100,
    seed: Annotated[int, typer.Option(help="Seed of the folds of the classifier of words.", min=0, max=2**32 - 1)] = 0,
) -> None:
    """Rank the records in DATA by how well MODEL has memorised them."""
    options = dict(locals())
    reading = Reading(*(options.pop(own.name) for own in fields(Reading)))
    audit = run(**options | {"measures": listed(measures), "reading": reading})
    if audit.membership:
        found = audit.membership[COMBINED]
        beside = "" if np.isnan(found.low) else f" (95 % interval {found.low:.3f} to {found.high:.3f})"
        say(f"combined rank against the holdout: AUC {found.auc:.3f}{beside}")
    say(f"done: {out / 'report.html'}; the first {min(top, len(audit.pairs))} records are in {out / 'ranked.jsonl'}")
