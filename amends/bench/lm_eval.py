"""Run tasks of lm-evaluation-harness on any model that amends loads, its own tasks for TOFU and MUSE among them.

Needs the harness: pip install "amends[lm-eval]". Its own tasks fetch their data from the Hub; those named amends_...
read your copies and fetch nothing.
"""

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
from peft import PeftModel
from transformers import PreTrainedTokenizerBase

from amends.bench._models import write
from amends.io.atomic import check_new
from amends.io.console import say
from amends.io.errors import InputError, check_installed
from amends.io.options import ModelOption, listed
from amends.io.plain import plain
from amends.io.run import describe
from amends.lm.load import weights_sha256
from amends.lm.turns import check_models, model_for

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
    tasks: Sequence[str],
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
    tasks : list of str
        Names that the harness knows, and those of the files in `TASKS`.
    muse, tofu : path, optional
        Folder of a copy of MUSE; table of TOFU's questions.
    rows : int, default 0
        Only the first so many of each task; 0: all.
    batch_size : int, default 8
    seed : int, default 0

    Returns
    -------
    Result; with `out` also as a folder of lm_eval.json, items.jsonl, run.json and manifest.json.

    Raises
    ------
    InputError : what the user can mend, the harness missing among it; nothing is written then.
    """
    started = time.time()
    check_models({"model": model}, processing_class)
    if out is not None:
        check_new(out)
    check_installed("lm_eval", "lm-eval", "lm-eval")
    from lm_eval import simple_evaluate
    from lm_eval.models.huggingface import HFLM
    from lm_eval.tasks import TaskManager

    names = listed(tasks)
    places = {"muse": muse, "tofu": tofu}
    metadata: dict[str, Any] = {name: str(place) for name, place in places.items() if place is not None}
    with _quieter():
        ours_alone = all(name.startswith("amends_") for name in names)  # the index of all others takes seconds
        manager = TaskManager(include_path=str(TASKS), include_defaults=not ours_alone)
        if unknown := _unknown(names, manager):
            ours = ", ".join(sorted(file.stem for file in TASKS.glob("*.yaml")))
            raise InputError(f"--tasks {unknown[0]}: the harness knows no such task. Ours are {ours}.")
        loaded = model_for(model, processing_class)
        digest = weights_sha256(loaded.model)
        whole: Any = loaded.model.merge_and_unload() if isinstance(loaded.model, PeftModel) else loaded.model
        if any(name.startswith("amends_") for name in names):
            metadata["tokenizer"] = loaded.tokenizer
            manager = TaskManager(include_path=str(TASKS), include_defaults=not ours_alone, metadata=metadata)
        found = simple_evaluate(
            model=HFLM(pretrained=whole.eval(), tokenizer=loaded.tokenizer, batch_size=batch_size),
            tasks=list(names),
            task_manager=manager,
            limit=rows or None,
            bootstrap_iters=1000,
            random_seed=seed,
            numpy_random_seed=seed,
            torch_random_seed=seed,
            fewshot_random_seed=seed,
        )
    record = describe(
        command="bench lm_eval",
        config={
            "model": str(model) if isinstance(model, str | Path) else None,
            "tasks": names,
            **{name: None if place is None else str(place) for name, place in places.items()},
            "rows": rows,
            "batch_size": batch_size,
        },
        seed=seed,
        data={},
        weights={"model": digest},
        seconds={"in all": round(time.time() - started, 1)},
        stopped="all tasks done",
    )
    items = [
        {"task": task} | {name: value for name, value in _json(sample).items() if name not in ("doc", "arguments")}
        for task, samples in (found.get("samples") or {}).items()
        for sample in samples
    ]
    result = Result({name: _json(found[name]) for name in KEPT if name in found}, items, record)
    if out is not None:
        write(Path(out), "lm_eval.json", result.found, result.items, result.record)
    return result


def _unknown(names: Sequence[str], manager: Any) -> list[str]:
    return [name for name in names if not manager.match_tasks([name])]


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
    tasks: Annotated[list[str], typer.Option(help="Task of the harness, or of ours; repeatable.")],
    out: Annotated[Path, typer.Option(help="Folder to make; must not exist.")],
    muse: Annotated[Path | None, typer.Option(help="Folder of your copy of MUSE, for amends_muse_...")] = None,
    tofu: Annotated[Path | None, typer.Option(help="TOFU's questions, for amends_tofu_...")] = None,
    rows: Annotated[int, typer.Option(help="Only the first so many rows of each task; 0: all.", min=0)] = 0,
    batch_size: Annotated[int, typer.Option(help="Rows that go through the model at once.", min=1)] = 8,
    seed: Annotated[int, typer.Option(help="Seed that the harness is given.")] = 0,
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
