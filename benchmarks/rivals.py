"""A step of every method, against the same loss as OpenUnlearning runs it: make bench NAME=rivals.

(a) OpenUnlearning: each answer in a padded batch of its own with all logits; a second model, live, for the methods with
    a reference; and what it computes without need (the model twice on rows to keep for a KL, rows to keep that weigh 0
    for UNDIAL, a reference that is held and never asked for WGA and SatImp, all layers for RMU);
(b) amends: one packed row, what the reference said noted before, only the answers' logits in chunks.

Same rows, model, precision and loss (OpenUnlearning's own averages differ; here both sides take ours, so that they can
be compared). A step is forward and backward on LoRA weights of SmolLM2-135M-Instruct, 8 rows to forget and 8 to keep
of TOFU. The second model counts in the memory of (a). Noting is timed apart: it happens once, not in each step.
"""

import argparse
import copy
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from _measure import claim, in_turn
from torch import Tensor
from torch.nn.functional import kl_div, logsigmoid
from unlearn_step import BASE, DATA, padded

from amends.io.tables import read_rows
from amends.lm.load import add_lora, autocast, device, load, precision
from amends.lm.logprobs import PackedRow, masked_mean
from amends.lm.pairs import read_pairs
from amends.lm.rows import encode_rows
from amends.lm.samples import TrainRow
from amends.lm.trainer import training_arguments
from amends.unlearn._forget import ForgetTrainer
from amends.unlearn._method import trainer_named

METHODS = (
    *("ga", "graddiff", "kl", "npo", "simnpo", "po", "dpo", "rmu", "undial", "wga", "satimp", "ceu", "pdu", "jensun"),
    "llmu",
)
HOLD_REFERENCE = ("kl", "npo", "dpo", "rmu", "undial", "wga", "satimp", "jensun", "llmu")


@dataclass
class Answers:
    """Logits (B, T, V), labels and answer marks (B, T) of one padded pass, shifted so that they fit each other."""

    logits: Tensor
    labels: Tensor

    @property
    def mask(self) -> Tensor:
        """True on answer tokens."""
        return self.labels != -100

    @property
    def logp(self) -> Tensor:
        """Log-probability of the labels, 0 elsewhere."""
        picked = self.logits.log_softmax(-1).gather(-1, self.labels.clamp_min(0)[..., None])[..., 0]
        return picked * self.mask

    def mean(self, values: Tensor) -> Tensor:
        """Mean over each row's answer tokens."""
        return masked_mean(values, self.mask)


class Upstream:
    """The losses, on padded batches with all logits."""

    def __init__(self, trainer: Any, model: Any, reference: Any, rows: list[list[TrainRow]], pad_id: int) -> None:
        self.trainer, self.model, self.reference, self.pad_id = trainer, model, reference, pad_id
        self.args = trainer.args
        self.forget, self.keep = ([sample[k].packed for sample in rows] for k in (0, 1))

    def ask(self, model: Any, rows: list[PackedRow], answer: int = 0, **how: Any) -> Answers:
        """One padded pass."""
        ids, mask, labels = padded(rows, answer, self.pad_id)
        out = model(input_ids=ids, attention_mask=mask, use_cache=False, **how)
        self.hidden = out.hidden_states
        return Answers(out.logits[:, :-1].float(), labels[:, 1:])

    def ask_reference(self, rows: list[PackedRow], answer: int = 0, **how: Any) -> Answers:
        """One padded pass of the second model."""
        with torch.no_grad():
            return self.ask(self.reference, rows, answer, **how)

    def kept_nll(self) -> Tensor:
        """NLL of the rows to keep."""
        keep = self.ask(self.model, self.keep)
        return -keep.mean(keep.logp).mean()

    def kept_kl(self) -> Tensor:
        """Forward KL on the rows to keep, after an NLL of them whose graph is thrown away."""
        self.kept_nll()
        before, keep = self.ask_reference(self.keep), self.ask(self.model, self.keep)
        kl = kl_div(keep.logits.log_softmax(-1), before.logits.log_softmax(-1), log_target=True, reduction="none")
        return keep.mean(kl.sum(-1)).mean()

    def ga(self) -> Tensor:
        """Forget rows only, although there are rows to keep."""
        forget = self.ask(self.model, self.forget)
        return forget.mean(forget.logp).mean()

    def graddiff(self) -> Tensor:
        """Ascent and NLL."""
        return self.ga() + self.kept_nll()

    def kl(self) -> Tensor:
        """Ascent and KL."""
        return self.ga() + self.kept_kl()

    def npo(self) -> Tensor:
        """NPO."""
        forget, before = self.ask(self.model, self.forget), self.ask_reference(self.forget)
        gain = (forget.logp - before.logp).sum(-1)
        return (-2 / self.args.beta * logsigmoid(-self.args.beta * gain)).mean() + self.kept_nll()

    def simnpo(self) -> Tensor:
        """SimNPO."""
        forget = self.ask(self.model, self.forget)
        loss = -2 / self.args.beta * logsigmoid(-self.args.beta * forget.mean(forget.logp))
        return loss.mean() + self.kept_nll()

    def po(self) -> Tensor:
        """NLL of the template."""
        template = self.ask(self.model, self.forget, -1)
        return -template.mean(template.logp).mean() + self.kept_nll()

    def dpo(self) -> Tensor:
        """Four passes, two of them of the second model."""
        gains = []
        for k in (0, 1):
            now, before = self.ask(self.model, self.forget, k), self.ask_reference(self.forget, k)
            gains.append((now.logp - before.logp).sum(-1))
        loss = -2 / self.args.beta * logsigmoid(self.args.beta * (gains[1] - gains[0]))
        return loss.mean() + self.kept_nll()

    def rmu(self) -> Tensor:
        """All layers and the output layer run, and only one layer's output is used."""
        layer = self.args.layer + 1
        forget = self.ask(self.model, self.forget, output_hidden_states=True)
        away = (self.hidden[layer][:, :-1].float() - self.trainer.target_D).square().mean(-1)
        self.ask_reference(self.keep, output_hidden_states=True)
        before = self.hidden[layer][:, :-1].float()
        keep = self.ask(self.model, self.keep, output_hidden_states=True)
        moved = (self.hidden[layer][:, :-1].float() - before).square().mean(-1)
        return forget.mean(away).mean() + keep.mean(moved).mean()

    def undial(self) -> Tensor:
        """Rows to keep run, and weigh 0."""
        forget, before = self.ask(self.model, self.forget), self.ask_reference(self.forget)
        at = before.labels.clamp_min(0)[..., None]
        lowered = before.logits.scatter(-1, at, before.logits.gather(-1, at) - self.args.beta)
        loss = -(lowered.softmax(-1) * forget.logits.log_softmax(-1)).sum(-1)
        return forget.mean(loss).mean() + 0 * self.kept_nll()

    def wga(self) -> Tensor:
        """Weighted ascent; SatImp by its own weights."""
        forget = self.ask(self.model, self.forget)
        return forget.mean(self.trainer.weights(forget.logp.detach().exp()) * forget.logp).mean() + self.kept_nll()

    satimp = wga

    def ceu(self) -> Tensor:
        """CE-U."""
        forget = self.ask(self.model, self.forget)
        others = forget.logits.detach().scatter(-1, forget.labels.clamp_min(0)[..., None], -torch.inf).softmax(-1)
        later = forget.mask & (forget.mask.cumsum(-1) > 1)
        return masked_mean(-(others * forget.logits.log_softmax(-1)).sum(-1), later).mean()

    def pdu(self) -> Tensor:
        """PDU."""
        forget = self.ask(self.model, self.forget)
        spread = (forget.logits.amax(-1) - forget.logits.mean(-1)) ** 2
        return forget.mean(spread).mean() + self.trainer.retain_weight * self.kept_nll()

    def jensun(self) -> Tensor:
        """JensUn."""
        template = self.ask(self.model, self.forget, -1)
        certain = torch.zeros_like(template.logits).scatter(-1, template.labels.clamp_min(0)[..., None], 1.0)
        loss = template.mean(self.js(template.logits.softmax(-1), certain)).mean()
        keep, before = self.ask(self.model, self.keep), self.ask_reference(self.keep)
        return loss + keep.mean(self.js(keep.logits.softmax(-1), before.logits.softmax(-1))).mean()

    @staticmethod
    def js(p: Tensor, q: Tensor) -> Tensor:
        """Jensen-Shannon divergence of probabilities."""
        mean = (p + q) / 2
        parts = [(x * (x.clamp_min(1e-20).log() - mean.clamp_min(1e-20).log())).sum(-1) for x in (p, q)]
        return (parts[0] + parts[1]) / 2

    def llmu(self) -> Tensor:
        """Four passes, one of the second model."""
        forget, other = (self.ask(self.model, self.forget, k) for k in (0, 1))
        loss = -other.mean(other.logp).mean() + self.args.ascent_weight * forget.mean(forget.logp).mean()
        before, keep = self.ask_reference(self.keep), self.ask(self.model, self.keep)
        kl = kl_div(keep.logits.log_softmax(-1), before.logits.log_softmax(-1), log_target=True, reduction="none")
        return loss + keep.mean(kl.sum(-1)).mean()


def trainer_of(method: str, model: Any, tokenizer: Any, forget: Any, keep: Any) -> ForgetTrainer:
    """Give the trainer of a method with its own defaults."""
    trainer = trainer_named(method)
    args = training_arguments(trainer.config_class(), "unused", disable_tqdm=True)
    return trainer(
        model, args, forget, tokenizer, retain_dataset=keep if trainer.keeps in ("needed", "usual") else None
    )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rows", type=int, default=8)
    parser.add_argument("--methods", nargs="+", default=METHODS, choices=METHODS)
    parser.add_argument("--cpu-seconds", action="store_true", help="compare CPU seconds: on a machine with other work")
    options = parser.parse_args()
    loaded = load(BASE)
    torch.manual_seed(0)
    model = add_lora(loaded.model).train()
    forget, keep = (
        read_pairs(read_rows(Path(DATA) / f"{name}.jsonl")).kept[: options.rows] for name in ("forget", "retain")
    )
    trainers = {name: trainer_of(name, model, loaded.tokenizer, forget, keep) for name in options.methods}
    noting = {}
    for name, trainer in trainers.items():
        start = time.perf_counter()
        trainer.note_reference()
        noting[name] = time.perf_counter() - start
    reference = copy.deepcopy(model).eval().requires_grad_(False)
    reference_bytes = sum(p.nbytes for p in {id(p): p for p in reference.parameters()}.values())
    with torch.no_grad():
        for name, weight in model.named_parameters():  # so that the model is no longer its reference
            if "lora_B" in name:
                weight.normal_(0, 0.01)
    print(f"{options.rows} + {options.rows} rows; {precision()} on {device()}, best of {options.rounds}")
    print(
        f"{'':>9} {'(a) s':>7} {'(b) s':>7} {'x':>6} {'(a) MB':>7} {'(b) MB':>7} {'share':>6} {'noting':>9} {'loss':>9}"
    )
    unused = [[TrainRow(row)] for row in encode_rows(loaded.tokenizer, keep, 1024)]  # what (a) runs for nothing
    slowest, largest, farthest = math.inf, 0.0, 0.0
    for name, trainer in trainers.items():
        samples = [trainer.train_dataset[i] for i in range(options.rows)]
        rows = [[*sample, *beside][:2] for sample, beside in zip(samples, unused, strict=True)]
        upstream = Upstream(trainer, model, reference, rows, loaded.tokenizer.pad_token_id)
        losses: dict[str, Tensor] = {}

        def step(side: str, loss_of: Callable[[], Tensor], losses: dict[str, Tensor] = losses) -> None:
            model.zero_grad()
            losses[side] = loss_of()

        def ours(trainer: Any = trainer, samples: Any = samples) -> Tensor:
            loss: Tensor = trainer.training_step(model, trainer.data_collator(samples))
            return loss

        their_loss = getattr(upstream, name)

        def theirs(loss_of: Callable[[], Tensor] = their_loss) -> Tensor:
            with autocast():
                loss = loss_of()
            loss.backward()
            return loss.detach()

        costs = in_turn({"a": lambda: step("a", theirs), "b": lambda: step("b", ours)}, options.rounds)
        a, b = costs.values()
        held = reference_bytes if name in HOLD_REFERENCE else 0
        a_s, b_s = (cost.cpu_s if options.cpu_seconds else cost.wall_s for cost in (a, b))
        ratio, share = a_s / b_s, b.peak_bytes / (a.peak_bytes + held)
        difference = ((losses["a"] - losses["b"]).abs() / losses["a"].abs().clamp_min(1e-6)).item()
        slowest, largest, farthest = min(slowest, ratio), max(largest, share), max(farthest, difference)
        print(
            f"{name:>9} {a_s:7.2f} {b_s:7.2f} {ratio:6.2f} {(a.peak_bytes + held) / 2**20:7.0f} "
            f"{b.peak_bytes / 2**20:7.0f} {share:6.2f} {noting[name]:9.1f} {difference:9.1e}",
            flush=True,
        )
    claim("rivals: times faster than as OpenUnlearning runs them, the least of all methods", slowest, 2, "x", "higher")
    claim("rivals: peak memory as a share of that, the most of all methods", largest, 0.5, "", "lower")
    claim("rivals: largest relative difference of a loss", farthest, 1e-4, "", "lower")


if __name__ == "__main__":
    main()
