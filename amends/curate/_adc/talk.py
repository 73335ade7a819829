"""What a language model is asked when it designs a data set, and how its answers are read: strictly.

The paper (ADC, arXiv 2408.11338) says that a model is asked for attributes and values, and asked again; the prompts are
[design], a choice of this tool.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from typing import Any

from amends.io.errors import InputError, NoResult
from amends.lm.chat import Chat, Counts, Replies, ask, json_object

ATTEMPTS = 3
MOST_LISTED, MOST_CHARACTERS = 200, 80
"""Names in a list, and characters of a name, that an answer may have."""
SHOWN = 120
"""Characters of an answer that an error shows."""
SAMPLE = ("photographs from the workshop of a smith", ["anvil", "tongs", "swage block", "leg vice", "bellows"])
"""The domain and the classes that the prompt shows; an answer that repeats them is none."""
_ONE = "Answer with one JSON object and nothing else: "
TASKS = {
    "classes": "List about NUM classes that the data set should tell apart. They must not overlap, and each name "
    f'must be short. {_ONE}{{"classes": [TEXT, ...]}}\n\nFor example, for the domain "{SAMPLE[0]}": '
    + json.dumps({"classes": SAMPLE[1]}),
    "axes": "List about NUM attributes in which samples of one class differ, each with a name of one or two words. "
    f'{_ONE}{{"axes": [TEXT, ...]}}',
    "values": "List about NUM values that the attribute may have in samples of these classes, each of a few words "
    f'that can stand before the name of a class. {_ONE}{{"values": [TEXT, ...]}}',
    "review": "Look through the entries: what is missing, which two mean the same, and what does not belong there? "
    f'{_ONE}{{"add": [TEXT, ...], "merge": [[TEXT, TEXT], ...], "drop": [TEXT, ...]}}. Of two entries that are merged '
    "the first stays. Each of the three may be an empty list.",
}
VERSIONS = {task: f"adc-{task}-1" for task in TASKS}


@dataclass
class Asking:
    """A model, what it is told of the domain each time, and what came of it."""

    chat: Chat | None
    """None if nothing is going to be asked."""
    about: dict[str, Any]
    how: dict[str, Any]
    """Options of `amends.lm.chat.ask`."""
    counts: Counts = field(default_factory=Counts)
    warnings: list[str] = field(default_factory=list)
    merged: list[dict[str, Any]] = field(default_factory=list)
    """Names that became one: list, kept, merged, and by what."""

    def ask(
        self, task: str, parse: Callable[[str], Any], materials: Sequence[Mapping[str, Any]], num: int = 0
    ) -> Replies[Any]:
        """Ask the same of each material."""
        assert self.chat is not None
        talks = [talk(task, {**self.about, **material}, num) for material in materials]
        found = ask(
            self.chat, talks, parse, version=VERSIONS[task], attempts=ATTEMPTS, label=f"asking for {task}", **self.how
        )
        self.counts += found.counts
        return found

    def wanted(self, task: str, num: int) -> list[str]:
        """Ask for classes or axes.

        Raises
        ------
        NoResult : no answer could be read.
        """
        found = self.ask(task, lambda answer: names_in(answer, task), [{}], num)
        if found.values[0] is None:
            raise NoResult(self.no_list(task, found))
        return list(found.values[0])

    def axes(self, num: int, num_values: int) -> dict[str, list[str]]:
        """Ask for attributes and for the values of each; one without a readable list of values is left out, and said.

        Raises
        ------
        NoResult : no attributes, or no values of any, could be read.
        """
        names = self.wanted("axes", num)[:num]
        replies = self.ask(
            "values", lambda a: names_in(a, "values"), [{"attribute": name} for name in names], num_values
        )
        axes: dict[str, list[str]] = {}
        for name, values, reason in zip(names, replies.values, replies.reasons, strict=True):
            if values is None:
                self.warnings.append(f'The attribute "{name}" was left out: no values could be read ({reason}).')
            else:
                axes[name] = self.reviewed(name, list(values), least=1)
        if not axes:
            raise NoResult(self.no_list("values", replies))
        return axes

    def reviewed(self, what: str, names: list[str], least: int) -> list[str]:
        """Have a list looked through once; an answer that cannot be read changes nothing, and is said."""
        found = self.ask("review", lambda answer: change_in(answer, names, least), [{"list": what, "entries": names}])
        if found.values[0] is None:
            self.warnings.append(
                f'The list "{what}" was not looked through: no answer could be read ({found.reasons[0]}).'
            )
            return names
        new, pairs = found.values[0]
        self.merged += [{"list": what, "kept": kept, "merged": gone, "by": "the model"} for kept, gone in pairs]
        return list(new)

    def no_list(self, task: str, found: Replies[Any]) -> str:
        """Say that nothing could be read, with the answer and what to do."""
        said = " ".join((found.texts[0] or "").split())
        shown = f'; it said: "{said[:SHOWN]}{"…" if len(said) > SHOWN else ""}"' if said else ""
        hint = "give the --classes yourself" if task == "classes" else "take --num-axes 0, for classes alone"
        assert self.chat is not None
        return (
            f"{self.chat.model.name}: no list of {task} could be read from what it answered in {ATTEMPTS} tries "
            f"({found.reasons[0]}{shown}). Nothing was written. Name a more capable model with --llm, or {hint}."
        )


def talk(task: str, material: Mapping[str, Any], num: int = 0) -> list[dict[str, str]]:
    """Make one message: the material as JSON, then the task."""
    said = json.dumps(material, ensure_ascii=False)
    return [{"role": "user", "content": f"Plan of a data set: {said}\n\n{TASKS[task].replace('NUM', str(num))}"}]


def names_in(answer: str, key: str) -> list[str]:
    """Read a list of names under a key that is the only one.

    Raises
    ------
    ValueError : anything else, a single class, or the classes of the prompt's own example.
    """
    found = json_object(answer)
    if set(found) != {key}:
        raise ValueError(f"the object has {', '.join(found)[:60] or 'nothing'} where {key} alone was asked for")
    names = names_of(found[key], key)
    if key == "classes" and len(names) < 2:
        raise ValueError("a single class")
    if key == "classes" and len(set(names) & set(SAMPLE[1])) * 2 > len(names):
        raise ValueError("it repeats the example of the prompt")
    return names


def names_of(values: Any, where: str) -> list[str]:
    """Check a list of names; one that is there twice, in whatever case, counts once.

    Raises
    ------
    InputError : no list, too long, or something in it that is no name.
    """
    if not isinstance(values, list | tuple) or not values or len(values) > MOST_LISTED:
        raise InputError(f"{where}: not a list of 1 to {MOST_LISTED} names")
    found: dict[str, str] = {}
    for value in values:
        name = " ".join(value.split()) if isinstance(value, str) else ""
        if not any(char.isalnum() for char in name) or not name.isprintable() or name in ("TEXT", "NUM"):
            raise InputError(f"{where}: {str(value)[:40]!r} in the list is no name")
        if len(name) > MOST_CHARACTERS:
            raise InputError(f"{where}: {name[:40]!r}... in the list is longer than {MOST_CHARACTERS} characters")
        found.setdefault(name.casefold(), name)
    return list(found.values())


def change_in(answer: str, names: list[str], least: int) -> tuple[list[str], list[tuple[str, str]]]:
    """Read what to add, merge and drop: the list that comes of it, and the pairs that were merged.

    Raises
    ------
    ValueError : another object, an entry that is not in the list, or fewer than `least` that would be left.
    """
    found = json_object(answer)
    if set(found) != {"add", "merge", "drop"} or not all(isinstance(value, list) for value in found.values()):
        raise ValueError("the object is not the three lists add, merge and drop")
    pairs = found["merge"]
    if any(not isinstance(pair, list) or len(pair) != 2 or pair[0] == pair[1] for pair in pairs):
        raise ValueError("something to merge is no pair of two entries")
    if strange := [name for name in [*chain.from_iterable(pairs), *found["drop"]] if name not in names]:
        raise ValueError(f"{str(strange[0])[:40]!r} is to be merged or dropped, and is not in the list")
    gone = {pair[1] for pair in pairs} | set(found["drop"])
    if any(pair[0] in gone for pair in pairs):
        raise ValueError("an entry that another one is merged into is taken away itself")
    left = [name for name in names if name not in gone] + found["add"]
    new = names_of(left, "add") if left else []
    if len(new) < least:
        raise ValueError(f"only {len(new)} entries would be left")
    return new, [(pair[0], pair[1]) for pair in pairs]
