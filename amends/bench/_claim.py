"""Before the first cell: what the cells need is there, and the folder is theirs."""

from dataclasses import fields
from pathlib import Path
from typing import Any

from amends.bench._cells import Bench, Cell, Plan
from amends.bench._entries import RETAIN
from amends.bench._rows import check_apart, check_rows
from amends.bench._world import World, check_tuning
from amends.io.atomic import check_new, lock, sha256_json, write_json
from amends.io.console import say
from amends.io.errors import InputError
from amends.io.tables import read_json
from amends.lm.config import check_layers
from amends.lm.find import check_model
from amends.lm.load import precision

CLAIM = "bench.json"
OTHERS = ("run.json", "config.json", "adapter_config.json")
"""Files of a run's or a model's folder."""
STAGES = ("data", "models", "evaluations", "search", "cells")
"""Folders in the order in which they are filled; each is made from those before it."""
MATTERS_FROM = {
    "world": "data",
    "eval_rows": "data",
    "precision": "models",
    "model": "models",
    "teach_epochs": "models",
    "teach_rate": "models",
    "lora_rank": "models",
    "taught": "evaluations",
    "epochs": "search",
    "layers": "search",
    "rates": "cells",
}
"""What the cells of a folder have in common, and the first stage that depends on it."""


def check_needs(bench: Bench, cells: list[Cell]) -> None:
    """Check that cells which are to be made can be made: rows to search on, models, layers, rows that fit.

    Raises
    ------
    InputError : as said.
    """
    names = list(dict.fromkeys(cell.split for cell in cells))
    splits = [bench.world.splits[name] for name in names]
    for split in splits:
        check_apart(bench.world, split)
    for name in dict.fromkeys(cell.split for cell in cells if cell.settings == "searched"):
        check_tuning(bench.world.splits[name])
    to_teach = check_models(bench, names) if cells else []
    layers = bench.plan.layers
    if layers is not None and any(c.settings == "searched" and bench.own_layers(c.entry) is None for c in cells):
        check_layers(layers, bench.num_layers)
    if cells:
        say("checking the rows")
        check_rows(
            bench.world,
            splits,
            bench.model_to_forget,
            taught=bool(to_teach),
            retain=any(cell.entry.keep == RETAIN for cell in cells),
            searched=any(cell.settings == "searched" for cell in cells),
            eval_rows=bench.plan.eval_rows,
        )


def check_models(bench: Bench, splits: list[str]) -> list[str]:
    """Check that the models of some splits are there, or the one to teach them from.

    Returns
    -------
    Names of those that are to be taught.

    Raises
    ------
    InputError : as said.
    """
    plan = bench.plan
    # A reference that was asked is not read again.
    unasked = [name for name in splits if not bench.evaluation(name, "reference").exists()]
    given = {"taught": plan.taught, **{f"reference-{name}": plan.references.get(name) for name in unasked}}
    to_teach = []
    for name, model in given.items():
        made = bench.out / "models" / name
        if model or made.exists():
            check_model(model or made)
        else:
            to_teach.append(name)
    if to_teach and plan.model is None:
        raise InputError(
            f"--model: needed to teach {' and '.join(to_teach)}. Give it, or models that were taught: --taught MODEL, "
            "--reference SPLIT=MODEL."
        )
    if to_teach and plan.model is not None:
        check_model(plan.model)
    return to_teach


def check_folder(out: Path) -> None:
    """Check that a folder can be made, or that what is there can be the folder of a table.

    Raises
    ------
    InputError : a file, a folder of something else, a place that cannot be written to.
    """
    if not out.exists():
        check_new(out)
    elif not out.is_dir():
        raise InputError(f"{out}: a file, where the folder of the cells should be. Give another --out.")
    elif not (out / CLAIM).exists() and (found := [name for name in OTHERS if (out / name).exists()]):
        raise InputError(f"{out}: holds {found[0]}, so it is the folder of something else. Give another --out.")


def claim_folder(out: Path, plan: Plan, world: World) -> None:
    """Write down what the cells of a folder have in common, or check that it is the same as what is there.

    What nothing in the folder depends on yet may change: so a mistake can be mended.

    Raises
    ------
    InputError : the folder holds cells of another plan, or of other data.
    """
    told = {name: value for name, value in vars(plan).items() if name not in ("data", "references")}
    told["rates"] = list(plan.rates)
    told["world"] = world_sha256(world)
    told["precision"] = precision()
    file = out / CLAIM
    with lock(file):
        there = read_json(file) if file.exists() else {}
        changed = {name: value for name, value in told.items() if name not in there or not _same(there[name], value)}
        for name, value in changed.items():
            if there and any(_used(out / stage) for stage in STAGES[STAGES.index(MATTERS_FROM[name]) :]):
                raise InputError(
                    f"{file}: the cells here are of another {name} ({there.get(name)}, now {value}). "
                    f"{_as_there(name, there.get(name))}, or another --out."
                )
        if changed:
            out.mkdir(parents=True, exist_ok=True)
            write_json(file, there | changed)


def plan_of(out: Path, data: str, world: World) -> Plan:
    """Read the plan that the cells of a folder were made by.

    Raises
    ------
    InputError : no such folder, no plan in it, or cells of other data.
    """
    file = out / CLAIM
    if not file.exists():
        raise InputError(
            f"{out}: no {CLAIM} here, so there are no cells to write a page of. Give the --out that cells were made "
            "in, or leave --page-only out to make them."
        )
    there = read_json(file)
    names = {field.name for field in fields(Plan)} - {"data", "references"}
    if not isinstance(there, dict) or (lacking := sorted(names - there.keys())):
        what = f"{lacking[0]} is missing" if isinstance(there, dict) else "not a list of settings"
        raise InputError(f"{file}: not the plan of a table ({what}). Give another --out.")
    if there.get("world") != (now := world_sha256(world)):
        raise InputError(
            f"{file}: the cells here are of another world ({there.get('world')}, now {now}). "
            f"{_as_there('world', None)}, or another --out."
        )
    told = {name: there[name] for name in names}
    return Plan(**told | {"data": data, "references": {}, "rates": tuple(there["rates"])})


def world_sha256(world: World) -> str:
    """Digest of all rows of a world."""
    return sha256_json([world.taught, world.questions, [vars(split) for split in world.splits.values()]])


def _as_there(name: str, value: Any) -> str:
    """Say what to give for the cells of a folder to go on."""
    if name == "world":
        return "Give the --data that they were made from"
    if name == "precision":
        return f"Go on where amends computes in {value}"
    option = f"--{name.replace('_', '-')}"
    if value is None:
        return f"Leave {option} out"
    values = value if isinstance(value, list) else [value]
    return f"Give {option} {','.join(v if isinstance(v, str) else f'{v:g}' for v in values)}"


def check_references(bench: Bench) -> None:
    """Check that the references which are given are those that the cells of the folder are compared with.

    Raises
    ------
    InputError : one is another.
    """
    for split, model in bench.plan.references.items():
        file = bench.evaluation(split, "reference")
        if file.exists() and not _same(name := read_json(file)["name"], model):
            raise InputError(
                f"--reference {split}={model}: the cells here are compared with another, {name} ({file}). Give that "
                "one or another --out."
            )


def _same(there: Any, now: Any) -> bool:
    """Whether two values of an option are equal, or name the same place."""
    both_texts = isinstance(there, str) and isinstance(now, str)
    return bool(there == now or (both_texts and Path(there).resolve() == Path(now).resolve()))


def _used(folder: Path) -> bool:
    """Whether there is any file, be it the lock of a process that is at it."""
    return any(not path.is_dir() for path in folder.rglob("*"))
