"""Run tasks of lm-evaluation-harness on any model that amends loads, its own tasks for TOFU and MUSE among them.

Needs the harness: pip install "amends[lm-eval]". Its own tasks fetch their data from the Hub; those named amends_...
read your copies and fetch nothing.
"""

import logging
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from amends.bench._models import write
from amends.bench._muse import NEW_TOKENS, read_muse
from amends.bench.tasks.documents import ALL_ROWS
from amends.io.atomic import check_new, sha256_json
from amends.io.bounds import check_options
from amends.io.console import say
from amends.io.errors import InputError, check_installed
from amends.io.options import ModelOption, listed
from amends.io.plain import plain
from amends.io.run import describe
from amends.io.tables import read_rows
from amends.lm.load import weights_sha256
from amends.lm.pairs import read_pairs
from amends.lm.turns import check_models, model_for
from amends.unlearn._read import about

TASKS = Path(__file__).parent / "tasks"
KEPT = ("results", "groups", "higher_is_better", "versions", "n-shot", "n-samples")
"""Of what the harness returns."""


@dataclass(frozen=True)
class Result:
    """What a run leaves in memory; its folder holds the same."""

    found: dict[str, Any]
    """What the harness returns, without samples."""
    items: list[dict[str, Any]]
    record: dict[str, Any]

    def lines(self) -> list[tuple[str, str, float, float | None]]:
        """Task, metric, value and standard error of each number."""
        listed = []
        for task, metrics in self.found["results"].items():
            for name, value in metrics.items():
                metric, _, filtered = name.partition(",")
                if filtered and not metric.endswith("_stderr") and isinstance(value, float | int):
                    error = metrics.get(f"{metric}_stderr,{filtered}")
                    listed.append((task, metric, float(value), error if isinstance(error, float) else None))
        return listed


def run(
    model: str | Path | Any,
    tasks: str | Sequence[str],
    *,
    out: str | Path | None = None,
    muse: str | Path | None = None,
    tofu: str | Path | None = None,
    rows: int = 0,
    batch_size: int = 8,
    seed: int = 0,
    processing_class: PreTrainedTokenizerBase | None = None,
) -> Result:
    """Run tasks of the harness on a model.

    Parameters
    ----------
    model : str, Path or model
        What `amends.lm.load` takes, or a model that is loaded already (with `processing_class`). An adapter is merged.
    tasks : list of str, or str
        Names that the harness knows, and those of the files in `TASKS`; * and ? stand for any letters, of tasks alone.
    muse, tofu : path, optional
        Folder of a copy of MUSE; table of TOFU's questions.
    rows : int, at least 0, default 0
        Only the first so many of each task; 0: all.
    batch_size : int, at least 1, default 8
    seed : int, at least 0, default 0

    Returns
    -------
    Result; with `out` also as a folder of lm_eval.json, items.jsonl, run.json and manifest.json.

    Raises
    ------
    InputError : what the user can mend, the harness missing among it; nothing is written then.
    """
    check_options(command, locals())
    started = time.time()
    check_models({"model": model}, processing_class)
    if out is not None:
        check_new(out)
    check_installed("lm_eval", "lm-eval", "lm-eval")
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    asked = listed(tasks)
    places = {"muse": muse, "tofu": tofu}
    metadata: dict[str, Any] = {name: str(place) for name, place in places.items() if place is not None}
    with _quieter():
        ours_alone = all(map(_is_ours, asked))  # the index of all others takes seconds
        manager = TaskManager(include_path=str(TASKS), include_defaults=not ours_alone)
        names = expanded(asked, manager)
        loaded = model_for(model, processing_class)
        digest = weights_sha256(loaded.model)
        whole: Any = loaded.model.merge_and_unload() if isinstance(loaded.model, PeftModel) else loaded.model
        lm = HFLM(pretrained=whole.eval(), tokenizer=loaded.tokenizer, batch_size=batch_size)
        ours: dict[str, Any] = {}
        if any(map(_is_ours, names)):
            metadata["tokenizer"] = loaded.tokenizer
            manager = TaskManager(include_path=str(TASKS), include_defaults=not ours_alone, metadata=metadata)
            ours = manager.load([name for name in names if _is_ours(name)])["tasks"]
        data = told_of(ours, muse, tofu, rows)
        warnings = [said for name, task in ours.items() for said in _too_long(name, task, lm, loaded.name, rows)]
        for warning in warnings:
            say(f"warning: {warning}")
        try:
            found = simple_evaluate(
                model=lm,
                tasks=[*ours.values(), *(name for name in names if not _is_ours(name))],
                task_manager=manager,
                limit=rows or None,
                bootstrap_iters=1000,
                random_seed=seed,
                numpy_random_seed=seed,
                torch_random_seed=seed,
                fewshot_random_seed=seed,
            )
        except AssertionError as error:
            if "max tokens to generate" not in str(error):
                raise
            raise InputError(
                f"--tasks {', '.join(names)}: {loaded.name} has no room for one's answers: {error}"
            ) from None
    items = [
        {"task": task} | _item(sample, lm)
        for task, samples in (found.get("samples") or {}).items()
        for sample in samples
    ]
    for task in dict.fromkeys(item["task"] for item in items if item["cut"] and item["task"] not in ours):
        cut = {item["doc_id"]: item["cut"] for item in items if item["task"] == task}
        warnings.append(_said_of(task, sum(cut.values()), len(cut), lm.max_length))
        say(f"warning: {warnings[-1]}")
    record = describe(
        command="bench lm_eval",
        config={
            "model": str(model) if isinstance(model, str | Path) else None,
            "tasks": asked,
            **{name: None if place is None else str(place) for name, place in places.items()},
            "rows": rows,
            "batch_size": batch_size,
        },
        seed=seed,
        data=data,
        weights={"model": digest},
        seconds={"in all": round(time.time() - started, 1)},
        stopped="all tasks done",
        warnings=warnings,
    )
    record["versions"]["lm_eval"] = version("lm_eval")
    result = Result({name: _json(found[name]) for name in KEPT if name in found}, items, record)
    if out is not None:
        write(Path(out), "lm_eval.json", result.found, result.items, result.record)
    return result


def expanded(asked: Sequence[str], manager: Any) -> list[str]:
    """Names of tasks, groups and tags as they stand, and instead of each pattern the tasks that it matches.

    Raises
    ------
    InputError : a name or pattern of no task.
    """
    names: list[str] = []
    for name in asked:
        there = manager.match_tasks([name])
        if not there:
            known = ", ".join(sorted(file.stem for file in TASKS.glob("*.yaml")))
            raise InputError(f"--tasks {name}: the harness knows no such task. Ours are {known}.")
        single = set(manager.all_subtasks)
        names += there if there == [name] else [task for task in there if task in single] or there
    return list(dict.fromkeys(names))


def told_of(
    tasks: Collection[str], muse: str | Path | None, tofu: str | Path | None, rows: int
) -> dict[str, dict[str, Any]]:
    """Describe what tasks of ours read, for run.json, with the digest of the rows that are asked."""
    parts = [part for part in NEW_TOKENS if any(name.startswith(f"amends_muse_{part}") for name in tasks)]
    told: dict[str, dict[str, Any]] = {}
    if parts and muse is not None:
        found = read_muse(muse, parts, ALL_ROWS)
        sets: dict[str, list[Any]] = {"verbmem": found.verbmem}
        sets |= {f"knowmem_{name}": list(questions) for name, questions in found.knowmem.items()}
        for name, about_it in found.told.items():
            if f"amends_muse_{name}" in tasks:
                some = sets[name][: rows or None]
                told[name] = about_it | {"kept": len(some), "sha256": sha256_json(some)}
    if tofu is not None and any(name.startswith("amends_tofu_") for name in tasks):
        pairs = read_pairs(read_rows(tofu))
        first = replace(pairs, kept=pairs.kept[: rows or None])
        told["tofu"] = about(str(tofu), first) | {"rows": pairs.num_rows}
    return told


def _is_ours(name: str) -> bool:
    return name.startswith("amends_")


def _too_long(name: str, task: Any, lm: Any, model: str, rows: int) -> list[str]:
    """Say, before it is asked, of how many prompts of a task the harness leaves out the beginning.

    Raises
    ------
    InputError : the model has no room for a prompt at all.
    """
    if task.get_config("num_fewshot") is None:
        task.set_config(key="num_fewshot", value=0)
    task.build_all_requests(limit=rows or None, rank=0, world_size=1)
    cut: dict[Any, bool] = {}
    for request in task.instances:
        room = _room(lm, request.args)
        if room is not None and room < 1:
            raise InputError(
                f"--tasks {name}: the context of {model}, {lm.max_length} tokens, has no room for a prompt before an "
                "answer. Leave the task out."
            )
        cut[request.doc_id] = cut.get(request.doc_id, False) or _is_cut(lm, request.args)
    return [_said_of(name, sum(cut.values()), len(cut), lm.max_length)] if any(cut.values()) else []


def _said_of(task: str, cut: int, num: int, context: int) -> str:
    return f"{task}: of {cut} of {num} prompts only the end fits the context of {context} tokens with an answer."


def _room(lm: Any, arguments: Sequence[Any]) -> int | None:
    """Tokens that a prompt may have before what is asked of the model, None where nothing is left out."""
    if len(arguments) < 2:
        return None
    prompt, then = arguments[:2]
    if isinstance(then, Mapping):
        names = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")  # as the harness reads them
        new = next((then[name] for name in names if then.get(name) is not None), lm.max_gen_toks)
        return int(lm.max_length - new)
    return int(lm.max_length + 1 - len(lm.tok_encode(prompt + then)) + len(lm.tok_encode(prompt)))


def _is_cut(lm: Any, arguments: Sequence[Any]) -> bool:
    room = _room(lm, arguments)
    return room is not None and len(lm.tok_encode(arguments[0])) > room


def _item(sample: Mapping[str, Any], lm: Any) -> dict[str, Any]:
    """One row: what the harness tells of it, with its prompt, the choices if it has some, and whether it was cut."""
    arguments = [tuple(one) for one in sample["arguments"]]
    prompts = list(dict.fromkeys(one[0] for one in arguments))
    choices = [one[1] for one in arguments if len(one) > 1 and isinstance(one[1], str)]
    told = {name: value for name, value in _json(sample).items() if name not in ("doc", "arguments")}
    about_it: dict[str, Any] = {"prompt": prompts[0] if len(prompts) == 1 else prompts}
    return told | about_it | ({"choices": choices} if choices else {}) | {"cut": any(_is_cut(lm, a) for a in arguments)}


@contextmanager
def _quieter() -> Iterator[None]:
    """Leave out the harness's remarks on what is meant so here."""
    log = logging.getLogger("lm_eval")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def _json(value: Any) -> Any:
    """Bring what the harness returns into the types that JSON has."""
    if isinstance(value, Mapping):
        return {str(name): _json(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_json(inner) for inner in value]
    if isinstance(value, np.generic):
        return value.item()
    return value if isinstance(value, str | int | float | None) else str(value)


def show_tasks(asked: bool) -> None:
    """Print the folder of our tasks and stop, if asked to."""
    if asked:
        typer.echo(TASKS)
        raise typer.Exit


def command(
    model: ModelOption,
    tasks: Annotated[list[str], typer.Option(help="Task of the harness, or of ours, or a pattern with *; repeatable.")],
    out: Annotated[Path, typer.Option(help="Folder to make; must not exist.")],
    muse: Annotated[Path | None, typer.Option(help="Folder of your copy of MUSE, for amends_muse_...")] = None,
    tofu: Annotated[Path | None, typer.Option(help="TOFU's questions, for amends_tofu_...")] = None,
    rows: Annotated[int, typer.Option(help="Only the first so many rows of each task; 0: all.", min=0)] = 0,
    batch_size: Annotated[int, typer.Option(help="Rows that go through the model at once.", min=1)] = 8,
    seed: Annotated[int, typer.Option(help="Seed that the harness is given.", min=0, max=2**32 - 1)] = 0,
    tasks_path: Annotated[
        bool,
        typer.Option(
            "--tasks-path",
            help="Print the folder of our tasks, for lm_eval --include_path.",
            callback=show_tasks,
            is_eager=True,
        ),
    ] = False,
) -> None:
    """Run TASKS of lm-evaluation-harness on MODEL."""
    result = run(model, tasks, out=out, muse=muse, tofu=tofu, rows=rows, batch_size=batch_size, seed=seed)
    for task, metric, value, error in result.lines():
        typer.echo(plain(f"{task} {metric} {value:.4f}" + ("" if error is None else f" (standard error {error:.4f})")))
    say(f"done: {out / 'lm_eval.json'}")
