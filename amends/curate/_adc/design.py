"""The design of a data set to build: its classes, what stands under each, and what to search for (ADC, step 1)."""

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from amends.io.atomic import write_text
from amends.io.errors import InputError

MAX_DESIGN_BYTES = 64_000_000
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass(frozen=True)
class Subclass:
    """One kind of thing in a class, and the words that find it."""

    name: str
    query: str
    attributes: dict[str, str] = field(default_factory=dict)
    """Axis (such as colour) to value."""


@dataclass(frozen=True)
class Class:
    """A label, and its subclasses."""

    name: str
    subclasses: tuple[Subclass, ...]


@dataclass(frozen=True)
class Design:
    """Classes of a data set, each with its subclasses; a query belongs to one subclass."""

    domain: str
    classes: tuple[Class, ...]
    axes: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """Attribute axis to its values."""
    origin: dict[str, Any] = field(default_factory=dict)
    """Where it came from: model, version of the prompts, seed."""

    def queries(self) -> list[tuple[str, Subclass]]:
        """Return every class name with each of its subclasses, in the order of the design."""
        return [(one.name, sub) for one in self.classes for sub in one.subclasses]


def read_design(path: str | Path) -> Design:
    """Read a design, which people may have edited.

    Parameters
    ----------
    path : str or Path
        YAML: `domain`, and `classes`, a list of {name, subclasses: [{name, query, attributes}]}. A class without
        subclasses is its own and is searched for by its name; a subclass without a query by its own name.

    Raises
    ------
    InputError : unreadable, not YAML, no classes, a name that is missing or there twice, a query of two subclasses.
    """
    path = Path(path)
    try:
        if path.stat().st_size > MAX_DESIGN_BYTES:
            raise InputError(f"{path}: larger than {MAX_DESIGN_BYTES} bytes. A design is a list of classes.")
        text = path.read_text(encoding="utf-8-sig")
        if any(isinstance(token, yaml.AliasToken) for token in yaml.scan(text, Loader=_LOADER)):
            raise InputError(f"{path}: holds an alias (*name), which a design never needs. Write it out.")
        data = yaml.load(text, Loader=_LOADER)  # the safe loader: no tag can call anything
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise InputError(f"{path}:{line}: not YAML: {error.problem}. Mend that line.") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError, ValueError) as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{path}: the design cannot be read: {getattr(error, 'strerror', None) or error}.") from error
    return design_of(data, str(path))


def design_of(data: Any, where: str) -> Design:
    """Make a design of plain data, as `read_design` describes it; `where` begins each message."""
    top = _mapping(data, where)
    classes = []
    for number, item in enumerate(_list(top.get("classes"), f"{where}: classes"), 1):
        place = f"{where}: class {number}"
        one = {"name": item} if isinstance(item, str) else _mapping(item, place)
        name = _text(one.get("name"), f"{place}: name")
        subs = []
        for count, entry in enumerate(_list(one.get("subclasses") or [name], f"{place}: subclasses"), 1):
            spot = f'{where}: class "{name}", subclass {count}'
            sub = {"name": entry} if isinstance(entry, str) else _mapping(entry, spot)
            own = _text(sub.get("name"), f"{spot}: name")
            said = _mapping(sub.get("attributes") or {}, f"{spot}: attributes")
            query = _text(sub.get("query") or own, f"{spot}: query")
            subs.append(Subclass(own, query, {str(axis): str(value) for axis, value in said.items()}))
        classes.append(Class(name, tuple(subs)))
    axes = {
        str(axis): tuple(map(str, _list(values, f"{where}: axes: {axis}")))
        for axis, values in _mapping(top.get("axes") or {}, f"{where}: axes").items()
    }
    design = Design(str(top.get("domain") or ""), tuple(classes), axes, _mapping(top.get("origin") or {}, where))
    for what, names in (
        ("class", [one.name for one in classes]),
        ("subclass", [f"{one.name}: {sub.name}" for one in classes for sub in one.subclasses]),
        ("query", [sub.query for _, sub in design.queries()]),
    ):
        if twice := [name for name, number in Counter(names).items() if number > 1]:
            raise InputError(f'{where}: the {what} "{twice[0]}" is there twice. Keep one of the two.')
    return design


def write_design(path: str | Path, design: Design) -> None:
    """Write a design for people to edit; `read_design` gives it back."""
    data = {
        "domain": design.domain,
        "axes": {axis: list(values) for axis, values in design.axes.items()},
        "classes": [
            {
                "name": one.name,
                "subclasses": [
                    {"name": sub.name, "query": sub.query, "attributes": sub.attributes} for sub in one.subclasses
                ],
            }
            for one in design.classes
        ],
        "origin": design.origin,
    }
    write_text(Path(path), yaml.safe_dump(data, sort_keys=False, allow_unicode=True, width=120))


def _mapping(value: Any, where: str) -> dict[Any, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{where}: expected 'name: value' lines. Mend it.")
    return value


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise InputError(f"{where}: expected a list with at least one entry. Mend it.")
    return value


def _text(value: Any, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{where}: expected a text. Put it in quotes if it is a number or yes, no, on, off.")
    return value.strip()
