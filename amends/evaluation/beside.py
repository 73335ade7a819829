"""What another model says of the answers in an evaluation: the model before, or a classifier that the user names."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from amends.evaluation.evaluate import mean_logprobs
from amends.evaluation.said import SAID_SETS, readable, rouge_l_f1
from amends.evaluation.summary import summarise
from amends.io.errors import InputError
from amends.lm.encoders import Encoder, class_named, is_class, load_encoder
from amends.lm.load import weights_sha256
from amends.lm.logprobs import packed_row
from amends.lm.pairs import Encoded
from amends.lm.templates import plain_ids

SIMILAR_SETS = ("retain",)
OF_OTHERS = ("_fluency", "_harmful_rate")
"""How the names of metrics end for which another model must be asked."""


class Judge(NamedTuple):
    """A classifier that the user names, and the class of it that counts."""

    encoder: Encoder
    label: str
    number: int

    def about(self) -> dict[str, str]:
        """Say which one it is, for a record."""
        return {"name": self.encoder.name, "label": self.label, "weights": weights_sha256(self.encoder.model)}


def load_judge(name: str, label: str) -> Judge:
    """Load a classifier of texts, as `load_encoder` does.

    Raises
    ------
    InputError : no such classifier, or it has no such class beside another.
    """
    encoder = load_encoder(name, "classes")
    if encoder.model.config.num_labels < 2:
        raise InputError(f"--judge {name}: has one class only, so it tells nothing apart. Name another.")
    return Judge(encoder, label, class_named(encoder, label))


def with_others(
    evaluation: dict[str, Any],
    before: torch.nn.Module,
    tokenizer: PreTrainedTokenizerBase,
    answers_before: Mapping[str, Any] | None,
    judge: Judge | None,
) -> dict[str, Any]:
    """Add to an evaluation what needs other models, and summarise it anew (without a reference).

    Parameters
    ----------
    before : Module
        The model before, under which the perplexity of the answers is measured.
    answers_before : dict or None
        Items of the evaluation of the model before; None where this is that one.
    judge : Judge or None
    """
    items = {name: [dict(item) for item in rows] for name, rows in evaluation["items"].items()}
    _add_fluency(items, before, tokenizer)
    if answers_before is not None:
        add_similarity(items, answers_before)
    if judge is not None:
        said = [item for name in SAID_SETS for item in items.get(name, [])]
        for item, verdict in zip(
            said, is_class(judge.encoder, judge.number, [item["generated"] for item in said]), strict=True
        ):
            item["harmful"] = verdict
    told = {} if judge is None else {"judge": judge.about()}
    return evaluation | {"items": items, "summary": summarise(items, None)} | told


def add_similarity(items: Mapping[str, list[dict[str, Any]]], before: Mapping[str, Any]) -> None:
    """Add how alike each answer to a question to keep is to the one that the model before gave (ROUGE-L F1)."""
    for name in SIMILAR_SETS:
        said = {item.get("id"): item.get("generated") for item in before.get(name, [])}
        for item in items.get(name, []):
            if (other := said.get(item["id"])) is not None:
                item["similarity"] = rouge_l_f1(item["generated"], other)


def _add_fluency(
    items: Mapping[str, list[dict[str, Any]]], before: torch.nn.Module, tokenizer: PreTrainedTokenizerBase
) -> None:
    """Add the nats of each answer that can be read, from its second token on, as plain text without its question."""
    rows = []
    for item in (item for name in SAID_SETS for item in items.get(name, []) if readable(item["generated"])):
        tokens = plain_ids(tokenizer, item["generated"])
        if len(tokens) > 1:
            rows.append((item, packed_row([Encoded(tokens[:1], tokens[1:])])))
    was_training = before.training
    before.eval()
    means = mean_logprobs(before, [row for _, row in rows], tokenizer.pad_token_id)
    before.train(was_training)
    for (item, row), mean in zip(rows, means, strict=True):
        item["said_tokens"] = len(row.answers[0])
        item["said_nats"] = -mean[0] * item["said_tokens"]


class Start:
    """The weights that a training is going to change, kept in main memory."""

    def __init__(self, model: torch.nn.Module) -> None:
        trained = ((name, p) for name, p in model.named_parameters() if p.requires_grad)
        self._kept: dict[str, Tensor] = {name: p.detach().to("cpu", copy=True) for name, p in trained}

    @contextmanager
    def again(self, model: torch.nn.Module) -> Iterator[None]:
        """Give the model these weights while the block runs."""
        now = {name: p for name, p in model.named_parameters() if name in self._kept}
        self._swap(now)
        try:
            yield
        finally:
            self._swap(now)

    def _swap(self, now: Mapping[str, Tensor]) -> None:
        with torch.no_grad():
            for name, weight in now.items():
                kept = self._kept[name].clone()
                self._kept[name].copy_(weight)
                weight.copy_(kept)
