"""One unlearning run from request to audit trail: read, evaluate, forget, evaluate again, save, report.

Every method shares it; a method only says how its trainer is made.
"""

import time
import warnings
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple

from peft import PeftModel
from transformers import PreTrainedTokenizerBase, set_seed

from amends.evaluation.beside import Judge, Start, load_judge
from amends.evaluation.evaluate import Suite
from amends.io.atomic import check_new, lock, new_folder, sha256_json, write_json, write_manifest, write_text
from amends.io.console import IS_FIRST_PROCESS, say
from amends.io.errors import InputError
from amends.io.run import describe, told, write_jsonl
from amends.lm.callbacks import Bar
from amends.lm.checkpoint import not_left_empty, remove_all
from amends.lm.config import check_layers, train_only
from amends.lm.load import Loaded, precision, prepare, rank_to_train, save_model, weights_sha256
from amends.lm.pairs import Pair, Pairs
from amends.lm.turns import model_for
from amends.report.card import model_card
from amends.report.unlearning import render_report
from amends.unlearn._compare import SAME_WEIGHTS, check_evaluation, evaluate_after, evaluate_before, suite_of
from amends.unlearn._config import ForgetConfig
from amends.unlearn._earlier import Earlier, check_not_forgotten, earlier_requests, ledger_of
from amends.unlearn._forget import ForgetTrainer, StartWarning
from amends.unlearn._ledger import read_ledger, write_ledger
from amends.unlearn._neighbours import neighbours
from amends.unlearn._read import Rows, about, read_request, read_templates, record_sha256, templates_of
from amends.unlearn._request import Data, Request

NEIGHBOURS = "neighbours.jsonl"
EARLIER_TURNS = (
    "{count} rows to forget, {where} the first, have answers in earlier turns of their conversation: those are read as "
    "what was said, and only the last one is forgotten. Give a row for each turn that is to be forgotten."
)
TRAINED_AND_ASKED = (
    "{both} of {count} rows of --retain-eval are among those of --retain, on which the model is trained: what is "
    "measured of them says less of rows that it is not trained on."
)
OTHER_FORM = (
    "Rows to forget and rows to keep are of different forms, questions and plain text: the model may learn to tell "
    "them apart by that alone. Give rows to keep of the same form."
)


@dataclass(frozen=True)
class Result:
    """What a run leaves in memory; the run folder holds the same."""

    model: Any = field(repr=False)
    tokenizer: PreTrainedTokenizerBase = field(repr=False)
    history: list[dict[str, Any]] = field(repr=False)
    """One entry a step: loss, v_f or v_e where the loss sees them, and for FLAT the two weights."""
    evaluations: dict[str, dict[str, Any]] = field(repr=False)
    """before, after and reference, as in RUN/evaluation."""
    stopped: str
    out: Path | str | None
    warnings: list[str] = field(default_factory=list)
    """What was warned of, as in run.json."""


def run_unlearning(
    trainer_class: type[ForgetTrainer],
    model: str | Path | Any,
    request: Request,
    own: Mapping[str, Any],
    *,
    templates: Data | Sequence[str] | None = None,
    processing_class: PreTrainedTokenizerBase | None = None,
) -> Result:
    """Carry out a request.

    Parameters
    ----------
    trainer_class : subclass of ForgetTrainer
        The method.
    model : str, Path or model
        What `amends.lm.load` takes, or a model that is loaded already (with `processing_class`).
    own : dict
        The method's own settings.
    templates : path or list, optional
        As `read_templates` takes them, for a method that has them: answers to give instead, which count as refusals in
        the evaluation beside the general patterns. Default: the built-in refusals, so that all methods are asked the
        same.

    Raises
    ------
    InputError : anything the user can mend. Until the training is over nothing but checkpoints is left behind, from
        which the same request goes on; from then on the model is kept, whatever happens to its evaluation or report.
    """
    method = trainer_class.method_name()
    args = checked(trainer_class, request, own)
    known = read_templates(templates)
    of_trainer = None if templates is None else known
    templates_of(of_trainer, trainer_class.title, trainer_class.takes_templates)
    given = {"model": model, **own} | ({"templates": templates} if trainer_class.takes_templates else {})
    config = request.config() | {name: told(value) for name, value in given.items()}
    checkpoints = request.checkpoints
    resume = bool(checkpoints and checkpoints.is_dir())
    locked = lock(request.out) if request.out is not None and IS_FIRST_PROCESS else nullcontext()
    with locked, not_left_empty(checkpoints):
        started = time.time()
        set_seed(args.seed)
        read = read_inputs(trainer_class, model, request, known, processing_class)
        config["lora_rank"] = read.rank
        data = read.rows.about(request)
        forget, tokenizer = read.rows.forget.kept, read.loaded.tokenizer
        own_answers: list[Pair] = []
        if request.neighbours:
            say("asking the model about others")
            own_answers = neighbours(read.loaded.model, tokenizer, forget, request.neighbours, args.seed)
            data["neighbours"] = about(NEIGHBOURS, Pairs(own_answers))
        trainable = prepare(read.loaded, read.rank)
        if request.layers is not None:
            train_only(trainable, request.layers)
        start = None if read.suite is None else Start(trainable)
        trainer = trainer_class(
            trainable,
            args,
            forget,
            tokenizer,
            retain_dataset=read.rows.retain.kept if read.rows.retain else None,
            neighbours=own_answers,
            templates=of_trainer,
            callbacks=[Bar("forgetting", "v_f", "v_e")],
        )
        trainer.request = asked(config, data) | {
            "templates' text": sha256_json(list(known)),
            "weights": read.weights,
            "method": method,
            "precision": precision(),
            **trainer.own_request,
        }
        say(f"forgetting {len(forget)} answers by {method}")
        at_start = train(trainer, resume)
        say(f"stopped: {trainer.stopped}")
        seconds = {"until trained": round(time.time() - started, 1)}
        model_after, evaluations = trainer.trained_model(), read.evaluations
        failure: BaseException | None = None
        if read.suite is not None and start is not None:
            try:
                evaluations = evaluate_after(model_after, tokenizer, read.suite, evaluations, start, method, read.judge)
            except (Exception, KeyboardInterrupt) as error:
                failure = error
        seconds["in all"] = round(time.time() - started, 1)
        warned = read.warnings + trainer.resumed + at_start
        result = Result(model_after, tokenizer, history(trainer), evaluations, trainer.stopped, request.out, warned)
        if request.out is not None and trainer.is_world_process_zero():
            record = describe(
                command=f"unlearn {method}",
                method={"title": trainer.title, "how": how(trainer)},
                config=config,
                seed=args.seed,
                data=data | ({"earlier": read.earlier.requests} if read.earlier.requests else {}),
                weights={"before": read.weights, "after": weights_sha256(model_after)},
                start=trainer.start,
                stopped=trainer.stopped,
                warnings=warned,
                seconds=seconds,
            )
            failure = write_run(result, record, read.rows.forget, own_answers, read.loaded.base) or failure
            remove_all(checkpoints)
            if failure is None:
                say(f"done: {Path(request.out) / 'report.html'}")
            else:
                say(f"the model is kept in {request.out}, but the run did not end well")
        if failure is not None:
            raise failure
        return result


class Inputs(NamedTuple):
    """What a run has read, and measured of the model before it."""

    loaded: Loaded
    weights: str
    """Digest of the model before."""
    rank: int
    """LoRA rank to train; 0: all weights."""
    rows: Rows
    earlier: Earlier
    judge: Judge | None
    suite: Suite | None
    """What the models are asked; None: nothing."""
    evaluations: dict[str, dict[str, Any]]
    """before, and reference where there is one."""
    warnings: list[str]


def read_inputs(
    trainer_class: type[ForgetTrainer],
    model: str | Path | Any,
    request: Request,
    templates: Sequence[str],
    processing_class: PreTrainedTokenizerBase | None,
) -> Inputs:
    """Read the model and the rows of a request, look that they go together, and evaluate the model as it is.

    Raises
    ------
    InputError
    """
    say("reading the model and the data")
    ledger = read_ledger(model)
    loaded = model_for(model, processing_class)
    rank = rank_to_train(loaded, request.lora_rank)
    if request.layers is not None:
        check_layers(request.layers, loaded.model.config.get_text_config().num_hidden_layers)
    weights = weights_sha256(loaded.model)
    rows = read_request(request, loaded)
    judge = load_judge(request.judge, request.judge_label) if request.judge and request.judge_label else None
    earlier = earlier_requests(ledger, loaded, request, weights)
    check_not_forgotten(rows, earlier.forgotten)
    if trainer_class.takes_templates and (among := [p.where for p in rows.forget.kept if p.answer in templates]):
        raise InputError(f"templates: the answer to forget of {among[0]} is among them. Give others in its place.")
    for row in (row for pairs in rows.given().values() for row in pairs.dropped):
        say(f"left out {row.where}: {row.reason}")
    suite: Suite | None = None
    evaluations: dict[str, dict[str, Any]] = {}
    if request.eval_rows:
        suite = suite_of(request, rows, templates, loaded.tokenizer, earlier.questions)
        loaded, evaluations = evaluate_before(model, loaded, suite, request, judge)
    odd = warnings_of(rows, evaluations.get("reference"), weights)
    for text in odd:
        say(f"warning: {text}")
    return Inputs(loaded, weights, rank, rows, earlier, judge, suite, evaluations, [*earlier.warnings, *odd])


def warnings_of(rows: Rows, reference: Mapping[str, Any] | None, before_sha256: str) -> list[str]:
    """Say what is odd about the rows and the reference of a run, though it can be carried out.

    Parameters
    ----------
    reference : dict, optional
        Evaluation of the retrained reference.
    before_sha256 : str
        Digest of the model before.
    """
    found, forget = [], rows.forget.kept
    if several := [pair for pair in forget if pair.answers_before]:
        found.append(EARLIER_TURNS.format(count=len(several), where=several[0].where))
    if rows.retain and {p.is_text for p in forget} != {p.is_text for p in rows.retain.kept}:
        found.append(OTHER_FORM)
    if rows.retain and rows.retain_eval:
        trained = {record_sha256(p) for p in rows.retain.kept}
        if both := sum(record_sha256(p) in trained for p in rows.retain_eval.kept):
            found.append(TRAINED_AND_ASKED.format(both=both, count=len(rows.retain_eval.kept)))
    if reference is not None and reference["weights"] == before_sha256:
        found.append(SAME_WEIGHTS)
    return found


def checked(trainer_class: type[ForgetTrainer], request: Request, own: Mapping[str, Any]) -> ForgetConfig:
    """Make the settings of a training, and refuse a request that cannot be carried out, before anything is read.

    Raises
    ------
    InputError
    """
    if request.out is not None:
        check_new(request.out)
    if request.save_steps and request.out is None:
        raise InputError("--save-steps: checkpoints lie beside --out. Give both or none.")
    check_evaluation(request)
    keeps = request.retain is not None or request.neighbours > 0
    if request.optimizer == "muon" and request.lora_rank == 0:
        raise InputError("--optimizer muon: it moves matrices only. Train an adapter (--lora-rank), or choose adamw.")
    args = request.arguments(trainer_class.config_class(), **own)
    trainer_class.check(args, keeps=keeps)
    return args


def asked(config: Mapping[str, Any], data: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """List what must be the same for a run to go on from a checkpoint: the options that matter, and the rows."""
    options = {name: value for name, value in config.items() if name not in ("out", "save_steps")}
    return options | {f"{name} data": rows["sha256"] for name, rows in data.items()}


def history(trainer: ForgetTrainer) -> list[dict[str, Any]]:
    """List what was logged of every step, sorted by name: what comes from a checkpoint has another order."""
    logged = [entry for entry in trainer.state.log_history if "mean_loss" in entry]
    return [{"step": e["step"]} | {k: e[k] for k in sorted(e) if k != "mean_loss"} for e in logged]


def how(trainer: ForgetTrainer) -> str:
    """Say in a sentence what a method does: the first one below the help text of its module."""
    told = (import_module(type(trainer).__module__).__doc__ or "").partition("\n\n")[2]
    return " ".join(told.split()).partition(". ")[0].rstrip(".") + "."


def train(trainer: ForgetTrainer, resume: bool) -> list[str]:
    """Train, and tell the warnings about the start in the house's form, before the first step.

    Returns
    -------
    list of str : these warnings.
    """
    told: list[str] = []
    with warnings.catch_warnings():
        show = warnings.showwarning
        warnings.filterwarnings("always", category=StartWarning)

        def at_once(message: Warning | str, *where: Any, **how: Any) -> None:
            if isinstance(message, StartWarning):
                told.append(str(message))
                say(f"warning: {message}")
            else:
                show(message, *where, **how)

        warnings.showwarning = at_once
        trainer.train(resume_from_checkpoint=resume)
    return told


def write_run(
    result: Result, record: dict[str, Any], forget: Pairs, own_answers: Sequence[Pair], base: str
) -> Exception | None:
    """Write the run folder in one move.

    Returns
    -------
    What kept the report from being written, if anything did: the model in the folder is worth more than its report.
    """
    assert result.out is not None
    failure = None
    with new_folder(result.out) as folder:
        write_json(folder / "run.json", record)
        write_jsonl(
            folder / "forget.jsonl", ({"id": p.id, "where": p.where, "sha256": record_sha256(p)} for p in forget.kept)
        )
        if own_answers:
            write_jsonl(folder / NEIGHBOURS, ({"prompt": p.prompt, "answer": p.answer} for p in own_answers))
        write_jsonl(folder / "history.jsonl", result.history)
        for role, evaluation in result.evaluations.items():
            write_json(folder / "evaluation" / f"{role}.json", evaluation)
        save_model(result.model, result.tokenizer, folder / "model", base)
        write_ledger(folder / "model", ledger_of(record, result.evaluations.get("after")))
        summaries = {role: e["summary"] for role, e in result.evaluations.items()}
        is_adapter = isinstance(result.model, PeftModel)
        try:
            write_text(folder / "model" / "README.md", model_card(record, summaries, base, is_adapter))
            write_text(folder / "report.html", render_report(folder))
        except Exception as error:
            failure = error
        write_manifest(folder)
    return failure
