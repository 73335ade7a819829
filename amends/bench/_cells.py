"""One cell of the table: a method forgets one split with one seed; and the search for its settings before it."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, fields
from functools import cached_property, partial
from importlib import import_module
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import torch

from amends.bench._entries import RETAIN, Entry, Settings, options
from amends.bench._world import Split, World
from amends.evaluation.evaluate import answers, evaluate, spread, with_reference
from amends.evaluation.metrics import rouge_l_recall
from amends.evaluation.refusals import refusals
from amends.io.atomic import lock, write_json
from amends.io.console import say
from amends.io.errors import Held, InputError, NoResult
from amends.io.run import versions, write_jsonl
from amends.io.tables import read_json, rows_of
from amends.lm.config import count_layers, layer_numbers
from amends.lm.load import load, precision, weights_sha256
from amends.lm.pairs import read_pairs
from amends.unlearn._compare import check_evaluation, suite_of
from amends.unlearn._ledger import read_ledger
from amends.unlearn._read import read_asked, read_request
from amends.unlearn._request import Request
from amends.unlearn._run import Result
from amends.verbs import teach
from amends.verbs._advice import ADVICE, without

ROLES = ("reference", "before")
WAIT_SECONDS = 5
SAVE_STEPS = 100
"""Steps between checkpoints where a model is taught: all of TOFU takes hours on a processor."""
IN_A_RUN, HERE = " rows of --retain-eval are among those of --retain,", " questions to keep are among the rows to keep,"
"""Words of a run's warning, and what is said here, where there are no such options."""


@dataclass(frozen=True)
class Plan:
    """What all cells have in common."""

    data: str
    model: str | None
    taught: str | None
    """Model that was taught everything; None to teach `model`."""
    references: dict[str, str]
    """By split, models that were taught all but what it forgets; those that are missing are taught."""
    teach_epochs: float = 5
    teach_rate: float = 2e-3
    lora_rank: int = 16
    rates: tuple[float, ...] = (2e-4, 5e-4, 1e-3)
    """Learning rates that are searched."""
    epochs: float = 5
    """Passes over the forget data of a searched cell and of each trial."""
    layers: str | None = None
    """Layers that a searched cell trains, where the method does not name its own."""
    eval_rows: int = 100


@dataclass(frozen=True)
class Cell:
    """A place in the table."""

    entry: Entry
    split: str
    settings: Settings
    seed: int

    def file(self, out: Path) -> Path:
        """Where it is kept."""
        return out / "cells" / self.split / self.settings / f"{self.entry}-{self.seed}.json"

    def __str__(self) -> str:
        return f"{self.entry}, {self.split}, {self.settings}, seed {self.seed}"


class Bench:
    """The models and files that cells are made from, in a folder; each is made when it is first needed."""

    def __init__(self, plan: Plan, world: World, out: Path) -> None:
        self.plan, self.world, self.out = plan, world, out

    @cached_property
    def taught(self) -> str:
        """Path of the model that was taught everything."""
        return self.plan.taught or self._teach("taught", self.world.taught)

    def reference(self, split: Split) -> str:
        """Path of the model that was taught all but what a split forgets."""
        return self.plan.references.get(split.name) or self._teach(f"reference-{split.name}", split.retain)

    def _teach(self, name: str, rows: list[dict[str, Any]]) -> str:
        folder = self.out / "models" / name
        with missing(folder) as to_make:
            if to_make:
                assert self.plan.model is not None  # checked before the first cell
                told = [{column: row[column] for column in ("question", "answer")} for row in rows]
                teach.command(
                    [whole_path(self._rows(name, told))],
                    folder,
                    whole_path(self.plan.model),
                    epochs=self.plan.teach_epochs,
                    learning_rate=self.plan.teach_rate,
                    lora_rank=self.plan.lora_rank,
                    save_steps=SAVE_STEPS,
                )
        return str(folder)

    @property
    def model_to_forget(self) -> str:
        """Model that was taught everything, or the one that it is to be made from."""
        made = self.out / "models" / "taught"
        model = self.plan.taught or (str(made) if made.exists() else self.plan.model)
        assert model is not None  # as above
        return model

    @cached_property
    def num_layers(self) -> int:
        """Layers of the model that is to forget."""
        return count_layers(self.model_to_forget)

    def own_layers(self, entry: Entry) -> str | None:
        """Layers that a method trains whatever the plan says."""
        layers: str | None = signature(self._method(entry)).parameters["layers"].default
        return layers

    def unfit(self, entry: Entry) -> str | None:
        """Say why a method cannot run on the model."""
        layers = self.own_layers(entry)
        if layers is None or layer_numbers(layers)[-1] < self.num_layers:
            return None
        return f"it trains layers {layers}; those of the model are 0 to {self.num_layers - 1}"

    def _rows(self, name: str, rows: list[dict[str, Any]]) -> str:
        file = self.out / "data" / f"{name}.jsonl"
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            write_jsonl(file, rows)
        return str(file)

    def run(self, cell: Cell) -> dict[str, Any]:
        """Make a cell: search its settings if they are not given, forget, evaluate.

        Returns
        -------
        dict : what stands in the cell's file. "failed" is the reason where training broke down, or where the method
            cannot work with this model or these rows, and null otherwise.
        """
        split = self.world.splits[cell.split]
        record = {
            "entry": str(cell.entry),
            "split": cell.split,
            "settings": cell.settings,
            "seed": cell.seed,
            "rows": len(split.forget),
        }
        if unfit := self.unfit(cell.entry):
            say(f"came to nothing: {unfit}")
            return record | {"failed": unfit}
        own: dict[str, Any] = {}
        if cell.settings == "searched":
            trials = self.search(cell.entry, split)
            own = {"learning_rate": best(trials), **self._budget(cell.entry)}
            record["trials"] = trials
        self.compared_with(split)
        folder = self.evaluation(split.name, "reference").parent
        asked = self._asked(split) | {"evaluations": folder}  # the reference is not asked again, so not even read
        started = time.time(), time.process_time()
        try:
            result = self._forget(cell.entry, cell.settings, split, cell.seed, own | asked)
        except NoResult as error:
            say(f"came to nothing: {error}")
            return record | {"failed": str(error)}
        return record | {
            "failed": None,
            "options": {k: v for k, v in (options(cell.entry, cell.settings) | own).items() if v is not None},
            "summary": with_reference(result.evaluations["after"], read_json(folder / "reference.json"))["summary"],
            "steps": len(result.history),
            "stopped": result.stopped,
            "warnings": [text.replace(IN_A_RUN, HERE) for text in result.warnings],
            "weights": weights_sha256(result.model),
            "seconds": round(time.time() - started[0], 1),
            "cpu_seconds": round(time.process_time() - started[1], 1),
            "versions": versions(),
            "precision": precision(),
        }

    def search(self, entry: Entry, split: Split) -> list[dict[str, Any]]:
        """Try each rate on the tuning request of a split; trials that are there are not made again.

        Those that another process makes, for a cell of another seed, are waited for.

        Returns
        -------
        list of dict : learning_rate, forget_rouge_l, retain_rouge_l and distance of each; see `distance`.
        """
        tuning = split.tuning()
        level = self.compared_with(split)["reference"]["forget_rouge_l"]["value"]
        files = {rate: self.out / "search" / split.name / f"{entry}-{rate:g}.json" for rate in self.plan.rates}

        def make(rate: float) -> None:
            with missing(files[rate]) as to_make:
                if to_make:
                    say(f"searching: {entry}, {split.name}, rate {rate:g}")
                    write_json(files[rate], self._try(entry, tuning, rate, level))

        waiting_for_others(partial(make, rate) for rate in files)
        return [read_json(file) for file in files.values()]

    def _try(self, entry: Entry, tuning: Split, rate: float, level: float) -> dict[str, Any]:
        own = {"learning_rate": rate, "eval_rows": 0, **self._budget(entry)}
        forget, asked = (read_pairs(rows_of(rows)).kept for rows in (tuning.forget, tuning.asked))
        pairs = forget + spread(asked, self.plan.eval_rows)
        try:
            result = self._forget(entry, "searched", tuning, 0, own)
            # No more than the distance needs: a trial is judged by what the model says.
            said = answers(result.model, result.tokenizer, pairs, label=f"{entry}: answering")
        except NoResult as error:  # the training diverged, or what it left gives no numbers
            return {"learning_rate": rate, "failed": str(error), "distance": None}
        recall = rouge_l_recall(said, [pair.answer for pair in pairs])
        forgotten, kept = float(recall[: len(forget)].mean()), float(recall[len(forget) :].mean())
        return {
            "learning_rate": rate,
            "failed": None,
            "forget_rouge_l": forgotten,
            "retain_rouge_l": kept,
            "distance": distance(forgotten, kept, level),
            "steps": len(result.history),
        }

    def _budget(self, entry: Entry) -> dict[str, Any]:
        """Give the steps and layers of a searched cell, the same for all methods."""
        return {"epochs": self.plan.epochs, "layers": self.own_layers(entry) or self.plan.layers}

    def _method(self, entry: Entry) -> Callable[..., Result]:
        run: Callable[..., Result] = import_module(f"amends.unlearn.{entry.method}").run
        return run

    def _forget(self, entry: Entry, settings: Settings, split: Split, seed: int, given: dict[str, Any]) -> Result:
        if entry.keep == RETAIN:
            given = given | {"retain": self._rows(f"{split.name}-keep", split.keep)}
        file = self._rows(f"{split.name}-forget", split.forget)
        given = options(entry, settings) | given
        try:
            with without(*ADVICE):
                return self._method(entry)(self.taught, file, seed=seed, **given)
        except (Held, NoResult):
            raise
        except InputError as error:
            # What is no fault of the method's stops the bench, and is not kept as if it were the method's result.
            self._check_without_method(file, given)
            raise NoResult(str(error)) from error

    def _check_without_method(self, forget: str, given: dict[str, Any]) -> None:
        """Check that model and rows of a cell can be read, whatever the method makes of them.

        Raises
        ------
        InputError : what is wrong: a model that was removed meanwhile, say.
        """
        names = {field.name for field in fields(Request)}
        request = Request(forget=forget, **{name: value for name, value in given.items() if name in names})
        read_ledger(self.taught)
        check_evaluation(request)
        read_request(request, load(self.taught))

    def _asked(self, split: Split) -> dict[str, Any]:
        """Options for what every model of a split is asked."""
        asked = self._rows(f"{split.name}-asked", spread(split.asked, self.plan.eval_rows))
        sets = {name: self._rows(name, rows) for name, rows in self.world.questions.items()}
        return {"retain_eval": asked, "eval_rows": self.plan.eval_rows, **sets}

    def evaluation(self, split: str, role: str) -> Path:
        """Where it is kept what a model of a split answered: that before, or the reference."""
        return self.out / "evaluations" / split / f"{role}.json"

    def compared_with(self, split: Split) -> dict[str, dict[str, Any]]:
        """Summaries of the model before and of the reference, which are evaluated once for all cells of a split."""
        found = {role: self._evaluated(split, role) for role in ROLES}
        return {role: with_reference(e, found["reference"])["summary"] for role, e in found.items()}

    def _evaluated(self, split: Split, role: str) -> dict[str, Any]:
        file = self.evaluation(split.name, role)
        with missing(file) as to_make:
            if to_make:
                model = self.reference(split) if role == "reference" else self.taught
                say(f"evaluating {role} of {split.name}")
                request = Request(forget=self._rows(f"{split.name}-forget", split.forget), **self._asked(split))
                loaded = load(model)
                suite = suite_of(request, read_asked(request, loaded), refusals(), loaded.tokenizer)
                write_json(file, evaluate(loaded.model, loaded.tokenizer, suite, role=role, name=loaded.name))
            return read_json(file)

    def prepare(self, splits: Iterable[Split]) -> None:
        """Teach and evaluate what all cells of some splits need; what another process is at is waited for."""
        waiting_for_others(partial(self._evaluated, split, role) for split in splits for role in ROLES)


@contextmanager
def missing(path: Path) -> Iterator[bool]:
    """Hold a place that is to be filled, and say whether it still is to be; one that is filled is not held.

    Raises
    ------
    Held : another process is filling it.
    """
    if path.exists():
        yield False
        return
    with lock(path):
        yield not path.exists()


def waiting_for_others(jobs: Iterable[Callable[[], Any]]) -> None:
    """Do all jobs; one that another process is at comes last, and finds it done."""
    left, told = list(jobs), ""
    while left:
        held = ""
        for job in list(left):
            try:
                job()
                left.remove(job)
            except Held as error:
                held = str(error)
        if held:
            if held != told:
                say(f"waiting: {held}")
                told = held
            time.sleep(WAIT_SECONDS)


def whole_path(source: str) -> str:
    """Name a place the same way from every folder, as a training that goes on from a checkpoint asks; else as it is."""
    return str(Path(source).resolve()) if Path(source).exists() else source


def distance(forget: float, retain: float, level: float) -> float:
    """How far a model is from one that never saw the data: 0 where it keeps all and knows no more than that one.

    Parameters
    ----------
    forget, retain : float
        Mean ROUGE-L recall on the rows to forget and on those to keep, 0 to 1.
    level : float
        ROUGE-L recall of a retrained model on rows it never saw: below it nothing is gained.
    """
    return math.hypot(max(0.0, forget - level), 1 - retain)


def best(trials: list[dict[str, Any]]) -> float:
    """Rate of the trial with the least distance; the lower one of equals; the lowest if all failed."""
    ranked = sorted(trials, key=lambda t: (np.inf if t["distance"] is None else t["distance"], t["learning_rate"]))
    return float(ranked[0]["learning_rate"])


def fill(bench: Bench, cells: list[Cell]) -> int:
    """Make the cells that are missing and that no other process is making.

    Returns
    -------
    int : cells made now.
    """
    made = 0
    left = [cell for cell in cells if not cell.file(bench.out).exists() and not bench.unfit(cell.entry)]
    bench.prepare(bench.world.splits[name] for name in dict.fromkeys(cell.split for cell in left))
    for number, cell in enumerate(cells, 1):
        file = cell.file(bench.out)
        try:
            with missing(file) as to_make:
                if to_make:
                    say(f"cell {number} of {len(cells)}: {cell}")
                    write_json(file, bench.run(cell))
                    made += 1
        except Held as error:  # it says what to remove, should that process be gone
            say(f"cell {number} of {len(cells)}: {cell}: left to another. {error}")
        except torch.OutOfMemoryError as error:  # says nothing of the method, and the next cell may need less
            why = str(error).partition(". ")[0]
            say(f"cell {number} of {len(cells)}: {cell}: left empty. {why}. Run it again with more memory free.")
    return made
