"""One unlearning run from request to audit trail: read, evaluate, forget, evaluate again, save, report.

Every method shares it; a method only says how its trainer is made.
"""

import json
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass
from importlib import import_module
from os.path import isdir, isfile
from pathlib import Path
from typing import Any, NamedTuple

from peft import PeftModel
from transformers import PreTrainedTokenizerBase, set_seed

from amends.io.atomic import check_new, lock, new_folder, sha256_json, write_json, write_manifest, write_text
from amends.io.console import IS_FIRST_PROCESS, say
from amends.io.errors import InputError
from amends.io.run import describe, write_jsonl
from amends.io.tables import read_rows, rows_of
from amends.lm.callbacks import Bar
from amends.lm.load import Loaded, load, precision, prepare, save_model, shares_base, train_only, weights_sha256
from amends.lm.pairs import Pair, Pairs, read_pairs
from amends.lm.rows import context_limit, encode_rows, without_too_long
from amends.report.card import model_card
from amends.report.html import render_report
from amends.unlearn._beside import Judge, Start, load_judge, with_others
from amends.unlearn._evaluate import Suite, build_suite, evaluate, with_reference
from amends.unlearn._forget import ForgetConfig, ForgetTrainer, start_warnings
from amends.unlearn._ledger import READING, Entry, entry_of, parse, read_ledger, set_name, write_ledger
from amends.unlearn._neighbours import neighbours
from amends.unlearn._refusals import refusals
from amends.unlearn._request import Data, Request

NEIGHBOURS = "neighbours.jsonl"


@dataclass(frozen=True)
class Result:
    """What a run leaves in memory; the run folder holds the same."""

    model: Any
    tokenizer: PreTrainedTokenizerBase
    history: list[dict[str, Any]]
    """One entry a step: loss, v_f, and for FLAT v_e and the two weights."""
    evaluations: dict[str, dict[str, Any]]
    """before, after and reference, as in RUN/evaluation."""
    stopped: str
    out: Path | str | None


def run_unlearning(
    method: str,
    model: str | Path | Any,
    request: Request,
    trainer_class: Callable[..., ForgetTrainer],
    config_class: type[ForgetConfig],
    own: Mapping[str, Any] | None = None,
    *,
    templates: Sequence[str] | None = None,
    processing_class: PreTrainedTokenizerBase | None = None,
    recorded: Mapping[str, Any] | None = None,
) -> Result:
    """Carry out a request.

    Parameters
    ----------
    method : str
        Its name on the command line.
    model : str, Path or model
        What `amends.lm.load` takes, or a model that is loaded already (with `processing_class`).
    trainer_class : callable
        (model, args, train_dataset, processing_class, retain_dataset=, callbacks=) -> ForgetTrainer.
    config_class, own
        Class of the trainer's settings, and the method's own among them.
    templates : list of str, optional
        Answers that count as refusals in the evaluation, beside the general patterns; default: the built-in refusals,
        so that all methods are asked the same.
    recorded : dict
        Further options for run.json.

    Raises
    ------
    InputError : anything the user can mend. Until the training is over nothing but checkpoints is left behind, from
        which the same request goes on; from then on the model is kept, whatever happens to its evaluation or report.
    """
    if request.out is not None:
        check_new(request.out)
    if request.save_steps and request.out is None:
        raise InputError("--save-steps: checkpoints lie beside --out. Give both or none.")
    checkpoints = request.checkpoints
    resume = bool(checkpoints and checkpoints.is_dir())
    args = request.arguments(config_class, **(own or {}))
    check_evaluation(request)
    locked = lock(request.out) if request.out is not None and IS_FIRST_PROCESS else nullcontext()
    with locked, not_left_empty(checkpoints):
        started = time.time()
        set_seed(args.seed)
        say("reading the model and the data")
        ledger = read_ledger(model)
        loaded = model_for(model, processing_class)
        before_sha256 = weights_sha256(loaded.model)
        tokenizer = loaded.tokenizer
        limit = context_limit(loaded.model, args.max_length)
        forget = read_data(request.forget, request, tokenizer, limit)
        retain = read_data(request.retain, request, tokenizer, limit) if request.retain else None
        holdout = None if request.holdout is None else read_data(request.holdout, request, tokenizer, limit)
        like = None if request.forget_eval is None else read_data(request.forget_eval, request, tokenizer, limit)
        read = [forget, *filter(None, (retain, holdout, like))]
        encode_rows(tokenizer, [pair for p in read for pair in p.kept], limit)  # stop here, before the long part
        trained = [pair for p in (forget, retain) if p for pair in p.kept]
        for option, pairs in (("--holdout", holdout), ("--forget-eval", like)):
            if pairs:
                check_unseen(pairs, trained, option)
        judge = load_judge(request.judge, request.judge_label) if request.judge and request.judge_label else None
        earlier = earlier_requests(ledger, loaded, request, before_sha256)
        known = refusals() if templates is None else templates
        suite = None
        if request.eval_rows:
            suite = suite_of(request, forget, known, earlier.questions, holdout, like, tokenizer)
        for row in forget.dropped:
            say(f"left out {row.where}: {row.reason}")
        evaluations: dict[str, dict[str, Any]] = {}
        if suite is not None:
            loaded, evaluations = evaluate_before(model, loaded, suite, request, judge)
        data = {"forget": about(request.forget, forget)} | ({"retain": about(request.retain, retain)} if retain else {})
        data |= {"holdout": about(request.holdout, holdout)} if holdout else {}
        data |= {"forget_eval": about(request.forget_eval, like)} if like else {}
        own_answers: list[Pair] = []
        if request.neighbours:
            say("asking the model about others")
            own_answers = neighbours(loaded.model, tokenizer, forget.kept, request.neighbours, args.seed)
            data["neighbours"] = about(NEIGHBOURS, Pairs(own_answers))
        trainable = prepare(loaded, request.lora_rank)
        if request.layers is not None:
            train_only(trainable, request.layers)
        start = None if suite is None else Start(trainable)
        trainer = trainer_class(
            trainable,
            args,
            forget.kept,
            tokenizer,
            retain_dataset=retain.kept if retain else None,
            neighbours=own_answers,
            callbacks=[Bar("forgetting", "v_f")],
        )
        if trainer.is_fsdp_enabled:
            raise InputError(
                "FSDP: weights that are sharded over processes would be saved in part. Launch with DDP "
                "(examples/launch/ddp.yaml), or use the trainer in a script of your own."
            )
        config = request.config() | {"model": str(model) if isinstance(model, str | Path) else None}
        config |= dict(own or {}) | dict(recorded or {})
        trainer.request = (
            {name: value for name, value in config.items() if name not in ("out", "save_steps")}
            | {f"{name} data": told["sha256"] for name, told in data.items()}
            | {"templates' text": sha256_json(list(known)), "weights": before_sha256}
            | {"method": method, "precision": precision()}
        )
        say(f"forgetting {len(forget.kept)} answers by {method}")
        told = train(trainer, resume)
        say(f"stopped: {trainer.stopped}")
        seconds = {"until trained": round(time.time() - started, 1)}
        model_after = trainer.accelerator.unwrap_model(trainer.model).eval()
        failure: BaseException | None = None
        if suite is not None and start is not None:
            say("evaluating the model after")
            try:
                after = evaluate(model_after, tokenizer, suite, role="after", name=method)
                with start.again(model_after):
                    after = with_others(after, model_after, tokenizer, evaluations["before"]["items"], judge)
                reference = evaluations.get("reference")
                evaluations = {r: with_reference(e, reference) for r, e in {**evaluations, "after": after}.items()}
            except (Exception, KeyboardInterrupt) as error:
                failure = error
        seconds["in all"] = round(time.time() - started, 1)
        logged = [entry for entry in trainer.state.log_history if "mean_loss" in entry]
        # Sorted, for what comes from a checkpoint has another order.
        history = [{"step": e["step"]} | {k: e[k] for k in sorted(e) if k != "mean_loss"} for e in logged]
        result = Result(model_after, tokenizer, history, evaluations, trainer.stopped, request.out)
        if request.out is not None and trainer.is_world_process_zero():
            record = describe(
                command=f"unlearn {method}",
                method={"title": trainer.title, "how": how(trainer)},
                config=config,
                seed=args.seed,
                data=data | ({"earlier": earlier.requests} if ledger else {}),
                weights={"before": before_sha256, "after": weights_sha256(model_after)},
                start=trainer.start,
                stopped=trainer.stopped,
                warnings=earlier.warnings + trainer.resumed + told,
                seconds=seconds,
            )
            failure = write_run(result, record, forget, own_answers, loaded.base) or failure
            if checkpoints:
                shutil.rmtree(checkpoints)
            if failure is None:
                say(f"done: {Path(request.out) / 'report.html'}")
            else:
                say(f"the model is kept in {request.out}, but the run did not end well")
        if failure is not None:
            raise failure
        return result


def how(trainer: ForgetTrainer) -> str:
    """Say in a sentence what a method does: the first one below the help text of its module."""
    told = (import_module(type(trainer).__module__).__doc__ or "").partition("\n\n")[2]
    return " ".join(told.split()).partition(". ")[0].rstrip(".") + "."


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


def check_evaluation(request: Request) -> None:
    """Refuse options of an evaluation that would be ignored."""
    for option in ("reference", "holdout", "forget_eval", "judge"):
        if getattr(request, option) is not None and not request.eval_rows:
            name = f"--{option.replace('_', '-')}"
            raise InputError(f"{name}: nothing is compared with it when --eval-rows is 0. Leave one of them out.")
    if (request.judge is None) != (request.judge_label is None):
        raise InputError("--judge and --judge-label go together: give both or neither.")


@contextmanager
def not_left_empty(folder: Path | None) -> Iterator[None]:
    """Remove a folder at the end if nothing is in it."""
    try:
        yield
    finally:
        with suppress(OSError):  # not empty, or not there
            if folder and IS_FIRST_PROCESS:
                folder.rmdir()


def train(trainer: ForgetTrainer, resume: bool) -> list[str]:
    """Train, and tell the warnings about the start in the house's form.

    Returns
    -------
    list of str : these warnings.
    """
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", UserWarning)
        trainer.train(resume_from_checkpoint=resume)
    told = start_warnings(trainer.start)
    for text in told:
        say(f"warning: {text}")
    for other in caught:
        if str(other.message) not in told:
            warnings.warn_explicit(other.message, other.category, other.filename, other.lineno)
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


def model_for(model: str | Path | Any, tokenizer: PreTrainedTokenizerBase | None) -> Loaded:
    """Load a model by name, or take one that is loaded already."""
    if isinstance(model, str | Path):
        loaded = load(model, trainable=True)
        return loaded if tokenizer is None else loaded._replace(tokenizer=tokenizer)
    if tokenizer is None:
        raise InputError("processing_class: pass the tokenizer along with a model that is loaded already.")
    inner: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    name = str(inner.config.name_or_path or type(inner).__name__)
    return Loaded(model, tokenizer, name, name)


def read_data(source: Data, request: Request, tokenizer: PreTrainedTokenizerBase, limit: int) -> Pairs:
    """Pairs from a file or from dictionaries; with skip_bad_rows, without those of more than `limit` tokens."""
    rows = read_rows(source) if isinstance(source, str | Path) else rows_of(source)
    pairs = read_pairs(
        rows,
        question_column=request.question_column,
        answer_column=request.answer_column,
        skip_bad_rows=request.skip_bad_rows,
        tokenizer=tokenizer,
        prefix_tokens=request.prefix_tokens,
        continuation_tokens=request.continuation_tokens,
    )
    return without_too_long(pairs, tokenizer, limit) if request.skip_bad_rows else pairs


def check_unseen(unseen: Pairs, trained: Sequence[Pair], option: str = "--holdout") -> None:
    """Refuse rows to measure with that are among those of the training.

    Raises
    ------
    InputError : names the first.
    """
    trained_where = {record_sha256(pair): pair.where for pair in trained}
    seen = [(pair.where, there) for pair in unseen.kept if (there := trained_where.get(record_sha256(pair)))]
    if seen:
        where, there = seen[0]
        give = "Give rows that no model saw." if option == "--holdout" else "Give other rows."
        raise InputError(
            f"{where}: the same row as {there} ({len(seen)} of {len(unseen.kept)} rows of {option} are among those "
            f"to forget or to keep). {give}"
        )


class Earlier(NamedTuple):
    """What is known of the requests that a model's ledger lists."""

    requests: list[dict[str, Any]]
    """The ledger's entries, each with "left_out": why it is not asked again, or None."""
    questions: dict[str, list[Pair]]
    warnings: list[str]


def earlier_requests(ledger: Sequence[Entry], loaded: Loaded, request: Request, weights: str) -> Earlier:
    """Read what earlier requests forgot, to ask it again, and say of which that cannot be done.

    weights : str
        Digest of the model as it is, which should be what the last of them left.
    """
    found = Earlier([], {}, [])
    if ledger and ledger[-1].weights["after"] != weights:
        found.warnings.append(
            "The weights of the model are not those that its last request left, by its ledger: they were changed "
            "since then."
        )
    for number, entry in enumerate(ledger, 1):
        left_out = None if request.eval_rows else "this run is without an evaluation (--eval-rows 0)."
        if left_out is None:
            try:
                found.questions[set_name(number)] = read_earlier(entry, loaded).kept
            except InputError as error:
                left_out = str(error)
                found.warnings.append(f"earlier request {number} is not asked again: {left_out}")
        found.requests.append(asdict(entry) | {"left_out": left_out})
    for text in found.warnings:
        say(f"warning: {text}")
    return found


def read_earlier(entry: Entry, loaded: Loaded) -> Pairs:
    """Read again the pairs that an earlier request forgot.

    Raises
    ------
    InputError : they are not there any more, or others are in their place.
    """
    path, digest = entry.forget["path"], entry.forget["sha256"]
    if path is None:
        raise InputError("its data were given from Python, so they are not stored anywhere.")
    if not (isfile(path) or isdir(path)):  # nor a pipe: the ledger may come from anywhere
        raise InputError(f"{path}: no such file or folder any more.")
    options = {name: entry.forget[name] for name in READING}
    request = Request(forget=path, **options)
    pairs = read_data(path, request, loaded.tokenizer, context_limit(loaded.model, request.max_length))
    if about(path, pairs)["sha256"] != digest:
        raise InputError(f"{path}: other rows than those that were forgotten (SHA-256 differs).")
    return pairs


def ledger_of(record: Mapping[str, Any], after: Mapping[str, Any] | None) -> list[Entry]:
    """Put the ledger of a run's model together from the run's record and its evaluation of the model after."""
    earlier = [parse({k: v for k, v in e.items() if k != "left_out"}) for e in record["data"].get("earlier", [])]
    return [*earlier, entry_of(record, after, earlier[-1] if earlier else None)]


def suite_of(
    request: Request,
    forget: Pairs,
    templates: Sequence[str],
    earlier: Mapping[str, Sequence[Pair]] | None = None,
    holdout: Pairs | None = None,
    forget_eval: Pairs | None = None,
    tokenizer: PreTrainedTokenizerBase | None = None,
) -> Suite:
    """Build what the models of this run are asked."""
    sets = {"retain": request.retain_eval, "real_authors": request.real_authors, "world_facts": request.world_facts}
    return build_suite(
        forget.kept,
        sets,
        templates,
        rows=request.eval_rows,
        earlier=earlier,
        holdout=holdout.kept if holdout else [],
        forget_eval=forget_eval.kept if forget_eval else [],
        tokenizer=tokenizer,
        cut=(request.prefix_tokens, request.continuation_tokens),
    )


def evaluate_or_reuse(loaded: Loaded, suite: Suite, role: str, folder: Path | str | None) -> dict[str, Any]:
    """Evaluate, unless `folder` holds the evaluation of exactly these weights and questions at this precision."""
    file = Path(folder) / f"{role}.json" if folder else None
    if file and file.exists():
        try:
            recorded: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
            asked = (weights_sha256(loaded.model), suite.sha256(), precision())
            same = (recorded["weights"], recorded["suite"], recorded["precision"]) == asked
        except (UnicodeDecodeError, json.JSONDecodeError, KeyError) as error:
            raise InputError(
                f"{file}: not an evaluation ({error}). Leave --evaluations out to evaluate anew."
            ) from None
        if same:
            say(f"same weights and questions as recorded in {file}: taken from there")
            return recorded
        say(f"{file} is of other weights, questions or precision: evaluating anew")
    return evaluate(loaded.model, loaded.tokenizer, suite, role=role, name=loaded.name)


def about(source: Data | None, pairs: Pairs | None) -> dict[str, Any]:
    """Describe a data set for run.json."""
    assert pairs is not None
    return {
        "path": str(source) if isinstance(source, str | Path) else None,
        "rows": pairs.num_rows,
        "kept": len(pairs.kept),
        "dropped": [row._asdict() for row in pairs.dropped],
        "sha256": sha256_json([record_sha256(p) for p in pairs.kept]),
    }


def record_sha256(pair: Any) -> str:
    """Digest of one record: its prompt and answer, not its place."""
    return sha256_json({"prompt": pair.prompt, "answer": pair.answer})
