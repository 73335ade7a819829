"""One unlearning run from request to audit trail: read, evaluate, forget, evaluate again, save, report.

Every method shares it; a method only says how its trainer is made.
"""

import json
import os
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer
from peft import PeftModel
from rich.console import Console
from transformers import PreTrainedTokenizerBase, set_seed

from amends.io.atomic import check_new, lock, new_folder, sha256_json, write_json, write_manifest, write_text
from amends.io.errors import InputError
from amends.io.run import describe, write_jsonl
from amends.io.tables import read_rows
from amends.lm.load import Loaded, add_lora, load, precision, save_model, weights_sha256
from amends.lm.pairs import Pairs, read_pairs, rows_of
from amends.lm.trainer import Bar, training_arguments
from amends.report.card import model_card
from amends.report.html import render_report
from amends.unlearn._evaluate import Suite, build_suite, evaluate, with_reference
from amends.unlearn._forget import (
    ForgetConfig,
    ForgetTrainer,
    context_limit,
    encode_rows,
    start_warnings,
    without_too_long,
)

console = Console(stderr=True)
Config = TypeVar("Config", bound=ForgetConfig)
Data = str | Path | Sequence[Mapping[str, Any]]
DATA_OPTIONS = ("forget", "retain", "retain_eval", "real_authors", "world_facts")
HISTORY = ("step", "epoch", "loss", "v_e", "v_f", "weight_e", "weight_f", "retain_nll", "learning_rate", "grad_norm")

# The options that all methods share, each described once.
ModelOption = Annotated[
    str, typer.Option(help="Hub id, model folder, PEFT adapter folder, .gguf file, or package:NAME/FILE.")
]
ForgetOption = Annotated[
    str, typer.Option(help="What to forget: .jsonl, .json, .csv, .parquet, .txt or a datasets folder.")
]
OutOption = Annotated[Path, typer.Option(help="Run folder to make; must not exist.")]
RetainOption = Annotated[str | None, typer.Option(help="Rows to keep, as one extra loss term.")]
RetainWeightOption = Annotated[float, typer.Option(help="Weight of that term.", min=0)]
ReferenceOption = Annotated[str | None, typer.Option(help="Model retrained without the forget data, to compare with.")]
RetainEvalOption = Annotated[
    str | None, typer.Option(help="Questions of the same kind that should be answered as before.")
]
RealAuthorsOption = Annotated[str | None, typer.Option(help="TOFU's real-author questions.")]
WorldFactsOption = Annotated[str | None, typer.Option(help="TOFU's world-fact questions.")]
EvaluationsOption = Annotated[
    Path | None,
    typer.Option(help="Folder with before.json and reference.json of the same models and questions, to reuse."),
]
QuestionColumnOption = Annotated[str | None, typer.Option(help="Column of the question, if it has another name.")]
AnswerColumnOption = Annotated[str | None, typer.Option(help="Column of the answer, if it has another name.")]
SkipOption = Annotated[bool, typer.Option(help="Leave faulty rows out and count them, instead of stopping.")]
PrefixOption = Annotated[int, typer.Option(help="Plain text: tokens of each prefix.", min=1)]
ContinuationOption = Annotated[int, typer.Option(help="Plain text: tokens of each continuation to forget.", min=1)]
MaxLengthOption = Annotated[int, typer.Option(help="Most tokens of a prompt with one answer.", min=2)]
RankOption = Annotated[
    int, typer.Option(help="LoRA rank; 0 tunes all weights. An adapter that is given goes on training.", min=0)
]
RateOption = Annotated[float, typer.Option(help="Learning rate.", min=0)]
EpochsOption = Annotated[float, typer.Option(help="Passes over the forget data, at most.", min=0)]
BatchOption = Annotated[int, typer.Option(help="Forget rows per device and step.", min=1)]
AccumulationOption = Annotated[int, typer.Option(help="Batches summed up before each step.", min=1)]
StopOption = Annotated[
    float | None,
    typer.Option(help="Stop when the forget answers' mean token probability is at most this.", min=0, max=1),
]
EvalRowsOption = Annotated[int, typer.Option(help="Most questions of each set to keep; 0 evaluates nothing.", min=0)]
SeedOption = Annotated[int, typer.Option(help="Seed of every random choice.")]


@dataclass(frozen=True)
class Request:
    """What a run is asked to do, beside the settings of its training."""

    forget: Data
    out: Path | None
    retain: Data | None = None
    reference: str | None = None
    retain_eval: Data | None = None
    real_authors: Data | None = None
    world_facts: Data | None = None
    evaluations: Path | None = None
    question_column: str | None = None
    answer_column: str | None = None
    skip_bad_rows: bool = False
    prefix_tokens: int = 100
    continuation_tokens: int = 100
    lora_rank: int = 16
    eval_rows: int = 100


def request_of(options: Mapping[str, Any]) -> Request:
    """The request among the options of a method, or among the "config" that run.json keeps of them."""
    given = {field.name: options[field.name] for field in fields(Request)}
    paths = {name: Path(given[name]) for name in ("out", "evaluations") if given[name] is not None}
    return Request(**given | paths)


def recorded(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as run.json keeps them: paths as text, of rows given from Python their number, of a model nothing."""
    kept = {name: str(value) if isinstance(value, Path) else value for name, value in options.items()}
    for name in DATA_OPTIONS:
        if name in kept and isinstance(kept[name], Sequence) and not isinstance(kept[name], str):
            kept[name] = {"rows": len(kept[name])}
    return kept | {"model": kept["model"] if isinstance(kept["model"], str) else None}


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
    out: Path | None


def configure(cls: type[Config], options: Mapping[str, Any], **own: Any) -> Config:
    """Training settings: the options that all methods share, a method's own, and the house's defaults.

    The trainer itself writes nothing.
    """
    return training_arguments(
        cls,
        ".",  # made if it is not there; nothing is written to it
        retain_weight=options["retain_weight"],
        stop_v_f=options["stop_v_f"],
        learning_rate=options["learning_rate"],
        num_train_epochs=options["epochs"],
        per_device_train_batch_size=options["batch_size"],
        per_device_eval_batch_size=16,
        gradient_accumulation_steps=options["accumulation"],
        max_length=options["max_length"],
        seed=options["seed"],
        disable_tqdm=True,
        **own,
    )


def run_unlearning(
    method: str,
    model: str | Path | Any,
    request: Request,
    args: ForgetConfig,
    make_trainer: Callable[..., ForgetTrainer],
    *,
    templates: Sequence[str] = (),
    processing_class: PreTrainedTokenizerBase | None = None,
    options: Mapping[str, Any],
) -> Result:
    """Carry out a request.

    Parameters
    ----------
    method : str
        Its name on the command line.
    model : str, Path or model
        What `amends.lm.load` takes, or a model that is loaded already (with `processing_class`).
    make_trainer : callable
        (model, args, train_dataset, processing_class, retain_dataset=, callbacks=) -> ForgetTrainer.
    templates : list of str
        Answers that count as refusals in the evaluation, beside the general patterns.
    options : dict
        Everything that was asked for, as run.json and `amends verify` need it.

    Raises
    ------
    InputError : anything the user can mend; nothing is left behind.
    """
    if request.out is not None:
        check_new(request.out)
    is_main = os.environ.get("RANK", "0") == "0"
    with lock(request.out) if request.out is not None and is_main else nullcontext():
        started = time.time()
        set_seed(args.seed)
        say("reading the model and the data")
        loaded = model_for(model, processing_class)
        before_sha256 = weights_sha256(loaded.model)
        tokenizer = loaded.tokenizer
        limit = context_limit(loaded.model, args.max_length)
        forget = read_data(request.forget, request, tokenizer, limit)
        retain = read_data(request.retain, request, tokenizer, limit) if request.retain else None
        encode_rows(
            tokenizer, [*forget.kept, *(retain.kept if retain else [])], limit
        )  # stop here, before the long part
        suite = suite_of(request, forget, templates) if request.eval_rows else None
        for row in forget.dropped:
            say(f"left out {row.where}: {row.reason}")
        evaluations: dict[str, dict[str, Any]] = {}
        if suite is not None:
            if request.reference is not None:
                say(f"evaluating the retrained reference {request.reference}")
                reference = load(request.reference)
                evaluations["reference"] = evaluate_or_reuse(reference, suite, "reference", request.evaluations)
                del reference
            say("evaluating the model before")
            evaluations["before"] = evaluate_or_reuse(loaded, suite, "before", request.evaluations)
        trainable = prepare(loaded, request.lora_rank)
        trainer = make_trainer(
            trainable,
            args,
            forget.kept,
            tokenizer,
            retain_dataset=retain.kept if retain else None,
            callbacks=[Bar("forgetting", "v_f", console)],
        )
        say(f"forgetting {len(forget.kept)} answers by {method}")
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", UserWarning)
            trainer.train()
        told = start_warnings(trainer.start)
        for text in told:
            say(f"warning: {text}")
        for other in caught:
            if str(other.message) not in told:
                warnings.warn_explicit(other.message, other.category, other.filename, other.lineno)
        say(f"stopped: {trainer.stopped}")
        trained_s = time.time() - started
        model_after = trainer.accelerator.unwrap_model(trainer.model).eval()
        history = [{k: e[k] for k in HISTORY if k in e} for e in trainer.state.log_history if "v_f" in e]
        if suite is not None:
            say("evaluating the model after")
            evaluations["after"] = evaluate(model_after, tokenizer, suite, role="after", name=method)
            evaluations = {role: with_reference(e, evaluations.get("reference")) for role, e in evaluations.items()}
        result = Result(model_after, tokenizer, history, evaluations, trainer.stopped, request.out)
        if request.out is not None and trainer.is_world_process_zero():
            record = describe(
                command=f"unlearn {method}",
                config=recorded(options),
                seed=args.seed,
                data={"forget": about(request.forget, forget)}
                | ({"retain": about(request.retain, retain)} if retain else {}),
                weights={"before": before_sha256, "after": weights_sha256(model_after)},
                start=trainer.start,
                stopped=trainer.stopped,
                warnings=told,
                seconds={"until trained": round(trained_s, 1), "in all": round(time.time() - started, 1)},
            )
            write_run(result, record, forget, loaded.base)
            say(f"done: {request.out / 'report.html'}")
        return result


def write_run(result: Result, record: dict[str, Any], forget: Pairs, base: str) -> None:
    """Write the run folder in one move."""
    assert result.out is not None
    with new_folder(result.out) as folder:
        write_json(folder / "run.json", record)
        write_jsonl(
            folder / "forget.jsonl", ({"id": p.id, "where": p.where, "sha256": record_sha256(p)} for p in forget.kept)
        )
        write_jsonl(folder / "history.jsonl", result.history)
        for role, evaluation in result.evaluations.items():
            write_json(folder / "evaluation" / f"{role}.json", evaluation)
        save_model(result.model, result.tokenizer, folder / "model", base)
        summaries = {role: e["summary"] for role, e in result.evaluations.items()}
        is_adapter = isinstance(result.model, PeftModel)
        write_text(folder / "model" / "README.md", model_card(record, summaries, base, is_adapter))
        write_text(folder / "report.html", render_report(folder))
        write_manifest(folder)


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


def prepare(loaded: Loaded, lora_rank: int) -> Any:
    """Make weights trainable: the adapter that is there, a new one, or (rank 0) all of them."""
    if isinstance(loaded.model, PeftModel):
        if lora_rank == 0:
            return loaded.model.merge_and_unload().requires_grad_(True)
        return loaded.model
    return add_lora(loaded.model, lora_rank) if lora_rank else loaded.model.requires_grad_(True)


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


def suite_of(request: Request, forget: Pairs, templates: Sequence[str]) -> Suite:
    """What the models of this run are asked."""
    sets = {"retain": request.retain_eval, "real_authors": request.real_authors, "world_facts": request.world_facts}
    return build_suite(forget.kept, sets, templates, rows=request.eval_rows)


def evaluate_or_reuse(loaded: Loaded, suite: Suite, role: str, folder: Path | None) -> dict[str, Any]:
    """Evaluate, unless `folder` holds the evaluation of exactly these weights and questions at this precision."""
    file = folder / f"{role}.json" if folder else None
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
    """What run.json says of a data set."""
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


def say(text: str) -> None:
    """Tell the user, on standard error, what is going on."""
    console.print(f"amends: {text}", markup=False, highlight=False, soft_wrap=True)
