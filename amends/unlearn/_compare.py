"""What a run measures: the model before, the model after, and the retrained reference, asked the same."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from amends.evaluation.beside import Judge, Start, with_others
from amends.evaluation.evaluate import Suite, build_suite, evaluate, with_reference
from amends.io.console import say
from amends.io.errors import InputError
from amends.lm.load import Loaded, load, precision, shares_base, weights_sha256
from amends.lm.pairs import Pair
from amends.unlearn._read import QUESTIONS, Rows
from amends.unlearn._request import Request

SAME_WEIGHTS = (
    "The reference has the weights of the model before, so it saw what is to be forgotten: nothing that is said beside "
    "it holds. Give a model that was trained without those rows."
)
ASKED_WITH = ("reference", "evaluations", "judge", "forget_eval", "holdout", *QUESTIONS.values())
"""Options that an evaluation alone has a use for."""


def check_evaluation(request: Request) -> None:
    """Refuse options of an evaluation that would be ignored."""
    for option in ASKED_WITH:
        if getattr(request, option) is not None and not request.eval_rows:
            name = f"--{option.replace('_', '-')}"
            raise InputError(f"{name}: nothing is evaluated when --eval-rows is 0. Leave one of them out.")
    if (request.judge is None) != (request.judge_label is None):
        raise InputError("--judge and --judge-label go together: give both or neither.")
    if (folder := request.evaluations) is not None:
        if not Path(folder).is_dir():
            raise InputError(f"--evaluations {folder}: no such folder. Leave it out to evaluate anew.")
        if not any((Path(folder) / f"{role}.json").exists() for role in ("before", "reference")):
            raise InputError(f"--evaluations {folder}: neither before.json nor reference.json is there. Leave it out.")


def suite_of(
    request: Request,
    rows: Rows,
    templates: Sequence[str],
    tokenizer: PreTrainedTokenizerBase,
    earlier: Mapping[str, Sequence[Pair]] | None = None,
) -> Suite:
    """Build what the models of a run are asked: its rows, and those of `earlier` requests on the same model."""
    given = {option: pairs.kept for option, pairs in rows.given().items()}
    suite = build_suite(
        rows.forget.kept,
        {name: given[option] for name, option in QUESTIONS.items() if option in given},
        templates,
        rows=request.eval_rows,
        earlier=earlier,
        holdout=given.get("holdout", ()),
        forget_eval=given.get("forget_eval", ()),
    )
    return suite.with_room(tokenizer)


def evaluate_before(
    model: str | Path | Any, loaded: Loaded, suite: Suite, request: Request, judge: Judge | None = None
) -> tuple[Loaded, dict[str, dict[str, Any]]]:
    """Evaluate the retrained reference, if one is named, and the model as it is.

    Returns
    -------
    The model, which takes turns with the reference on their common base where they are adapters; the evaluations.
    """
    evaluations = {}
    if request.reference is not None:
        say(f"evaluating the retrained reference {request.reference}")
        takes_turns = isinstance(model, str | Path) and shares_base(loaded, request.reference)
        reference = load(request.reference, instead_of=loaded if takes_turns else None)
        evaluations["reference"] = evaluate_or_reuse(reference, suite, "reference", request.evaluations)
        if takes_turns:
            loaded = load(str(model), trainable=True, instead_of=reference)._replace(tokenizer=loaded.tokenizer)
        del reference
    say("evaluating the model before")
    before = evaluations["before"] = evaluate_or_reuse(loaded, suite, "before", request.evaluations)
    told = {
        role: with_others(found, loaded.model, loaded.tokenizer, None if role == "before" else before["items"], judge)
        for role, found in evaluations.items()
    }
    return loaded, told


def evaluate_after(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    suite: Suite,
    evaluations: Mapping[str, dict[str, Any]],
    start: Start,
    name: str,
    judge: Judge | None = None,
) -> dict[str, dict[str, Any]]:
    """Evaluate the model after, and set it and `evaluations`, those before, beside the reference's if it is there."""
    say("evaluating the model after")
    after = evaluate(model, tokenizer, suite, role="after", name=name)
    with start.again(model):
        after = with_others(after, model, tokenizer, evaluations["before"]["items"], judge)
    reference = evaluations.get("reference")
    return {role: with_reference(e, reference) for role, e in {**evaluations, "after": after}.items()}


def evaluate_or_reuse(loaded: Loaded, suite: Suite, role: str, folder: Path | str | None) -> dict[str, Any]:
    """Evaluate, unless `folder` holds the evaluation of exactly these weights and questions at this precision."""
    file = Path(folder) / f"{role}.json" if folder else None
    if file and file.exists():
        try:
            recorded: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            asked = (weights_sha256(loaded.model), suite.sha256(), precision())
            same = (recorded["weights"], recorded["suite"], recorded["precision"]) == asked
        except (UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError, OSError) as error:
            raise InputError(
                f"{file}: not an evaluation ({error}). Leave --evaluations out to evaluate anew."
            ) from None
        if same:
            say(f"same weights and questions as recorded in {file}: taken from there")
            return recorded
        say(f"{file} is of other weights, questions or precision: evaluating anew")
    return evaluate(loaded.model, loaded.tokenizer, suite, role=role, name=loaded.name)
