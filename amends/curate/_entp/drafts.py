"""Samples on their way to becoming one, and how they get there."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from amends.curate._entp.purge import Sample
from amends.curate._entp.rules import Loss, Part
from amends.curate._entp.terms import Term, Weights, exact_terms
from amends.io.errors import InputError

Status = Literal["open", "accepted", "rejected", "incompatible"]
Control = Literal["one2one", "random", "unchecked", "evolve"]
Form = Literal["json", "plain"]
PARTS: tuple[Part, Part] = ("instruction", "response")


@dataclass(frozen=True)
class Mixing:
    """How samples are fused; the options of the same names."""

    rounds: int = 3
    control: Control | None = None
    max_new_tokens: int = 512
    temperature: float = 0.0
    form: Form = "json"
    """How the model is asked to answer: JSON objects, or one word and texts alone."""
    least_grade: int | None = None
    """Of a judge: a draft with a lower one is rejected."""

    def __post_init__(self) -> None:
        if self.rounds < 0:
            raise InputError(f"--rounds {self.rounds}: must be at least 0.")

    @property
    def repairs(self) -> int:
        """Rounds of repair in each cycle."""
        return 0 if self.control == "unchecked" else self.rounds


@dataclass
class Draft:
    """Samples on their way to becoming one; a single sample in the control one2one."""

    samples: tuple[Sample, ...]
    keep: dict[Part, list[Term]]
    status: Status = "open"
    reason: str | None = None
    domain: dict[str, Any] | None = None
    """domain, task_type, compatible, reason; None until it is known."""
    texts: dict[Part, str] = field(default_factory=dict)
    """The best candidate of each part."""
    losses: dict[Part, Loss] = field(default_factory=dict)
    """Of the best candidate."""
    history: dict[Part, list[Loss]] = field(default_factory=dict)
    """Of all candidates, in their order."""
    asked: Counter[str] = field(default_factory=Counter)
    """Conversations by what they were about: domain, instruction, response, grade."""
    form: Form = "json"
    evolves: bool = False
    """In the control evolve: a single sample that is made harder."""
    grade: int | None = None
    """By a judge; None without one, or if it could not be read."""
    no_grade: str | None = None
    """Why a grade that was asked for is missing."""

    @property
    def id(self) -> str:
        """Made of its sources."""
        return "+".join(sample.id for sample in self.samples)

    @property
    def licences(self) -> list[str]:
        """Of all its sources, each once."""
        return list(dict.fromkeys(sample.licence for sample in self.samples if sample.licence))


def drafts_of(
    groups: Sequence[Sequence[Sample]], weights: Weights, form: Form = "json", evolves: bool = False
) -> list[Draft]:
    """Begin a draft of each group of samples, with what it must keep; the answer to a harder instruction: nothing."""
    keep: dict[Part, list[list[Term]]] = {}
    for part in PARTS:
        texts = [getattr(sample, part) for group in groups for sample in group]
        terms = iter([[*exact_terms(t), *words] for t, words in zip(texts, weights.weighty(texts), strict=True)])
        keep[part] = [_once([term for _ in group for term in next(terms)]) for group in groups]
    return [
        Draft(tuple(group), {"instruction": asked, "response": [] if evolves else said}, form=form, evolves=evolves)
        for group, asked, said in zip(groups, keep["instruction"], keep["response"], strict=True)
    ]


def _once(terms: Sequence[Term]) -> list[Term]:
    """Each term once; a word that is a name already is none."""
    first = {term.text: term for term in reversed(terms)}
    return [term for term in dict.fromkeys(terms) if first[term.text] == term]
