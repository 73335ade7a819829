"""Compare all methods on TOFU: methods x splits x seeds, in one table with its chart and what it shows.

Everything that is missing is made: the model that is taught all rows, one retrained reference for each split, the
search for each method's learning rate, the cells. Each is kept in the folder as soon as it is there, so that the
command goes on where it was stopped, and several processes can share the work.
"""

from collections.abc import Iterable, Sequence
from math import isfinite
from pathlib import Path
from typing import Annotated, Any, get_args

import typer

from amends.bench._cells import Bench, Cell, Plan, fill
from amends.bench._claim import check_folder, check_needs, check_references, claim_folder, plan_of
from amends.bench._entries import Entry, Settings, entries, parse
from amends.bench._page import page
from amends.bench._world import SHARES, World, read_world
from amends.evaluation.evaluate import with_reference
from amends.io.atomic import write_text
from amends.io.console import say
from amends.io.errors import InputError
from amends.io.options import check_names, listed
from amends.io.tables import read_json

PAGE = "tofu.md"


def command(
    data: Annotated[str, typer.Option(help="Folder of a copy of TOFU: full and more, or forget and retain.")],
    out: Annotated[Path, typer.Option(help="Folder of the cells; what is in it is not made again.")],
    model: Annotated[
        str | None, typer.Option(help="Model to teach, where --taught or a reference is not given.")
    ] = None,
    taught: Annotated[str | None, typer.Option(help="Model that was taught everything.")] = None,
    reference: Annotated[
        list[str] | None, typer.Option(help="SPLIT=MODEL that was taught all but what the split forgets; repeatable.")
    ] = None,
    splits: Annotated[
        list[str] | None, typer.Option(help=f"Of: {', '.join(SHARES)}; default: all that there are; repeatable.")
    ] = None,
    methods: Annotated[
        list[str] | None, typer.Option(help="METHOD, METHOD+retain or METHOD+neighbours; default: all; repeatable.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option(help="searched, published; default: searched; repeatable.")
    ] = None,
    seeds: Annotated[int, typer.Option(help="Seeds 0 to this less one.", min=1)] = 3,
    rates: Annotated[str, typer.Option(help="Learning rates that are searched, with commas.")] = "2e-4,5e-4,1e-3",
    epochs: Annotated[float, typer.Option(help="Passes over the forget data, of searched cells.", min=0)] = 5,
    layers: Annotated[
        str | None, typer.Option(help="Train only these layers, in searched cells; default: the method's own, or all.")
    ] = None,
    eval_rows: Annotated[int, typer.Option(help="Most questions of each set to keep.", min=1)] = 100,
    teach_epochs: Annotated[float, typer.Option(help="Passes over the data when a model is taught.", min=0)] = 5,
    teach_rate: Annotated[float, typer.Option(help="Learning rate when a model is taught.", min=0)] = 2e-3,
    lora_rank: Annotated[int, typer.Option(help="LoRA rank when a model is taught; 0 tunes all weights.", min=0)] = 16,
    page_only: Annotated[
        bool, typer.Option("--page-only", help="Make no cell; write the page of those there are, by the plan in OUT.")
    ] = False,
) -> None:
    """Fill the cells that are missing in OUT, then write OUT/tofu.md, of these and all others that are there."""
    world = read_world(data)
    lines = [parse(text) for text in listed(methods)]
    wanted = cells_of(world, listed(splits), lines, listed(settings), seeds)
    if page_only:  # by the plan that is there: options for what is made say nothing of it
        check_folder(out)
        file = write(Bench(plan_of(out, data, world), world, out), wanted)
        say(f"done: {file}")
        return
    for option, number in {"epochs": epochs, "teach-epochs": teach_epochs, "teach-rate": teach_rate}.items():
        if not isfinite(number):
            raise InputError(f"--{option} {number}: a finite number is expected.")
    plan = Plan(
        data=data,
        model=model,
        taught=taught,
        references=by_split(reference or []),
        teach_epochs=teach_epochs,
        teach_rate=teach_rate,
        lora_rank=lora_rank,
        rates=numbers(rates),
        epochs=epochs,
        layers=layers,
        eval_rows=eval_rows,
    )
    for name in plan.references:
        if name not in world.splits:
            raise InputError(f"--reference {name}=...: no such split. There are: {', '.join(world.splits)}.")
    bench = Bench(plan, world, out)
    check_folder(out)
    check_references(bench)
    check_needs(bench, [cell for cell in wanted if not cell.file(out).exists()])
    claim_folder(out, plan, world)
    fill(bench, wanted)
    file = write(bench, wanted)
    say(f"done: {file}")


def numbers(text: str) -> tuple[float, ...]:
    """Rates with commas between them.

    Raises
    ------
    InputError : one is no positive number.
    """
    try:
        found = tuple(sorted({float(part) for part in text.split(",")}))
    except ValueError:
        found = ()
    if not found or not 0 < found[0] <= found[-1] < 1:
        raise InputError(f"--rates {text}: numbers between 0 and 1 with commas are expected, as 2e-4,5e-4.")
    return found


def by_split(given: Sequence[str]) -> dict[str, str]:
    """Read SPLIT=MODEL.

    Raises
    ------
    InputError : there is no = in it, or a split has two.
    """
    found: dict[str, str] = {}
    for text in given:
        name, _, model = (part.strip() for part in text.partition("="))
        if not name or not model:
            raise InputError(f"--reference {text}: write SPLIT=MODEL.")
        if found.setdefault(name, model) != model:
            raise InputError(f"--reference {text}: {name} has {found[name]} already. Give one for each split.")
    return found


def cells_of(
    world: World, splits: Sequence[str], lines: Sequence[Entry], settings: Sequence[str], seeds: int
) -> list[Cell]:
    """All cells of the table, those of the first seed first; what is named twice stands there once.

    Raises
    ------
    InputError : a split or kind of settings that there is not.
    """
    check_names(splits, world.splits, "--splits", "split")
    kinds: list[Settings] = []
    for name in dict.fromkeys(settings or ("searched",)):
        if name not in ("searched", "published"):
            raise InputError(f"--settings {name}: searched or published is expected.")
        kinds.append(name)  # type: ignore[arg-type]
    return [
        Cell(entry, split, kind, seed)
        for seed in range(seeds)
        for split in dict.fromkeys(splits or world.splits)
        for kind in kinds
        for entry in dict.fromkeys(lines or entries())
    ]


def write(bench: Bench, cells: Sequence[Cell]) -> Path:
    """Write the page and its charts: of these cells, and of all others that are there."""
    cells = in_order({*cells, *cells_there(bench)}, bench.world)
    found = [(cell, read_json(file) if (file := cell.file(bench.out)).exists() else None) for cell in cells]
    text, charts = page("Methods on TOFU", found, compared(bench.out, bench.world), about(bench, found))
    for name, svg in charts.items():
        write_text(bench.out / name, svg)
    write_text(bench.out / PAGE, text)
    return bench.out / PAGE


def cells_there(bench: Bench) -> list[Cell]:
    """Cells that are in the folder, whichever process made them."""
    found = []
    for split in bench.world.splits:
        for settings in get_args(Settings):
            for file in (bench.out / "cells" / split / settings).glob("*-*.json"):
                entry, _, seed = file.stem.rpartition("-")
                try:
                    found.append(Cell(parse(entry), split, settings, int(seed)))
                except ValueError:
                    say(f"{file}: no method of this version of amends with a seed; left out of the page")
    return found


def in_order(cells: Iterable[Cell], world: World) -> list[Cell]:
    """Put cells in the order of the page, which does not depend on who writes it."""
    splits, kinds, lines = list(world.splits), get_args(Settings), list(entries())

    def place(cell: Cell) -> tuple[Any, ...]:
        line = lines.index(cell.entry) if cell.entry in lines else len(lines)
        return splits.index(cell.split), kinds.index(cell.settings), line, str(cell.entry), cell.seed

    return sorted(cells, key=place)


def compared(out: Path, world: World) -> dict[str, dict[str, Any]]:
    """Summaries of the models before and of the references, by split."""
    found: dict[str, dict[str, Any]] = {}
    for split in world.splits:
        files = {role: out / "evaluations" / split / f"{role}.json" for role in ("before", "reference")}
        if all(file.exists() for file in files.values()):
            said = {role: read_json(file) for role, file in files.items()}
            found[split] = {r: with_reference(e, said["reference"])["summary"] for r, e in said.items()}
    return found


def about(bench: Bench, cells: Sequence[tuple[Cell, dict[str, Any] | None]]) -> str:
    """Say what was run."""
    plan, made = bench.plan, [found for _, found in cells if found and not found["failed"]]
    rows = ", ".join(f"{name} {len(split.forget)}" for name, split in bench.world.splits.items())
    versions = ", ".join(f"{name} {' and '.join(several)}" for name, several in versions_of(made).items())
    ran = f" Made with {versions}, in {made[0]['precision']}." if made else ""
    return (
        f"A model taught {len(bench.world.taught)} rows ({plan.taught or plan.model}); rows to forget: {rows}. "
        f"Searched: {plan.epochs:g} epochs of 8 rows, rates {', '.join(f'{rate:g}' for rate in plan.rates)}, layers "
        f"{plan.layers or 'all'}.{ran}"
    )


def versions_of(cells: Iterable[dict[str, Any]]) -> dict[str, list[str]]:
    """Versions that cells were made with: several where a folder was filled over a change of one."""
    found: dict[str, dict[str, None]] = {}
    for cell in cells:
        for name, version in cell["versions"].items():
            found.setdefault(name, {})[version] = None
    return {name: sorted(several) for name, several in found.items()}
