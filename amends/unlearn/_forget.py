"""What every method that forgets has in common: forget rows, optional retain rows, the stop rule, the start check."""

import math
import random
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from peft import PeftConfig, get_peft_model
from torch import Tensor
from transformers import PreTrainedTokenizerBase, TrainerCallback, TrainingArguments

from amends.io.errors import InputError
from amends.lm.load import autocast, load, quiet
from amends.lm.logprobs import AnswerLogprobs, PackedRow, answer_logprobs, hold, masked_mean, pack, packed_row
from amends.lm.pairs import Dropped, Pair, Pairs, encode, read_pairs, rows_of
from amends.lm.trainer import AnswerTrainer, TrainRow

ALL_STEPS = "all steps done"
TEMPLATE_TOO_LOW, FORGET_TOO_HIGH = 1e-3, 0.99
"""A probability p moves by p(1 - p) of its logit's gradient: beyond these values next to nothing moves at first."""
START_ROWS = 16
MUON = {"momentum": 0.9, "adjust_lr_fn": "match_rms_adamw"}
"""Steps as long as those that AdamW takes at a fifth of the rate."""


@dataclass
class ForgetConfig(TrainingArguments):
    """Settings that every forgetting method has, beside those of `TrainingArguments`."""

    stop_v_f: float | None = field(
        default=None, metadata={"help": "Stop when the mean probability of the forget answers' tokens is at most this."}
    )
    retain_weight: float = field(
        default=1.0, metadata={"help": "Weight of the rows to keep: the NLL of retain rows, the KL of neighbours."}
    )
    optimizer: Literal["adamw", "muon"] = field(
        default="adamw", metadata={"help": "muon: torch.optim.Muon, for matrices only; all directions move alike."}
    )
    max_length: int = field(default=1024, metadata={"help": "Most tokens of a prompt with one answer."})
    save_total_limit: int | None = field(default=2, metadata={"help": "Checkpoints to keep, at least two; None: all."})

    def __post_init__(self) -> None:
        """Check the settings of ours, then those of transformers."""
        super().__post_init__()
        if self.stop_v_f is not None and not 0 <= self.stop_v_f <= 1:
            raise InputError(f"stop_v_f={self.stop_v_f}: a probability between 0 and 1 is needed (or none).")
        if self.retain_weight < 0:
            raise InputError(f"retain_weight={self.retain_weight}: must not be negative.")
        if self.optimizer not in ("adamw", "muon"):
            raise InputError(f"optimizer={self.optimizer!r}: choose adamw or muon.")


class ForgetTrainer(AnswerTrainer):
    """Base of the forgetting methods.

    Parameters
    ----------
    model : str or model
        As `amends.lm.load` takes it, or a model that is loaded already.
    args : ForgetConfig
    train_dataset : list of Pair or of dict, or `datasets.Dataset`
        What to forget, in any column shape that `amends.lm.pairs.read_pairs` knows.
    processing_class : tokenizer, optional
        Needed where `model` is not a name.
    retain_dataset : like train_dataset, optional
        What to keep: one row, drawn at random, stands beside each forget row and costs its NLL.
    neighbours : list of Pair, optional
        Rows to keep, drawn among those of `retain_dataset`, whose answers are the model's own: they cost the forward
        KL from what the model says of them when the training begins (`amends.lm.logprobs.hold`).
    peft_config : PeftConfig, optional
        Train this adapter instead of all weights.

    Raises
    ------
    InputError : faulty rows, an answer longer than `args.max_length` or the model's context.
    """

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
        peft_config: PeftConfig | None = None,
        **kwargs: Any,
    ) -> None:
        if isinstance(model, str):
            loaded = load(model, trainable=True)
            model, processing_class = loaded.model, processing_class or loaded.tokenizer
        if processing_class is None:
            raise InputError("processing_class: pass the tokenizer along with a model that is loaded already.")
        if peft_config is not None:
            with quiet():
                model = get_peft_model(model, peft_config)
        self.pairs = as_pairs(train_dataset, processing_class)
        limit = context_limit(model, args.max_length)
        self._forget_rows = encode_rows(processing_class, self.pairs, limit)
        retain = as_pairs(retain_dataset, processing_class) if retain_dataset is not None else []
        self._retain_rows = [TrainRow(row, is_retain=True) for row in encode_rows(processing_class, retain, limit)]
        self._neighbour_rows = encode_rows(processing_class, neighbours, limit)
        if args.optimizer == "muon":
            if others := [n for n, p in model.named_parameters() if p.requires_grad and p.ndim != 2]:
                raise InputError(f"optimizer muon: {others[0]} is no matrix. Train an adapter (LoRA), or choose adamw.")
            kwargs["optimizer_cls_and_kwargs"] = (torch.optim.Muon, MUON | {"lr": args.learning_rate})
        self.stopped = ALL_STEPS
        self.start: dict[str, float] = {}
        self._batch_v_f = torch.zeros(())
        super().__init__(model, args, len(self.pairs), processing_class, **kwargs)
        if args.stop_v_f is not None:
            self.add_callback(StopWhenForgotten(self, args.stop_v_f))

    def draw(self, index: int, random_: random.Random) -> list[TrainRow]:
        """Give the forget row, with what the method puts beside it, and a retain row where there are any."""
        rows = [TrainRow(self.forget_row(index, random_))]
        if self._retain_rows:
            rows.append(random_.choice(self._retain_rows))
        return rows

    def forget_row(self, index: int, random_: random.Random) -> PackedRow:
        """Answer 0 is the one to forget."""
        return self._forget_rows[index]

    def forget_losses(self, out: AnswerLogprobs) -> tuple[Tensor, dict[str, Tensor]]:
        """Loss of each forget row (S,), and what to log, among it v_f."""
        raise TypeError(f"{type(self).__name__} has no forget_losses.")

    def losses(self, out: AnswerLogprobs, is_retain_B: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Add up the method's loss and the weighted cost of the rows to keep: NLL, or KL where they are held."""
        losses_S, values = self.forget_losses(out.of(~is_retain_B))
        self._batch_v_f = values["v_f"].detach().mean()
        if is_retain_B.any():
            retain = out.of(is_retain_B)
            costs = {}  # a row has one of the two, the other is 0; all processes log the same
            if any(row.held is None for row in self._retain_rows):
                costs["retain_nll"] = -retain.logp_BA
            if self._neighbour_rows:
                costs["retain_kl"] = torch.zeros_like(retain.logp_BA) if retain.kl_BA is None else retain.kl_BA
            for name, cost_BA in costs.items():
                values[name] = masked_mean(cost_BA, retain.mask(0))
                losses_S = losses_S + self.args.retain_weight * values[name]
        return losses_S, values

    def forget_means(self, *, templates: bool = True, most: int | None = None) -> dict[str, float]:
        """v_f, and v_e where there are templates and they are wanted, from the model as it is.

        Over all forget rows, or over `most` of them, evenly spread.
        """
        num_rows = len(self._forget_rows)
        chosen = range(0, num_rows, math.ceil(num_rows / (most or num_rows)))
        if templates:
            rows = [self.forget_row(i, random.Random(f"{self.args.seed} start {i}")) for i in chosen]
        else:
            rows = [self._forget_rows[i] for i in chosen]
        model, was_training = self.model, self.model.training
        model.eval()
        sums = torch.zeros(2)
        size = self.args.per_device_eval_batch_size
        pad_id = self.processing_class.pad_token_id
        with torch.no_grad(), autocast():
            for start in range(0, len(rows), size):
                batch = pack(rows[start : start + size], pad_id)
                out = answer_logprobs(model, {name: t.to(self.args.device) for name, t in batch.items()})
                for answer in range(min(2, int(out.answer_BA.max()) + 1)):
                    sums[answer] += masked_mean(out.logp_BA.exp(), out.mask(answer)).sum().cpu()
        model.train(was_training)
        v_f, v_e = (sums / len(rows)).tolist()
        return {"v_f": v_f, "v_e": v_e} if len(rows[0].answers) > 1 else {"v_f": v_f}

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train, after a look at where v_e and v_f start, on START_ROWS of the rows, and at what is to be held."""
        self.start = self.forget_means(most=START_ROWS)
        if self._neighbour_rows:
            said = hold(self.model, self._neighbour_rows, self.processing_class.pad_token_id)
            rows = zip(self._neighbour_rows, said, strict=True)
            self._retain_rows = [row for row in self._retain_rows if row.held is None]
            self._retain_rows += [TrainRow(row, is_retain=True, held=held) for row, held in rows]
        for text in start_warnings(self.start):
            warnings.warn(text, stacklevel=2)
        return super().train(*args, **kwargs)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        """Save nothing where the stop rule ended the training: resumed from there, it would go on."""
        if self.stopped == ALL_STEPS:
            super()._save_checkpoint(model, trial)


class StopWhenForgotten(TrainerCallback):
    """Stop when v_f over all forget rows is at most the limit; looked at whenever a batch is."""

    def __init__(self, trainer: ForgetTrainer, limit: float) -> None:
        self.trainer, self.limit = trainer, limit

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Look at the batch first, which is free, then at all rows."""
        batch = self.trainer.accelerator.reduce(self.trainer._batch_v_f, "mean").item()
        if batch > self.limit:
            return
        v_f = self.trainer.forget_means(templates=False)["v_f"]
        if v_f <= self.limit:
            self.trainer.stopped = (
                f"v_f = {v_f:.3f} over all forget rows, at most {self.limit:g}, at step {state.global_step}"
            )
            control.should_training_stop = True


def start_warnings(start: Mapping[str, float]) -> list[str]:
    """Say where the start leaves the loss next to no gradient."""
    texts = []
    if start["v_f"] > FORGET_TOO_HIGH:
        texts.append(
            f"v_f starts at {start['v_f']:.4f}: the forget answers are known so surely that their gradient nearly "
            "vanishes and nothing may move for many steps. Raise the learning rate."
        )
    if start.get("v_e", 1.0) < TEMPLATE_TOO_LOW:
        texts.append(
            f"v_e starts at {start['v_e']:.1e}: the template answers are so unlikely to the model that they will "
            "hardly move at first. Raise the learning rate, set template_warmup_steps, or give templates nearer to its "
            "own words."
        )
    return texts


def as_pairs(dataset: Any, tokenizer: PreTrainedTokenizerBase) -> list[Pair]:
    """Pairs from a list of pairs, a list of dictionaries or a `datasets.Dataset`."""
    if isinstance(dataset, Sequence) and dataset and isinstance(dataset[0], Pair):
        return list(dataset)
    if not isinstance(dataset, Iterable) or isinstance(dataset, str | Mapping):
        raise InputError(f"data is a {type(dataset).__name__}: expected a list of dictionaries or a datasets.Dataset.")
    return read_pairs(rows_of(dataset), tokenizer=tokenizer).kept


def context_limit(model: Any, max_length: int) -> int:
    """Most tokens a row may have: what was asked, or the model's context where that is shorter."""
    return min(max_length, getattr(model.config, "max_position_embeddings", None) or max_length)


def encode_rows(tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair], limit: int) -> list[PackedRow]:
    """One packed row a pair, its answer alone.

    Raises
    ------
    InputError : a pair longer than `limit` tokens, or one that the chat template does not take; with its place.
    """
    rows = []
    for pair in pairs:
        try:
            row = packed_row(encode(tokenizer, pair.prompt, [pair.answer]))
        except InputError as error:
            raise InputError(f"{pair.where}: {error}") from error
        rows.append(row)
        if (length := len(row.prompt) + len(row.answers[0])) > limit:
            raise InputError(
                f"{pair.where}: prompt and answer have {length} tokens, more than the {limit} that fit (--max-length "
                "and the model's context). Shorten or split it, or leave such rows out with --skip-bad-rows."
            )
    return rows


def without_too_long(pairs: Pairs, tokenizer: PreTrainedTokenizerBase, limit: int) -> Pairs:
    """Leave out, and count, the pairs that `encode_rows` would refuse.

    Raises
    ------
    InputError : none is short enough.
    """
    kept, dropped = [], list(pairs.dropped)
    for pair in pairs.kept:
        try:
            encode_rows(tokenizer, [pair], limit)
            kept.append(pair)
        except InputError as error:
            dropped.append(Dropped(pair.where, str(error).removeprefix(f"{pair.where}: ")))
    if not kept:
        raise InputError(f"no row is short enough; the first: {dropped[-1].where}: {dropped[-1].reason}")
    return Pairs(kept, dropped)
