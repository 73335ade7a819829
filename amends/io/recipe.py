"""Read a recipe: a YAML file of ``option: value`` lines, taken as the text that was written."""

import difflib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import NamedTuple

import yaml

from amends.io.errors import InputError

MAX_RECIPE_BYTES = 1_000_000
_TAG = "tag:yaml.org,2002:"
_PLAIN_TAGS = {_TAG + name for name in ("str", "int", "float", "bool", "null", "timestamp")}


class Setting(NamedTuple):
    """What a recipe says of one option."""

    value: str | list[str] | None  # the text as written, like a word on the command line; None for null or nothing
    where: str  # file:line


def read_recipe(path: Path, names: Mapping[str, str], lists: Collection[str] = ()) -> dict[str, Setting]:
    """Read the settings of a recipe.

    Nothing is constructed from the YAML, so no tag can call anything and no chain of aliases can grow.

    Parameters
    ----------
    path : Path
        UTF-8, at most 1 MB, one mapping at the top whose values are single values or flat lists.
    names : Mapping
        Each word that may stand in the recipe, and the option it means. Leading dashes do not matter, nor whether
        words are joined by dashes or underscores.
    lists : Collection
        The options that take a list; all others take a single value.

    Returns
    -------
    dict : option to its Setting, in the order of the file.

    Raises
    ------
    InputError : unreadable, not YAML, nested, tagged, unknown option, given twice; the message has file:line.
    """
    known = {_key(word): option for word, option in names.items()}
    settings: dict[str, Setting] = {}
    for key, node in _top_level(path):
        word, where = _text(path, key) or "", _where(path, key)
        option = known.get(_key(word))
        if option is None:
            near = difflib.get_close_matches(_key(word), known, n=1, cutoff=0.5)
            hint = f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(sorted(known))}."
            raise InputError(f"{where}: there is no option {word!r}. {hint}")
        if option in settings:
            raise InputError(f"{where}: {word!r} stands already in {settings[option].where}. Keep one of the two.")
        value = _value(path, node)
        if value is not None and (option in lists) != isinstance(value, list):
            raise InputError(f"{where}: {word!r} takes {'a list: [a, b]' if option in lists else 'one value'}.")
        settings[option] = Setting(value, where)
    return settings


def _key(word: str) -> str:
    return word.lstrip("-").replace("-", "_")


def _top_level(path: Path) -> list[tuple[yaml.Node, yaml.Node]]:
    try:
        if path.stat().st_size > MAX_RECIPE_BYTES:
            raise InputError(f"{path}: larger than {MAX_RECIPE_BYTES} bytes. A recipe is a short list of options.")
        top = yaml.compose(path.read_text(encoding="utf-8-sig"), Loader=yaml.SafeLoader)
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise InputError(f"{path}:{line}: not YAML: {error.problem}. Mend that line.") from error
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path}: the recipe cannot be read: {getattr(error, 'strerror', None) or error}.") from error
    except RecursionError as error:
        raise InputError(f"{path}: nested too deeply. A recipe has one level: 'option: value'.") from error
    if top is None:
        return []
    if not isinstance(top, yaml.MappingNode):
        raise InputError(f"{_where(path, top)}: expected lines of 'option: value' at the top level.")
    pairs: list[tuple[yaml.Node, yaml.Node]] = top.value
    return pairs


def _value(path: Path, node: yaml.Node) -> str | list[str] | None:
    if isinstance(node, yaml.SequenceNode) and node.tag == f"{_TAG}seq":
        return [_text(path, item) or "" for item in node.value]
    return _text(path, node)


def _text(path: Path, node: yaml.Node) -> str | None:
    if node.tag.startswith(_TAG + "python") or node.tag.startswith("!"):
        raise InputError(f"{_where(path, node)}: the YAML tag {node.tag!r} is not allowed. Write a plain value.")
    if not isinstance(node, yaml.ScalarNode) or node.tag not in _PLAIN_TAGS | {_TAG + "merge"}:
        raise InputError(f"{_where(path, node)}: expected a single value or a flat list of values.")
    return None if node.tag == f"{_TAG}null" else str(node.value)


def _where(path: Path, node: yaml.Node) -> str:
    return f"{path}:{node.start_mark.line + 1}"
