"""Design the classes of a data set with a language model: classes, attributes and what to search for, to be edited.

Each list (classes, attributes, values of an attribute) is asked for, and looked through once by the same model, which
may add, merge or drop; every class with every combination of values is a subclass with a query (ADC, step 1, arXiv
2408.11338).
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from amends.curate._adc.design import Class, Design, Subclass, write_design
from amends.curate._adc.talk import ATTEMPTS, MOST_CHARACTERS, TASKS, VERSIONS, Asking, names_of
from amends.io.atomic import check_new
from amends.io.console import say
from amends.io.errors import InputError, NoResult
from amends.lm.chat import Chat, Counts, open_chat

SYNONYMS = 0.9
"""Cosine above which two names are one."""
MOST_AXES = 5


@dataclass(frozen=True)
class Designed:
    """A design, and how it came about."""

    design: Design
    """Empty after a dry run."""
    counts: Counts
    """What was asked. Answers from the cache are no calls."""
    warnings: list[str]
    estimate: dict[str, int]
    """Conversations there are, and calls and tokens they take at most."""


def run(
    domain: str,
    llm: str | Chat | None = None,
    *,
    out: str | Path | None = None,
    classes: Sequence[str] = (),
    examples: Sequence[str] = (),
    num_classes: int = 10,
    num_axes: int = 2,
    num_values: int = 6,
    most_subclasses: int = 1000,
    query: str = "{values} {class}",
    embedder: str | None = None,
    cache: str | Path | None = None,
    most_calls: int | None = None,
    max_new_tokens: int = 512,
    temperature: float = 0,
    dry_run: bool = False,
    seed: int = 0,
) -> Designed:
    """Have a language model design a data set.

    Parameters
    ----------
    domain : str
        A sentence: what is to be told apart.
    llm : str or Chat
        What `amends.lm.chat.open_chat` takes, or one that is open; then `cache` and `most_calls` are its own. Not
        needed for a dry run, nor for given classes without axes.
    out : path, optional
        YAML file to write.
    query : str
        What is searched for; {values} and {class} are replaced. {class} must be in it.

    The others are as on the command line.

    Raises
    ------
    InputError : what the user can mend. If `most_calls` is reached, all answers so far are in the cache.
    NoResult : the model gave no readable list of classes, or none of attributes: nothing is made up in its place.
    """
    given = names_of(classes, "--classes") if classes else []
    _check(domain, given, num_axes, query, most_subclasses)
    if out is not None:
        check_new(out)
    about: dict[str, Any] = {"domain": domain.strip()} | ({"examples": list(examples)} if examples else {})
    would = _estimate(about, len(given), num_classes, num_axes, num_values, max_new_tokens)
    if dry_run:
        return Designed(Design(domain.strip(), ()), Counts(), [], would)
    if would["conversations"] and llm is None:
        raise InputError("--llm: name the model that designs, or take --dry-run, or --classes with --num-axes 0.")
    chat = llm if isinstance(llm, Chat) else None
    if isinstance(llm, str) and would["conversations"]:
        chat = _open(llm, out, cache, most_calls)
    asking = Asking(chat, about, {"max_new_tokens": max_new_tokens, "temperature": temperature, "seed": seed})
    names = given or asking.reviewed("classes", asking.wanted("classes", num_classes), least=2)
    asking.about["classes"] = names
    axes = asking.axes(num_axes, num_values) if num_axes else {}
    if embedder:
        names, axes = _without_synonyms(embedder, names, bool(given), axes, asking)
    rng = np.random.default_rng(seed)
    made, left_out = _subclasses(names, axes, query, most_subclasses, rng)
    if left_out:
        asking.warnings.append(
            f"{left_out} combinations of class and values are not in the design: {most_subclasses} subclasses at most "
            "(--most-subclasses) were drawn, and none whose query another one has."
        )
    counts = asking.counts
    origin = {
        "made_by": "amends curate adc_design",
        "llm": chat.model.name if chat else None,
        "identity": chat.model.identity if chat else None,
        "prompts": VERSIONS,
        "seed": seed,
        "temperature": float(temperature),
        "conversations": counts.asked,
        "unparseable": counts.unparseable,
        "failed": counts.failed,
        "merged": asking.merged,
        "left_out": left_out,
        "warnings": asking.warnings,
    }
    design = Design(domain.strip(), made, {axis: tuple(values) for axis, values in axes.items()}, origin)
    for warning in asking.warnings:
        say(f"warning: {warning}")
    if out is not None:
        write_design(out, design)
    return Designed(design, counts, asking.warnings, would)


def _check(domain: str, classes: Sequence[str], num_axes: int, query: str, most_subclasses: int) -> None:
    if not domain.strip():
        raise InputError("DOMAIN is empty. Say in a sentence what is to be told apart.")
    if "{class}" not in query or query.replace("{class}", "").replace("{values}", "").count("{"):
        raise InputError(f"--query {query}: must hold {{class}}, and may hold {{values}}; no other braces.")
    if num_axes and "{values}" not in query:
        raise InputError(f"--query {query}: has no {{values}}, so all subclasses of a class would be one. Put it in.")
    if not 0 <= num_axes <= MOST_AXES:
        raise InputError(f"--num-axes {num_axes}: expected 0 to {MOST_AXES}.")
    if len(classes) == 1:
        raise InputError(f"--classes: only {classes[0]}. Give two or more, or leave them to the model.")
    if most_subclasses < max(len(classes), 2):
        raise InputError(f"--most-subclasses {most_subclasses}: each class needs one. Raise it.")


def _open(llm: str, out: str | Path | None, cache: str | Path | None, most_calls: int | None) -> Chat:
    if cache is None and out is not None:
        cache = Path(f"{Path(out)}.answers.sqlite")
        cache.parent.mkdir(parents=True, exist_ok=True)
    return open_chat(llm, cache=cache, most_calls=most_calls)


def _estimate(
    about: Mapping[str, Any], num_given: int, num_classes: int, num_axes: int, num_values: int, max_new_tokens: int
) -> dict[str, int]:
    """Count conversations, and calls and tokens (characters / 4) if every answer takes all attempts."""
    lists = (0 if num_given else 1) + num_axes  # each asked for, and looked through
    conversations = 2 * lists + (1 if num_axes else 0)
    read = len(json.dumps(about)) + max(map(len, TASKS.values())) + MOST_CHARACTERS * (num_classes + num_values)
    calls = ATTEMPTS * conversations
    return {
        "conversations": conversations,
        "calls_at_most": calls,
        "tokens_at_most": calls * (read // 4 + max_new_tokens),
    }


# What is made of it -------------------------------------------------------------------------------------------------


def _without_synonyms(
    embedder: str, names: list[str], are_given: bool, axes: dict[str, list[str]], asking: Asking
) -> tuple[list[str], dict[str, list[str]]]:
    """Merge names whose embeddings are nearly one; classes that the user gave are only told of."""
    from amends.lm.encoders import embed, load_encoder

    encoder = load_encoder(embedder, "embedding")
    found: dict[str, list[str]] = {}
    for what, entries in {"classes": names, **axes}.items():
        unit_ND = embed(encoder, entries).numpy()
        kept: list[int] = []
        for i, entry in enumerate(entries):
            near = max(((float(unit_ND[i] @ unit_ND[j]), -j) for j in kept), default=(-1.0, 0))
            if near[0] <= SYNONYMS:
                kept.append(i)
                continue
            other = entries[-near[1]]
            if what == "classes" and are_given:
                kept.append(i)
                asking.warnings.append(
                    f'The classes "{other}" and "{entry}" have nearly one meaning (cosine {near[0]:.2f}).'
                )
                continue
            asking.merged.append({"list": what, "kept": other, "merged": entry, "by": f"cosine {near[0]:.2f}"})
            say(f'{what}: "{entry}" is merged into "{other}" (cosine {near[0]:.2f})')
        found[what] = [entries[i] for i in kept]
    names = found.pop("classes")
    if len(names) < 2:
        raise NoResult(f"--embedder {embedder}: all classes have nearly one meaning. Leave it out, or give --classes.")
    return names, found


def _subclasses(
    names: Sequence[str], axes: Mapping[str, Sequence[str]], query: str, most: int, rng: np.random.Generator
) -> tuple[tuple[Class, ...], int]:
    """Make the subclasses: all combinations, or as many of them for each class, drawn without one twice."""
    if most < len(names):
        raise InputError(f"--most-subclasses {most}: each of the {len(names)} classes needs one. Raise it.")
    sizes = [len(values) for values in axes.values()]
    total, share = math.prod(sizes), most // len(names)
    made, queries = [], set[str]()
    for name in names:
        drawn = range(total) if total <= share else sorted(rng.choice(total, share, replace=False, shuffle=False))
        subs = []
        for number in drawn:
            place = np.unravel_index(number, sizes) if sizes else ()
            chosen = {axis: values[i] for (axis, values), i in zip(axes.items(), place, strict=True)}
            words = " ".join(chosen.values())
            text = " ".join(query.replace("{values}", words).replace("{class}", name).split())
            if text.casefold() not in queries:
                queries.add(text.casefold())
                subs.append(Subclass(", ".join(chosen.values()) or name, text, chosen))
        made.append(Class(name, tuple(subs)))
    return tuple(made), total * len(names) - len(queries)


def command(
    domain: Annotated[str, typer.Argument(help="What is to be told apart, in a sentence.")],
    out: Annotated[Path, typer.Option(help="YAML file to write; must not exist.")],
    llm: Annotated[
        str | None, typer.Option(help="Model that designs: a name that amends loads, or http://HOST:PORT/v1#MODEL.")
    ] = None,
    classes: Annotated[
        list[str] | None, typer.Option(help="A class, if you know them; repeat it. The model is then not asked.")
    ] = None,
    example: Annotated[
        list[str] | None, typer.Option(help="A sample of the domain, shown to the model; repeat it.")
    ] = None,
    num_classes: Annotated[int, typer.Option(help="Classes to ask for, about.", min=2)] = 10,
    num_axes: Annotated[int, typer.Option(help="Attributes whose values are combined.", min=0, max=MOST_AXES)] = 2,
    num_values: Annotated[int, typer.Option(help="Values of each attribute to ask for, about.", min=1)] = 6,
    most_subclasses: Annotated[int, typer.Option(help="Subclasses at most; of more some are drawn.", min=2)] = 1000,
    query: Annotated[str, typer.Option(help="What is searched for; must hold {class}.")] = "{values} {class}",
    embedder: Annotated[
        str | None, typer.Option(help="Sentence encoder: names with a cosine over 0.9 are merged.")
    ] = None,
    cache: Annotated[Path | None, typer.Option(help="File of answers; OUT.answers.sqlite if none is given.")] = None,
    most_calls: Annotated[int | None, typer.Option(help="New calls of the model at most.", min=0)] = None,
    max_new_tokens: Annotated[int, typer.Option(help="Of an answer of the model.", min=1)] = 512,
    temperature: Annotated[float, typer.Option(help="0 takes the likeliest token.", min=0)] = 0,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Ask and write nothing; say what calls and tokens it would take.")
    ] = False,
    seed: Annotated[
        int,
        typer.Option(
            help="Of the subclasses that are drawn, and of answers above temperature 0.", min=0, max=2**32 - 1
        ),
    ] = 0,
) -> None:
    """Design a data set for DOMAIN."""
    found = run(
        domain,
        llm,
        out=out,
        classes=classes or (),
        examples=example or (),
        num_classes=num_classes,
        num_axes=num_axes,
        num_values=num_values,
        most_subclasses=most_subclasses,
        query=query,
        embedder=embedder,
        cache=cache,
        most_calls=most_calls,
        max_new_tokens=max_new_tokens,
        temperature=temperature,
        dry_run=dry_run,
        seed=seed,
    )
    if dry_run:
        for name, value in found.estimate.items():
            say(f"{name.replace('_', ' ')}: {value:,}")
        return
    counts = {name: value for name, value in asdict(found.counts).items() if name in ("asked", "calls", "unparseable")}
    say(", ".join(f"{value} {name}" for name, value in counts.items()))
    say(f"{len(found.design.classes)} classes, {len(found.design.queries())} subclasses")
    say(f"done: {out}; read it and change what is wrong before you collect")
