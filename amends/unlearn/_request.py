"""What every unlearning run may be asked: one list of options, for the command line and for Python."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_type_hints

import typer

from amends.io.bounds import check_options
from amends.io.errors import InputError
from amends.io.options import RankOption, SaveStepsOption, SeedOption
from amends.io.run import told
from amends.lm.checkpoint import folder_of, saving
from amends.lm.trainer import training_arguments
from amends.unlearn._config import (
    SHARED,
    FloorOption,
    ForgetConfig,
    ForgetWeightOption,
    LengthOption,
    OptimizerOption,
    RetainLossOption,
    RetainWeightOption,
    StopOption,
)

Config = TypeVar("Config", bound=ForgetConfig)
Data = str | Path | Sequence[Mapping[str, Any]]

# What every command is given first; the rest of its options are the fields of Request, and its own.
ForgetOption = Annotated[
    str, typer.Option(help="What to forget: .jsonl, .json, .csv, .parquet, .txt or a datasets folder.")
]
OutOption = Annotated[Path, typer.Option(help="Run folder to make; must not exist.")]


@dataclass(frozen=True, kw_only=True)
class Request:
    """What a run is asked to do, beside its method's own settings.

    Data may be given from Python as a list of dictionaries; the command line takes a path.
    """

    forget: Data
    out: Path | str | None = None
    retain: Annotated[Data | None, typer.Option(help="Rows to keep, as one extra loss term.")] = None
    neighbours: Annotated[
        int,
        typer.Option(
            help="Rows to keep that the model writes itself: questions like the forgotten ones about others, with its "
            "own answers.",
            min=0,
        ),
    ] = 0
    forget_weight: ForgetWeightOption = 1.0
    retain_weight: RetainWeightOption = 1.0
    retain_loss: RetainLossOption = "nll"
    stop_v_f: StopOption = None
    floor_v_f: FloorOption = None
    reference: Annotated[str | None, typer.Option(help="Model retrained without the forget data, to compare with.")] = (
        None
    )
    retain_eval: Annotated[
        Data | None, typer.Option(help="Questions of the same kind that should be answered as before.")
    ] = None
    forget_eval: Annotated[
        Data | None,
        typer.Option(help="Rows like those to forget that are not trained on: are they forgotten too?"),
    ] = None
    real_authors: Annotated[Data | None, typer.Option(help="TOFU's real-author questions.")] = None
    world_facts: Annotated[Data | None, typer.Option(help="TOFU's world-fact questions.")] = None
    holdout: Annotated[
        Data | None,
        typer.Option(help="Rows like those to forget that no model saw: can the forgotten ones be told from them?"),
    ] = None
    evaluations: Annotated[
        Path | None,
        typer.Option(help="Folder with before.json and reference.json of the same models and questions, to reuse."),
    ] = None
    judge: Annotated[
        str | None,
        typer.Option(help="Text classifier that judges the answers to forget: hub id or folder with safetensors."),
    ] = None
    judge_label: Annotated[str | None, typer.Option(help="Label of --judge that is counted, such as toxic.")] = None
    eval_rows: Annotated[int, typer.Option(help="Most questions of each set to keep; 0 evaluates nothing.", min=0)] = (
        100
    )
    lora_rank: RankOption = None
    layers: Annotated[
        str | None, typer.Option(help="Train only these layers, FIRST-LAST or one, counted from 0; default: all.")
    ] = None
    optimizer: OptimizerOption = "adamw"
    learning_rate: Annotated[float, typer.Option(help="Learning rate.", min=0)] = 3e-4
    epochs: Annotated[float, typer.Option(help="Passes over the forget data, at most.", min=0)] = 10
    batch_size: Annotated[int, typer.Option(help="Forget rows per device and step.", min=1)] = 8
    accumulation: Annotated[int, typer.Option(help="Batches summed up before each step.", min=1)] = 1
    max_length: LengthOption = 1024
    question_column: Annotated[str | None, typer.Option(help="Column of the question, if it has another name.")] = None
    answer_column: Annotated[str | None, typer.Option(help="Column of the answer, if it has another name.")] = None
    skip_bad_rows: Annotated[bool, typer.Option(help="Leave faulty rows out and count them, instead of stopping.")] = (
        False
    )
    prefix_tokens: Annotated[int, typer.Option(help="Plain text: tokens of each prefix.", min=1)] = 100
    continuation_tokens: Annotated[
        int, typer.Option(help="Plain text: tokens of each continuation to forget.", min=1)
    ] = 100
    save_steps: SaveStepsOption = 0
    seed: SeedOption = 0

    def __post_init__(self) -> None:
        """Check that every value is within the bounds that its option names."""
        check_options(Request, vars(self))
        for name, hint in get_type_hints(Request).items():
            if hint == str | None and not isinstance(value := getattr(self, name), str | Path | None):
                raise InputError(f"{name} is a {type(value).__name__}: a text is needed.")

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "Request":
        """Take the request from the options that run.json keeps as "config".

        An option that is not there did not exist yet, and has the default that stands for what was done then.
        """
        return cls(forget=config["forget"], **{f.name: config[f.name] for f in fields(cls)[1:] if f.name in config})

    def config(self) -> dict[str, Any]:
        """Its options as run.json keeps them."""
        return {field.name: told(getattr(self, field.name)) for field in fields(self)}

    @property
    def checkpoints(self) -> Path | None:
        """Folder beside the run folder, if checkpoints are asked for now or are there from a run that ended early."""
        return None if self.out is None else folder_of(self.out, self.save_steps)

    def arguments(self, cls: type[Config], **own: Any) -> Config:
        """Training settings: these options, a method's own, and the house's defaults."""
        return training_arguments(
            cls,
            **saving(self.checkpoints, self.save_steps),
            learning_rate=self.learning_rate,
            num_train_epochs=self.epochs,
            per_device_train_batch_size=self.batch_size,
            per_device_eval_batch_size=16,
            gradient_accumulation_steps=self.accumulation,
            seed=int(self.seed),  # numpy's are refused
            disable_tqdm=True,
            **{name: getattr(self, name) for name in SHARED},
            **own,
        )
