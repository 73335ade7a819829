"""What was run: the record in run.json, and the lists beside it that have one entry a line."""

import json
import os
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from numbers import Integral, Real
from pathlib import Path
from typing import Any

from amends import __version__
from amends.io.atomic import finite, new_folder, write_json, write_manifest, write_text
from amends.io.errors import InputError
from amends.io.tables import read_json, read_rows

RUN = "run.json"
PACKAGES = ("amends", "torch", "transformers", "peft", "accelerate", "datasets", "safetensors", "numpy")
FIELDS: dict[str, type] = {
    "amends": str,
    "command": str,
    "created": str,
    "config": dict,
    "versions": dict,
    "seed": int,
    "platform": dict,
    "data": dict,
    "weights": dict,
    "start": dict,
    "stopped": str,
    "warnings": list,
    "seconds": dict,
}


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that numbers depend on, without importing them; absent ones left out."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def platform_info() -> dict[str, Any]:
    """Operating system, machine type and number of logical CPUs; nothing that names the host or the user."""
    return {"os": f"{platform.system()} {platform.release()}", "machine": platform.machine(), "cpus": os.cpu_count()}


def describe(
    *,
    command: str,
    config: Mapping[str, Any],
    seed: int,
    data: Mapping[str, Any],
    weights: Mapping[str, str],
    seconds: Mapping[str, float],
    method: Mapping[str, str] | None = None,
    stopped: str = "all steps done",
    start: Mapping[str, float] | None = None,
    warnings: Sequence[str] = (),
) -> dict[str, Any]:
    """Record of a run, as run.json holds it; the time, versions and platform are taken now.

    Parameters
    ----------
    command : str
        Words of the command line, such as "unlearn flat".
    config : dict
        All options.
    data : dict
        Each data set: path, rows, kept, dropped, sha256.
    weights : dict
        Digests before and after.
    seconds : dict
        Wall-clock time of the parts, in seconds.
    method : dict, optional
        Title of the method, and what it does in a sentence, for reports.
    stopped : str, default "all steps done"
        Why the training ended.
    start : dict, optional
        Means before the first step.
    """
    return {
        "amends": __version__,
        "command": command,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "config": dict(config),
        "versions": versions(),
        "seed": told(seed),
        "platform": platform_info(),
        "data": dict(data),
        "weights": dict(weights),
        "start": dict(start or {}),
        "stopped": stopped,
        "warnings": list(warnings),
        "seconds": dict(seconds),
    } | ({"method": dict(method)} if method else {})


def told(value: Any) -> Any:
    """Say an option as run.json keeps it: of rows given from Python their number, of a model no more than null."""
    if isinstance(value, str | bool | dict | None):
        return value
    if isinstance(value, Real):  # numpy's, too
        return int(value) if isinstance(value, Integral) else float(value)
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Sequence) and all(isinstance(one, str | Path) for one in value):
        return [str(one) for one in value]
    return {"rows": len(value)} if isinstance(value, Sized) else None


@contextmanager
def run_folder(out: str | Path, record: Mapping[str, Any], summary: Any, page: str) -> Iterator[Path]:
    """Make a run folder in one move: what the caller puts into it, the record, summary.json and the report.

    Raises
    ------
    InputError : there is something of that name.
    """
    with new_folder(out) as folder:
        yield folder
        write_json(folder / "summary.json", summary)
        write_json(folder / RUN, record)
        write_text(folder / "report.html", page)
        write_manifest(folder)


def read_run(folder: str | Path) -> dict[str, Any]:
    """Read and check the record of a run folder.

    Raises
    ------
    InputError : no run folder, or a record with a field that is missing or of another kind.
    """
    source = Path(folder) / RUN
    if not Path(folder).exists():
        raise InputError(f"{folder}: no such folder. Give one that amends wrote with --out.")
    if not source.is_file():
        raise InputError(f"{folder}: not a run folder (no {RUN}). Give a folder that amends wrote with --out.")
    record = read_json(source)
    if not isinstance(record, dict):
        raise InputError(f"{source}: not the record of a run. Give a folder that amends wrote with --out.")
    for name, kind in FIELDS.items():
        value = record.get(name)
        if not isinstance(value, kind) or isinstance(value, bool):
            problem = "has another kind of value" if name in record else "is missing"
            raise InputError(f'{source}: "{name}" {problem}. The record was changed, or another version wrote it.')
    return record


def write_jsonl(path: str | Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write one line of JSON a row, as `write_text` does; a number that is not finite becomes null."""
    write_text(path, "".join(json.dumps(finite(row), ensure_ascii=False, allow_nan=False) + "\n" for row in rows))


def read_jsonl(path: str | Path) -> list[dict[str, Any]]:
    """Read what `write_jsonl` wrote, which may be no row at all.

    Raises
    ------
    InputError : missing, or a line that is not a JSON object; with the line.
    """
    rows = read_rows(path)
    return [row.data for row in rows] if Path(path).stat().st_size else []
