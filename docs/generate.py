"""Write the tables in the documentation that follow from the code.  Run: python docs/generate.py [--check].

A table stands between ``<!-- options: unlearn flat -->`` or ``<!-- commands -->`` and ``<!-- end -->``. ``--check``
writes nothing and exits with 1 if a page is behind the code.
"""

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from amends import cli

DOCS = Path(__file__).resolve().parent
FLAGSHIP = "unlearn flat"
TABLE = re.compile(r"(<!-- (options|commands)(?:: ([a-z0-9_ ]+))? -->\n)(.*?)(<!-- end -->)", re.DOTALL)


def command_names() -> Iterator[str]:
    """Yield each command as it is typed after ``amends``: verbs first, then the methods of each job."""
    root: Any = cli.root()
    groups = [("", root), *((f"{job} ", root.commands[job]) for job in cli.JOBS)]
    for prefix, group in groups:
        yield from (prefix + name for name in group.commands if name not in cli.JOBS)


def page_of(name: str) -> str:
    """Return the page of a command, relative to docs/."""
    return f"{name.replace(' ', '/')}.md" if " " in name else f"verbs/{name}.md"


def command_table() -> str:
    """Return a row for each command: name with its page, first line of the module."""
    root: Any = cli.root()
    rows = ["| command | what it does |", "| --- | --- |"]
    for name in command_names():
        *job, last = name.split()
        group = root.commands[job[0]] if job else root
        rows.append(f"| [`amends {name}`]({page_of(name)}) | {_cell(group.commands[last].help)} |")
    return "\n".join(rows)


def option_table(name: str) -> str:
    """Return a row for each argument and option of a command.

    What a method of forgetting shares with FLAT, down to the default, stands on FLAT's page and is only named.
    """
    rows = _option_rows(name)
    same = []
    if name.startswith("unlearn ") and name != FLAGSHIP:
        flagship = _option_rows(FLAGSHIP)
        same = [words for words, row in rows.items() if flagship.get(words) == row and "required" not in row]
    head = ["| option | value | default | meaning |", "| --- | --- | --- | --- |"]
    table = "\n".join([*head, *(row for words, row in rows.items() if words not in same)])
    if not same:
        return table
    return f"{table}\n\nAs for [FLAT](flat.md#options), defaults included: {', '.join(same)}."


def _option_rows(name: str) -> dict[str, str]:
    """Return the row of each argument and option of a command, read off the function that runs."""
    *job, last = name.split()
    root: Any = cli.root()
    command = (root.commands[job[0]] if job else root).load(last)
    ctx = typer.Context(command, info_name=last)
    rows = {}
    for param in command.params:
        argument = param.param_type_name == "argument"
        words = param.display_name_raw.upper() if argument else ", ".join([*param.opts, *param.secondary_opts])
        value = "" if getattr(param, "is_flag", False) else param.display_type_rich(ctx).strip("<>")
        value = value.removesuffix(" range") + _bounds(getattr(param, "min", None), getattr(param, "max", None))
        rows[f"`{words}`"] = f"| `{words}` | {_cell(value)} | {_cell(_default(param))} | {_cell(param.help)} |"
    return rows


def _bounds(low: float | None, high: float | None) -> str:
    return (f", at least {low}" if low is not None else "") + (f", at most {high}" if high is not None else "")


def _default(param: Any) -> str:
    if param.required:
        return "required"
    if isinstance(param.default, bool):
        return "on" if param.default else "off"
    return "" if param.default is None else str(param.default)


def _cell(text: str | None) -> str:
    return " ".join((text or "").split()).replace("|", r"\|").replace("<", "&lt;")


def updated(text: str) -> str:
    """Return a page with its tables made anew."""

    def table(found: re.Match[str]) -> str:
        made = option_table(found[3]) if found[2] == "options" else command_table()
        return f"{found[1]}\n{made}\n\n{found[5]}"  # Markdown wants a blank line around a table

    return TABLE.sub(table, text)


def main() -> None:
    """Bring every page up to date, or with ``--check`` say which are not."""
    behind = []
    for page in sorted(DOCS.rglob("*.md")):
        text = page.read_text(encoding="utf-8")
        if (new := updated(text)) != text:
            behind.append(page.relative_to(DOCS).as_posix())
            if "--check" not in sys.argv:
                page.write_text(new, encoding="utf-8")
    if behind:
        print("behind the code:" if "--check" in sys.argv else "written:", ", ".join(behind))
    sys.exit(bool(behind) and "--check" in sys.argv)


if __name__ == "__main__":
    main()
