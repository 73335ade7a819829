"""Write the report of a run anew, with other runs beside it if wanted."""

from os.path import lexists
from pathlib import Path
from typing import Annotated

import typer

from amends.io.atomic import check_manifest, write_manifest, write_text
from amends.io.console import say
from amends.io.errors import InputError
from amends.report.unlearning import render_report


def command(
    run: Annotated[Path, typer.Argument(help="Run folder, as 'amends unlearn' wrote it.")],
    beside: Annotated[
        list[Path] | None, typer.Option("--beside", help="Another run folder to show in the same tables; repeatable.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Where to write the page; RUN/report.html if not given.")] = None,
) -> None:
    """Write the report of RUN."""
    page = render_report(run, beside or [])
    place = run / "report.html" if out is None else out
    if place.is_dir():
        raise InputError(f"{place}: is a folder. Give the name of a file to --out.")
    inside = place.resolve().is_relative_to(run.resolve())
    if lexists(place) and place.suffix != ".html":
        what = "is part of the run" if inside else "exists already, and only an .html page is replaced"
        raise InputError(f"{place}: {what}. Give another name to --out.")
    if inside:
        check_untouched(run, place)
    write_text(place, page)
    if inside:
        write_manifest(run)
    say(f"done: {place}")


def check_untouched(run: Path, place: Path) -> None:
    """Check that a new manifest of `run` would hide no change."""
    name = place.resolve().relative_to(run.resolve()).as_posix()
    problems = [problem for problem in check_manifest(run) if problem.file != name]
    if problems:
        raise InputError(
            f"{run / problems[0].file}: {problems[0].what}, by the run's manifest; a new page must not hide that. Look"
            f" at 'amends verify {run}', or write the page elsewhere with --out."
        )
