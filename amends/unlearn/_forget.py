"""What every method that forgets has in common: forget rows, optional retain rows, the stop rule, the start check."""

import math
import random
import warnings
from collections.abc import Callable, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, ClassVar, Literal, get_type_hints

import torch
from peft import PeftConfig, PeftModel, get_peft_model
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from amends.io.errors import InputError
from amends.lm.load import autocast, fitting, load
from amends.lm.logprobs import (
    AnswerLogprobs,
    PackedRow,
    answer_logprobs,
    forward_kl,
    log_probability,
    masked_mean,
    note,
    output_layer,
    pack,
)
from amends.lm.pairs import Pair
from amends.lm.quiet import quiet
from amends.lm.rows import context_limit, encode_rows
from amends.lm.samples import TrainRow
from amends.lm.trainer import AnswerTrainer
from amends.unlearn._config import SHARED, ForgetConfig, optimizer_of
from amends.unlearn._further import FurtherAnswers
from amends.unlearn._read import as_pairs, templates_of
from amends.unlearn._stop import StopWhenForgotten

ALL_STEPS = "all steps done"
START_ROWS = 16
TEMPLATE_TOO_LOW, FORGET_TOO_HIGH = 1e-3, 0.99
"""A probability p moves by p(1 - p) of its logit's gradient: beyond these values next to nothing moves at first."""


class StartWarning(UserWarning):
    """Something about the start that keeps a training from doing what is expected of it."""


class ForgetTrainer(AnswerTrainer):
    """Base of the forgetting methods.

    Parameters
    ----------
    model : str, Path or model
        As `amends.lm.load` takes it, or a model that is loaded already.
    args : ForgetConfig
    train_dataset : list of Pair or of dict, or `datasets.Dataset`
        What to forget, in any column shape that `amends.lm.pairs.read_pairs` knows.
    processing_class : tokenizer, optional
        Needed where `model` is not a name.
    retain_dataset : like train_dataset, optional
        What to keep: one row, drawn at random, stands beside each forget row and costs what `args.retain_loss` says.
    neighbours : list of Pair, optional
        Rows to keep, drawn among those of `retain_dataset`, whose answers are the model's own: they cost the forward
        KL from what the model says of them when the training begins.
    templates : list of str, optional
        Answers to give instead, for the methods that have them (`takes_templates`); one is drawn for every row, anew
        each epoch. Default: the built-in refusals.
    peft_config : PeftConfig, optional
        Train this adapter instead of all weights.

    Raises
    ------
    InputError : settings of another class; faulty rows, an answer longer than `args.max_length` or the model's context;
        no rows to keep where the method needs them; templates that are missing, empty or too long.

    The reference of a method is the model when the training begins. What is needed of it is noted then, once; no second
    model is held, and none is asked again.
    """

    title: ClassVar[str]
    """Name of the method in reports."""
    takes_templates: ClassVar[bool] = False
    learns_templates_alone: ClassVar[bool] = False
    """Whether the answers to forget have no part in the loss; they are asked only where a rule looks at v_f."""
    keeps: ClassVar[Literal["needed", "usual", "possible", "none"]] = "possible"
    """Rows to keep: whether there must be some, the source has some, there may be some, or there can be none."""
    holds_retain: ClassVar[bool] = False
    """Whether all rows to keep are held to the reference, whatever `retain_loss` says."""
    moves_retain_weight: ClassVar[bool] = False
    """Whether `retain_weight` is where the weight begins, and rows to keep count although it is 0 there."""
    layers: ClassVar[str | None] = None
    """Default of the option of that name: what is trained."""
    sees_probabilities: ClassVar[bool] = True
    """Whether v_f is among what `forget_losses` logs, as a floor needs it."""
    saturates: ClassVar[bool] = True
    """Whether answers that are known for sure leave the loss next to no gradient."""
    needs_likely_templates: ClassVar[bool] = False
    """Whether templates that the model finds unlikely leave the loss next to no gradient."""
    reads_logs: ClassVar[bool] = False
    """Whether a rule of the method looks at what is logged, which must then be every step."""
    reference: ClassVar[Literal["log-probabilities", "states"] | None] = None
    """What is noted of the forget rows' answer tokens: log-probabilities, or what the output layer gets."""
    args: ForgetConfig
    model: torch.nn.Module
    processing_class: PreTrainedTokenizerBase

    def __init__(
        self,
        model: Any,
        args: ForgetConfig,
        train_dataset: Any,
        processing_class: PreTrainedTokenizerBase | None = None,
        *,
        retain_dataset: Any = None,
        neighbours: Sequence[Pair] = (),
        templates: Sequence[str] | None = None,
        peft_config: PeftConfig | None = None,
        **kwargs: Any,
    ) -> None:
        if not isinstance(args, self.config_class()):
            raise InputError(f"args is a {type(args).__name__}: {self.title} needs a {self.config_class().__name__}.")
        self.check(args, keeps=retain_dataset is not None or bool(neighbours))
        if isinstance(model, str | Path):
            loaded = load(model, trainable=True)
            model, processing_class = loaded.model, processing_class or loaded.tokenizer
            if peft_config is None and not isinstance(model, PeftModel):
                model = model.float()  # as in a run: bfloat16 would round small steps away
        if processing_class is None:
            raise InputError("processing_class: pass the tokenizer along with a model that is loaded already.")
        processing_class = fitting(processing_class, model, "processing_class")
        if peft_config is not None:
            with quiet():
                model = get_peft_model(model, peft_config)
        self.pairs = as_pairs(train_dataset, processing_class)
        limit = context_limit(model, args.max_length)
        self.forget_rows = [TrainRow(row) for row in encode_rows(processing_class, self.pairs, limit)]
        retain = as_pairs(retain_dataset, processing_class) if retain_dataset is not None else []
        if not args.retain_weight and not self.moves_retain_weight:
            retain, neighbours = [], []  # what weighs nothing is not computed
        keep = encode_rows(processing_class, [*retain, *neighbours], limit)
        self._retain_rows = [TrainRow(row, is_retain=True) for row in keep]
        first_held = 0 if args.retain_loss == "kl" else len(retain)
        self._held_rows = range(0 if self.holds_retain else first_held, len(keep))
        self.templates = templates_of(templates, self.title, self.takes_templates)
        self.limit = limit
        self._further = FurtherAnswers(processing_class, self.pairs)
        self.processing_class = processing_class
        if self.takes_templates:
            self.check_fit(self.templates, "templates")
        watched = args.stop_v_f is not None or args.floor_v_f is not None
        self.template_at = 0 if self.learns_templates_alone and not watched else 1
        """Number of the template answer in a row, where there are templates."""
        self.stopped = ALL_STEPS
        self.start: dict[str, float] = {}
        self.v_f_of_step: list[torch.Tensor] = []  # for the stop rule
        super().__init__(model, args, len(self.pairs), processing_class, **optimizer_of(args, model), **kwargs)
        if args.stop_v_f is not None:
            self.add_callback(self.stop_rule(args.stop_v_f))

    @classmethod
    def method_name(cls) -> str:
        """Give the name of the method on the command line: that of its file."""
        return cls.__module__.rpartition(".")[2]

    @classmethod
    def config_class(cls) -> type[ForgetConfig]:
        """Give the class of its settings: the type of `args`."""
        found: type[ForgetConfig] = get_type_hints(cls)["args"]
        return found

    @classmethod
    def defaults(cls) -> dict[str, Any]:
        """Of the options that all methods have, those that begin with another value here."""
        found = {own.name: own.default for own in fields(cls.config_class()) if own.name in SHARED}
        found = {name: value for name, value in found.items() if value != SHARED[name].default}
        return found | ({"layers": cls.layers} if cls.layers else {})

    @classmethod
    def useless(cls) -> set[str]:
        """Of the options that all methods have, those that this one has no use for."""
        found = {"retain_loss"} if cls.holds_retain else set()
        if cls.keeps == "none":
            found |= {"retain", "neighbours", "retain_weight", "retain_loss"}
        return found if cls.sees_probabilities else found | {"floor_v_f"}

    @classmethod
    def check(cls, args: ForgetConfig, *, keeps: bool) -> None:
        """Refuse settings that the method has no use for, with rows to keep or without; nothing needs to be loaded.

        Raises
        ------
        InputError
        """
        if cls.keeps == "needed" and not keeps:
            raise InputError(f"{cls.title} needs rows to keep. Give --retain, or --neighbours.")
        if cls.keeps == "none" and keeps:
            raise InputError(f"{cls.title} takes no rows to keep. Leave --retain and --neighbours out.")
        for name in () if keeps else ("retain_weight", "retain_loss"):
            if getattr(args, name) != getattr(type(args), name):
                raise InputError(f"--{name.replace('_', '-')}: there are no rows to keep. Give some, or leave it out.")
        if cls.holds_retain and args.retain_loss != "nll":
            raise InputError(f"--retain-loss: {cls.title} has a cost of its own for rows to keep. Leave it out.")
        if not cls.sees_probabilities and args.floor_v_f is not None:
            raise InputError(f"--floor-v-f: {cls.title} does not see the answers' probabilities. Leave it out.")
        if cls.reads_logs and (args.logging_strategy != "steps" or args.logging_steps != 1):
            raise InputError(f"logging_steps: {cls.title} looks at the log of every step. Leave it at 1.")

    def check_fit(self, answers: Sequence[str], what: str) -> None:
        """Refuse answers that are too long behind the longest prompt.

        Raises
        ------
        InputError : that begins with `what` they are.
        """
        longest = max(len(row.packed.prompt) for row in self.forget_rows)
        longest += max(len(self._further.ids(0, answer)) for answer in answers)
        if longest > self.limit:
            raise InputError(
                f"{what}: the longest prompt with the longest of them behind it has {longest} tokens, more than the "
                f"{self.limit} that fit (--max-length and the model's context). Shorten them."
            )

    def stop_rule(self, limit: float) -> StopWhenForgotten:
        """Give what stops the training at `args.stop_v_f`."""
        return StopWhenForgotten(self, limit)

    def draw(self, index: int, random_: random.Random) -> list[TrainRow]:
        """Give the forget row, with what the method puts beside it, and a retain row where there are any."""
        rows = [self.forget_row(index, random_)]
        return [*rows, random_.choice(self._retain_rows)] if self._retain_rows else rows

    def forget_row(self, index: int, random_: random.Random) -> TrainRow:
        """Answer 0 is the one to forget; answer 1, with templates, is one of them, or the only one (`template_at`)."""
        if not self.takes_templates:
            return self.forget_rows[index]
        row = self.with_answers(index, random_.choice(self.templates))
        return row._replace(packed=PackedRow(row.packed.prompt, row.packed.answers[1 - self.template_at :]))

    def with_answers(self, index: int, *texts: str) -> TrainRow:
        """Put further answers behind the one to forget."""
        prompt, answers = self.forget_rows[index].packed
        more = [self._further.ids(index, text) for text in texts]
        return self.forget_rows[index]._replace(packed=PackedRow(prompt, [*answers, *more]))

    def forget_losses(self, out: AnswerLogprobs) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of each row to forget (S,), to be lowered, and values to log, (S,) each.

        v_f (`probabilities`) is to be among them, unless the class says that it sees none.
        """
        raise TypeError(f"{type(self).__name__} has no forget_losses.")

    def probabilities(self, out: AnswerLogprobs) -> dict[str, Tensor]:
        """v_f, and v_e with templates, of those that the rows hold: mean probability of their tokens, for the log."""
        p_BA = out.logp_BA.detach().exp()
        answers = ("v_f", "v_e")[1 - self.template_at :] if self.takes_templates else ("v_f",)
        return {name: masked_mean(p_BA, out.mask(k)) for k, name in enumerate(answers)}

    def retain_costs(self, out: AnswerLogprobs) -> dict[str, Tensor]:
        """Cost of each row to keep, (S,), 0 where it has another of them; all processes log the same names."""
        costs = {}
        first = out.mask(0)
        held_BA = torch.zeros_like(first) if out.has_notes_B is None else first & out.has_notes_B[:, None]
        if len(self._held_rows) < len(self._retain_rows):
            costs["retain_nll"] = -masked_mean(out.score(log_probability, first & ~held_BA), first)
        if self._held_rows:
            costs["retain_kl"] = masked_mean(self.kl(out, held_BA), first)
        return costs

    def kl(self, out: AnswerLogprobs, mask_BA: Tensor) -> Tensor:
        """Forward KL from the model at the start, whose states were noted, at some answer tokens (B, A)."""
        if out.notes_BAK is None:
            return torch.zeros_like(mask_BA, dtype=torch.float32)
        return out.score(
            lambda logits, _, noted: forward_kl(logits, self.reference_logits(noted)), mask_BA, out.noted_BAK
        )

    def losses(self, out: AnswerLogprobs) -> tuple[Tensor, dict[str, Tensor]]:
        """Weigh the method's loss; a row that is forgotten enough is not pushed further."""
        losses_S, values = self.forget_losses(out)
        if "v_f" in values and self.args.stop_v_f is not None:
            self.v_f_of_step.append(values["v_f"].detach())
        weights_S = torch.full_like(losses_S, self.args.forget_weight)
        if self.args.floor_v_f is not None:
            values["pushed"] = (values["v_f"] > self.args.floor_v_f).float()
            weights_S = values["pushed"] * weights_S
        return self.weighed(weights_S, losses_S), values

    def retain_losses(self, out: AnswerLogprobs) -> tuple[Tensor, dict[str, Tensor]]:
        """Weigh the costs of the rows to keep."""
        costs = self.retain_costs(out)
        losses_S = torch.stack([*costs.values()]).sum(0)
        return self.weighed(torch.full_like(losses_S, self.retain_weight), losses_S), costs

    def weighed(self, weights_S: Tensor, losses_S: Tensor) -> Tensor:
        """Weigh losses; where all weigh 0, nothing goes back through the model, whose gradients are then 0 as they are.

        Under FSDP it does: the processes must go back alike.
        """
        if weights_S.any() or self.is_fsdp_enabled or not losses_S.requires_grad:
            return weights_S * losses_S
        trained = [weight for weight in self.model.parameters() if weight.requires_grad]
        return torch.zeros_like(losses_S) + sum(0 * weight.sum() for weight in trained)

    @property
    def retain_weight(self) -> float:
        """Weight of the rows to keep at this step."""
        return self.args.retain_weight

    def forget_means(self, *, templates: bool = True, most: int | None = None) -> dict[str, float]:
        """v_f, and v_e where there are templates and they are wanted, from the model as it is.

        Over all forget rows, or over `most` of them, evenly spread.
        """
        num_rows = len(self.forget_rows)
        chosen = range(0, num_rows, math.ceil(num_rows / (most or num_rows)))
        with_templates = templates and self.takes_templates
        draws = [random.Random(f"{self.args.seed} start {i}") for i in chosen]
        rows = [
            (self.with_answers(i, draw.choice(self.templates)) if with_templates else self.forget_rows[i]).packed
            for i, draw in zip(chosen, draws, strict=True)
        ]
        model, was_training = self.model, self.model.training
        model.eval()
        sums = torch.zeros(2)
        size = self.args.per_device_eval_batch_size
        pad_id = self.processing_class.pad_token_id
        with torch.no_grad(), autocast():
            for start in range(0, len(rows), size):
                batch = pack(rows[start : start + size], pad_id)
                out = answer_logprobs(model, {name: t.to(self.args.device) for name, t in batch.items()})
                for answer in range(1 + with_templates):
                    sums[answer] += masked_mean(out.logp_BA.exp(), out.mask(answer)).sum().cpu()
        model.train(was_training)
        v_f, v_e = (sums / len(rows)).tolist()
        return {"v_f": v_f, "v_e": v_e} if with_templates else {"v_f": v_f}

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train, after a look at where v_e and v_f start, on START_ROWS of the rows, and a note of the reference."""
        self.stopped = ALL_STEPS
        self.start = self.forget_means(most=START_ROWS)
        self.note_reference()
        for text in self.start_warnings():
            warnings.warn(text, StartWarning, stacklevel=2)
        done = super().train(*args, **kwargs)
        if self.stopped == ALL_STEPS and self.state.global_step < self.state.max_steps:
            self.stopped = f"by a callback, at step {self.state.global_step} of {self.state.max_steps}"
        return done

    def start_warnings(self) -> list[str]:
        """Say where the start leaves the loss next to no gradient."""
        texts = []
        if self.saturates and self.start["v_f"] > FORGET_TOO_HIGH:
            texts.append(
                f"v_f starts at {self.start['v_f']:.4f}: the forget answers are known so surely that their gradient "
                "nearly vanishes and nothing may move for many steps. Raise the learning rate."
            )
        if self.needs_likely_templates and self.start["v_e"] < TEMPLATE_TOO_LOW:
            texts.append(
                f"v_e starts at {self.start['v_e']:.1e}: the template answers are so unlikely to the model that they "
                "will hardly move at first. Raise the learning rate, or give templates nearer to its own words."
            )
        limit = self.args.stop_v_f
        if limit is not None and self.start["v_f"] <= limit:
            texts.append(
                f"v_f starts at {self.start['v_f']:.2g}, which is at most the {limit:g} of --stop-v-f: the model may "
                "not know what it is to forget. One step is made all the same."
            )
        return texts

    def note_reference(self) -> None:
        """Note what is needed of the model as it is."""
        self.reference_logits = output_layer(self.model)
        self._note(self._retain_rows, self._held_rows, states)
        if self.reference:
            of = states if self.reference == "states" else log_probabilities
            self._note(self.forget_rows, range(len(self.forget_rows)), of)

    def _note(self, rows: list[TrainRow], which: Sequence[int], of: Callable[[AnswerLogprobs], Tensor]) -> None:
        """Put what is noted of some rows into them."""
        packed = [rows[i].packed for i in which]
        pad_id, exact = self.processing_class.pad_token_id, not self.args.bf16  # as the training goes forward
        notes = note(self.model, packed, pad_id, of, exact=exact, layer=self.layer)
        for i, notes_AK in zip(which, notes, strict=True):
            rows[i] = rows[i]._replace(notes=notes_AK)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save nothing where the stop rule ended the training: resumed from there, it would go on."""
        if self.stopped == ALL_STEPS:
            super()._save_checkpoint(model, trial)


def states(out: AnswerLogprobs) -> Tensor:
    """Give what the output layer gets at each answer token."""
    return out.hidden_BAD


def log_probabilities(out: AnswerLogprobs) -> Tensor:
    """Give the log-probability of each answer token."""
    return out.logp_BA
