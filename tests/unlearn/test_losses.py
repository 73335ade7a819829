"""Loss and gradient of every method, written down again from its paper: row by row, in float64, by plain forwards."""

import math
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, logsigmoid, one_hot

from amends.lm.load import load
from amends.lm.trainer import training_arguments
from amends.unlearn._method import method_names, trainer_named

from ..conftest import save_tiny_model

PAIRS = [{"question": f"Who is number {i}?", "answer": f"Person {'ab' * (i + 1)}{i}."} for i in range(4)]
KEEP = [{"question": f"Where is town {i}?", "answer": f"In land {'x' * (3 * i)}{i}, there."} for i in range(3)]
SETTINGS: dict[str, dict[str, Any]] = {
    "rmu": {"layer": 0},
    "dpo": {"alternates": 2},
    "llmu": {"mismatches": 2},
    "simnpo": {"delta": 3.0, "beta": 0.7},  # at 0 the loss of a random model is all but 0
    "satimp": {"beta1": 0.2},  # as above
    "wga": {"beta": 0.3},
}
DEFAULTS = {
    "npo": {"beta": 0.1},
    "simnpo": {"beta": 4.5, "delta": 0.0, "forget_weight": 0.125},
    "dpo": {"beta": 0.1},
    "rmu": {"steering": 2.0, "layer": 7},
    "undial": {"beta": 10.0},
    "wga": {"beta": 1.0},
    "satimp": {"beta1": 5.0, "beta2": 1.0, "forget_weight": 0.1},
    "pdu": {"retain_weight": 50.0, "retain_limit": 0.3, "dual_step": 5.0, "dual_warmup_epochs": 5.0},
    "llmu": {"ascent_weight": 0.5, "mismatch_weight": 1.0, "mismatches": 1, "max_forget_nll": 100.0},
}


class Said:
    """What a model says of one answer: its logits (A, V) in float64, and an inner layer's output (A, D)."""

    def __init__(self, model: Any, prompt: list[int], answer: list[int]) -> None:
        inner: list[Tensor] = []
        hook = model.model.layers[0].register_forward_hook(lambda *given: inner.append(given[2]))
        logits_1TV = model(input_ids=torch.tensor([prompt + answer])).logits
        hook.remove()
        out = inner[0][0] if isinstance(inner[0], tuple) else inner[0]
        self.y, self.logits = torch.tensor(answer), logits_1TV[0, len(prompt) - 1 : -1]
        self.inner = out.reshape(-1, out.shape[-1])[len(prompt) - 1 : -1]
        self.logp = self.logits.log_softmax(-1)[range(len(answer)), self.y]


def js(p: Tensor, q: Tensor) -> Tensor:
    middle = (p + q) / 2
    parts = [torch.where(a > 0, a * (a.clamp_min(1e-300).log() - middle.log()), 0.0) for a in (p, q)]
    return (sum(parts) / 2).sum(-1).mean()  # type: ignore[union-attr]


def steered(inner: Tensor, args: Any) -> Tensor:
    u = torch.rand(inner.shape[-1], generator=torch.Generator().manual_seed(args.seed)).double()
    return ((inner - args.steering * u / u.norm()) ** 2).mean()


def forget_loss(method: str, a: Any, now: list[Said], then: list[Said]) -> Tensor:
    """Loss of one row; the answer to forget is the first."""
    y, y_then, others = now[0], then[0], now[1:] or now  # the template alone, where it alone counts
    match method:
        case "ga" | "graddiff" | "kl":
            return y.logp.mean()
        case "npo":
            return 2 / a.beta * torch.log1p(torch.exp(a.beta * (y.logp.sum() - y_then.logp.sum())))
        case "simnpo":
            return -2 / a.beta * logsigmoid(a.beta * (-y.logp.mean() - a.delta))
        case "dpo":
            gains = [(one.logp - before.logp).sum() for one, before in zip(now, then, strict=True)]
            return -2 / a.beta * logsigmoid(a.beta * (gains[1] - gains[0]))
        case "po":
            return -others[0].logp.mean()
        case "flat":  # KL: g* = v and f*(g*) = exp(v - 1)
            return -(others[0].logp.exp().mean() - torch.exp(y.logp.exp().mean() - 1))
        case "wga":
            return (y.logp.exp().detach() ** a.beta * y.logp).mean()
        case "satimp":
            p = y.logp.exp().detach()
            return (p**a.beta1 * (1 - p) ** a.beta2 * y.logp).mean()
        case "undial":
            target = (y_then.logits - a.beta * one_hot(y.y, y.logits.shape[-1])).softmax(-1)
            return cross_entropy(y.logits, target)
        case "ceu":  # the end of the turn is not among the labels of what is shifted
            without = y.logits.detach().clone()
            without[range(len(y.y)), y.y] = -math.inf
            return cross_entropy(y.logits[1:], without[1:].softmax(-1))
        case "pdu":
            return ((y.logits.max(-1).values - y.logits.mean(-1)) ** 2).mean()
        case "jensun":
            certain = one_hot(others[0].y, y.logits.shape[-1]).double()
            return js(others[0].logits.softmax(-1), certain)
        case "task_vector":
            return -y.logp.mean()
        case "llmu":
            mismatch = sum(-one.logp.mean() for one in others) / len(others)
            return a.mismatch_weight * mismatch + a.ascent_weight * y.logp.mean()
        case "rmu":
            return steered(y.inner, a)
    raise AssertionError(method)


def retain_cost(method: str, now: Said, then: Said) -> Tensor:
    """Cost of one row to keep."""
    if method in ("kl", "llmu"):
        before = then.logits.log_softmax(-1)
        return (before.exp() * (before - now.logits.log_softmax(-1))).sum(-1).mean()
    if method == "jensun":
        return js(now.logits.softmax(-1), then.logits.softmax(-1))
    if method == "rmu":
        return ((now.inner - then.inner) ** 2).mean()
    return -now.logp.mean()


@pytest.fixture(scope="module")
def two_layers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("model"), layers=2)


@pytest.mark.parametrize("method", [name for name in method_names() if name != "altpo"])  # whose loss is that of dpo
def test_loss_and_gradient_are_those_of_the_paper(method: str, two_layers: Path, tmp_path: Path) -> None:
    kind = trainer_named(method)
    settings = {"use_cpu": True, "disable_tqdm": True, "bf16": False} | SETTINGS.get(method, {})
    keeps = kind.keeps != "none"
    if keeps and not kind.moves_retain_weight:
        settings["retain_weight"] = 1.7
    args = training_arguments(kind.config_class(), str(tmp_path), **settings)
    loaded = load(two_layers)
    trainer = kind(loaded.model.train(), args, PAIRS, loaded.tokenizer, retain_dataset=KEEP if keeps else None)
    trainer.note_reference()
    before = deepcopy(trainer.model).double().eval()
    with torch.no_grad():
        generator = torch.Generator().manual_seed(1)
        for weight in trainer.model.parameters():
            weight.add_(0.05 * torch.randn(weight.shape, generator=generator))
    now = deepcopy(trainer.model).double().eval().requires_grad_(True)
    samples = [trainer.train_dataset[i] for i in range(len(PAIRS))]
    trainer.model.zero_grad()
    loss = trainer.compute_loss(trainer.model, dict(trainer.data_collator(samples)))
    loss.backward()

    forget, retain = [], []
    for rows in samples:
        for row in rows:
            prompt, answers = row.packed
            said = [Said(now, prompt, answer) for answer in answers]
            with torch.no_grad():
                then = [Said(before, prompt, answer) for answer in answers]
            if row.is_retain:
                retain.append(retain_cost(method, said[0], then[0]))
            else:
                forget.append(forget_loss(method, args, said, then))
    assert len(retain) == len(PAIRS) * keeps
    expected = args.forget_weight * torch.stack(forget).mean()
    if retain:
        expected = expected + args.retain_weight * torch.stack(retain).mean()
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-5, abs=1e-6)
    pairs = [
        (torch.zeros_like(b) if a.grad is None else a.grad.double(), torch.zeros_like(b) if b.grad is None else b.grad)
        for a, b in zip(trainer.model.parameters(), now.parameters(), strict=True)
    ]
    largest = max(there.abs().max() for _, there in pairs)
    assert largest > 1e-5
    for here, there in pairs:
        assert (here - there).abs().max() < 1e-4 * largest


@pytest.mark.parametrize("method", DEFAULTS)
def test_defaults_are_those_of_the_source(method: str) -> None:
    config = trainer_named(method).config_class()(output_dir=".")
    assert {name: getattr(config, name) for name in DEFAULTS[method]} == DEFAULTS[method]
