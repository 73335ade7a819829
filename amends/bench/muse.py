"""MUSE: verbatim and knowledge memorisation, privacy leakage and kept knowledge, on your copy of its data.

Definitions are those of Shi et al. 2024 (arXiv 2407.06460) and of its code. What differs here is said where it happens.

Shape suffixes: T tokens of a text.
"""

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from transformers import PreTrainedTokenizerBase

from amends.bench._models import Answers, check_room, gaps, items_of, record_of, table, write
from amends.bench._muse import (
    KNOWMEM_TOKENS,
    NEW_TOKENS,
    PARTS,
    VERBMEM_TOKENS,
    Muse,
    Passage,
    Question,
    Text,
    first_tokens,
    read_muse,
    rouge_f1,
    until_stop,
)
from amends.evaluation.evaluate import likelihoods
from amends.evaluation.intervals import field
from amends.evaluation.memorised import PRIVACY_NAMES, answer_scores, summarise_privacy
from amends.evaluation.summary import Mean, summarise_mean
from amends.io.atomic import check_new
from amends.io.bounds import check_options
from amends.io.console import say
from amends.io.options import ModelOption, listed
from amends.io.progress import progress
from amends.lm.generate import generate
from amends.lm.load import Loaded, weights_sha256
from amends.lm.logprobs import PackedRow
from amends.lm.pairs import encode
from amends.lm.rows import context_limit
from amends.lm.templates import turn_end
from amends.lm.turns import check_models, measure_each

TOKENS_AT_ONCE = 16384  # of prompts and answers that are generated together
_SAID = "a generated text, and an expected one with words to find in it"
MEANS = {
    "verbmem": Mean(
        "verbmem",
        field("rouge_l"),
        "lower",
        f"ROUGE-L F1 of {VERBMEM_TOKENS} tokens after a passage's beginning, against how it goes on; "
        "lower: less known word for word.",
        _SAID,
    ),
    "knowmem_forget": Mean(
        "knowmem_forget",
        field("rouge_l"),
        "lower",
        "ROUGE-L F1 of answers to questions about what is to be forgotten, after examples; lower: less known.",
        _SAID,
    ),
    "knowmem_retain": Mean(
        "knowmem_retain",
        field("rouge_l"),
        "higher",
        "ROUGE-L F1 of answers to questions about what is to be kept, after examples; higher: less harm.",
        _SAID,
    ),
}
NO_REFERENCE = "privleak_no_reference"
PRIVACY = ("mia_auc_min_k_40", "privleak", NO_REFERENCE)
NAMES = (*MEANS, *PRIVACY)
SHOWN = {"verbmem": ["verbmem"], "knowmem": ["knowmem_forget", "knowmem_retain"], "privleak": list(PRIVACY)}
"""What each part measures."""


@dataclass(frozen=True)
class Result:
    """What a measurement leaves in memory; its folder holds the same."""

    summaries: dict[str, dict[str, dict[str, Any]]]
    """Role ("model", "before", "reference") to measure to value, interval, meaning, or why it is missing."""
    items: list[dict[str, Any]]
    record: dict[str, Any]

    def __getitem__(self, name: str) -> float | None:
        """Find a measure of the model."""
        value: float | None = self.summaries["model"][name]["value"]
        return value


def run(
    model: str | Path | Any,
    data: str | Path,
    *,
    out: str | Path | None = None,
    before: str | Path | Any = None,
    reference: str | Path | Any = None,
    parts: Sequence[str] = PARTS,
    rows: int = 100,
    max_length: int = 2048,
    seed: int = 0,
    processing_class: PreTrainedTokenizerBase | None = None,
) -> Result:
    """Measure a model on a copy of MUSE.

    Parameters
    ----------
    model, before, reference : str, Path or model
        What `amends.lm.load` takes, read in turn, or models that are loaded already (with `processing_class`). The
        reference was retrained without the texts to forget.
    data : path
        Folder of the copy, in either layout (`amends.bench._muse`).
    parts : list of str, or str, default all
        Of "verbmem", "knowmem", "privleak".
    rows : int, at least 1, default 100
        Most rows of each split, evenly spread.
    max_length : int, at least 2, default 2048
        Most tokens that go through a model at once; less where its context is shorter.
    seed : int, default 0
        Of the bootstrap; nothing else is drawn.

    Returns
    -------
    Result; with `out` also as a folder of muse.json, items.jsonl, run.json and manifest.json.

    Raises
    ------
    InputError : what the user can mend; nothing is written then.
    """
    check_options(command, locals())
    started = time.time()
    parts = listed(parts)
    models = {"model": model, "before": before, "reference": reference}
    check_models(models, processing_class)
    if out is not None:
        check_new(out)
    muse = read_muse(data, parts, rows)
    check_room(models, max_length, {part: count for part, count in NEW_TOKENS.items() if part in parts})
    answers = measure_each(models, lambda role, loaded: ask(loaded, muse, role, max_length), processing_class)
    others = answers["reference"].items if "reference" in answers else None
    names = [name for part in PARTS if part in parts for name in SHOWN[part]]
    summaries = {role: summarise(said.items, others, names, seed) for role, said in answers.items()}
    config = {"data": str(data), "parts": parts, "rows": rows, "max_length": max_length}
    record = record_of("bench muse", models, answers, config, muse.told, seed, started)
    result = Result(summaries, items_of(answers, "item_set"), record)
    if out is not None:
        write(Path(out), "muse.json", summaries, result.items, record)
    return result


def ask(loaded: Loaded, muse: Muse, role: str, max_length: int) -> Answers:
    """Ask one model all of it."""
    limit = context_limit(loaded.model, max_length)
    warnings: list[str] = []
    items: dict[str, list[dict[str, Any]]] = {}
    if muse.verbmem:
        expected = [first_tokens(loaded.tokenizer, p.continuation, VERBMEM_TOKENS) for p in muse.verbmem]
        items["verbmem"] = continuations(
            loaded, muse.verbmem, expected, VERBMEM_TOKENS, limit, warnings, f"{role}: passages"
        )
    for name, questions in muse.knowmem.items():
        label = f"{role}: questions to {name}"
        answers = [q.answer for q in questions]
        items[f"knowmem_{name}"] = continuations(loaded, questions, answers, KNOWMEM_TOKENS, limit, warnings, label)
    if muse.privleak:
        items |= memberships(loaded, muse.privleak, limit, f"{role}: texts")
    return Answers(weights_sha256(loaded.model), items, warnings)


def continuations(
    loaded: Loaded,
    asked: Sequence[Passage | Question],
    expected: Sequence[str],
    num_tokens: int,
    limit: int,
    warnings: list[str],
    label: str,
) -> list[dict[str, Any]]:
    """Let the model go on from each prompt, greedily, and compare with what is expected: ROUGE-L F1 without stemmer.

    Of a prompt that does not fit the context with the new tokens, the end is kept, the item says so ("cut"), and it is
    counted in `warnings`. Where nothing expected is a word, ROUGE is missing.
    """
    room = limit - num_tokens
    assert room > 0  # see check_room
    prompts = [encode(loaded.tokenizer, one.prompt, [""])[0].prompt for one in asked]
    cut = [len(prompt) > room for prompt in prompts]
    if any(cut):
        warnings.append(f"of {sum(cut)} of {len(cut)} {label.partition(': ')[2]} only the last {room} tokens fit.")
    prompts = [prompt[-room:] for prompt in prompts]
    texts = generate(
        loaded.model,
        loaded.tokenizer,
        prompts,
        stop_ids=turn_end(loaded.tokenizer),
        max_new_tokens=num_tokens,
        batch_size=max(1, min(64, TOKENS_AT_ONCE // (max(map(len, prompts)) + num_tokens))),
        strip=False,
        label=label,
    )
    found = []
    for one, is_cut, right, text in zip(asked, cut, expected, texts, strict=True):
        said = until_stop(text) if isinstance(one, Question) else text
        score = rouge_f1(right, said)
        item = {"id": one.id, "prompt": one.prompt, "cut": is_cut, "expected": right, "generated": said}
        found.append(item | {"rouge_l": None if math.isnan(score) else score})
    return found


def memberships(
    loaded: Loaded, texts: Mapping[str, Sequence[Text]], limit: int, label: str
) -> dict[str, list[dict[str, Any]]]:
    """Score how little each text looks like training data, from every token but its first.

    A text longer than the limit goes through in pieces that overlap by one token, so that each token is predicted once;
    MUSE puts it whole through a model whose context is long enough.
    """
    pieces = {
        (name, text.id): pieces_of(loaded.tokenizer, text.text, limit) for name, some in texts.items() for text in some
    }
    rows = [piece for some in pieces.values() for piece in some]
    with progress(label, len(rows)) as advance:
        found = likelihoods(loaded.model, rows, loaded.tokenizer.pad_token_id, advance, tokens=True)
    numbers = iter(found)
    items: dict[str, list[dict[str, Any]]] = {name: [] for name in texts}
    for name, some in texts.items():
        for text in some:
            parts = [next(numbers).tokens_T4 for _ in pieces[name, text.id]]
            scores = answer_scores(np.concatenate(parts), text.text) if parts else {}
            items[name].append({"id": text.id, "tokens": sum(map(len, parts)), **scores})
    return items


def pieces_of(tokenizer: PreTrainedTokenizerBase, text: str, limit: int) -> list[PackedRow]:
    """Cut a text into rows of at most `limit` tokens, the first of which is given; none of a text of one token."""
    ids = encode(tokenizer, text, [""])[0].prompt
    return [
        PackedRow(ids[start : start + 1], [ids[start + 1 : start + limit]])
        for start in range(0, len(ids) - 1, limit - 1)
    ]


def summarise(
    items: Mapping[str, Sequence[Mapping[str, Any]]],
    reference: Mapping[str, Sequence[Mapping[str, Any]]] | None,
    names: Sequence[str] = NAMES,
    seed: int = 0,
) -> dict[str, dict[str, Any]]:
    """Summarise what a model said: of each measure its value, 95 % bootstrap interval over rows, and meaning.

    Parameters
    ----------
    items, reference : dict
        Sets of items of the model and, if there is one, of a model retrained without the texts to forget.
    names : list of str, default all
        Of `NAMES`, in the order that is wanted.
    seed : int, default 0
        Of the bootstrap; each measure has its own stream.
    """
    streams = np.random.SeedSequence(seed).spawn(len(NAMES) + len(PRIVACY_NAMES))
    found = {
        name: summarise_mean(metric, items, np.random.default_rng(stream))
        for (name, metric), stream in zip(MEANS.items(), streams, strict=False)
    }

    def privacy(other: Mapping[str, Sequence[Mapping[str, Any]]] | None) -> dict[str, dict[str, Any]]:
        rngs = zip(PRIVACY_NAMES, streams[len(NAMES) :], strict=True)
        return summarise_privacy(items, other, {name: np.random.default_rng(stream) for name, stream in rngs})

    alone, beside = privacy(None), privacy(items if reference is None else reference)
    found["mia_auc_min_k_40"], found[NO_REFERENCE] = alone["mia_auc_min_k_40"], alone["privleak"]
    missing = "There is no model retrained without the texts to forget, to compare with (--reference)."
    nothing = {"value": None, "low": None, "high": None, "missing": missing}
    found["privleak"] = beside["privleak"] | ({} if reference is not None else nothing)
    return {name: found[name] for name in names}


def command(
    model: ModelOption,
    data: Annotated[Path, typer.Option(help="Folder of your copy of MUSE-News or MUSE-Books.")],
    out: Annotated[Path, typer.Option(help="Folder to make; must not exist.")],
    before: Annotated[str | None, typer.Option(help="The model before it forgot, to stand beside.")] = None,
    reference: Annotated[str | None, typer.Option(help="Model retrained without the texts to forget.")] = None,
    parts: Annotated[
        list[str] | None, typer.Option(help=f"Parts to measure, of: {', '.join(PARTS)}; default: all; repeatable.")
    ] = None,
    rows: Annotated[int, typer.Option(help="Most rows of each split, evenly spread.", min=1)] = 100,
    max_length: Annotated[int, typer.Option(help="Most tokens that go through a model at once.", min=2)] = 2048,
    seed: Annotated[int, typer.Option(help="Seed of the bootstrap.", min=0, max=2**32 - 1)] = 0,
) -> None:
    """Measure MODEL on the copy of MUSE in DATA."""
    names = listed(parts or PARTS)
    result = run(
        model,
        data,
        out=out,
        before=before,
        reference=reference,
        parts=names,
        rows=rows,
        max_length=max_length,
        seed=seed,
    )
    typer.echo(table(result.summaries))
    for gap in gaps(result.summaries):
        typer.echo(gap)
    say(f"done: {out / 'muse.json'}")
