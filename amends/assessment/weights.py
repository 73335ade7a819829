"""Weights of a model as they act: with an adapter's share, rounded to few bits, compared with those of another model.

Shapes: O output channels, I inputs of a linear layer; r rank of an adapter; all of a mixture's experts in one tensor
(experts, O, I). Names of weights are those of the model
below an adapter, so that an adapter can be compared with a model without one.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from peft import PeftModel
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import ParamWrapper
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from amends.io.errors import InputError
from amends.lm.config import LAYER
from amends.lm.load import inner_of

CHANGED = 1e-3
"""A weight counts as changed if it moved by more than this share of its size."""


# Rounding


def fake_quantised(weight_OI: Tensor, bits: int, inputs: int = -1) -> Tensor:
    """Round a matrix, or one of each expert, to `bits` bits, symmetrically and to the nearest.

    There is one scale for each output channel:
    Q(w) = s round(w / s), s = max|w| / (2^(bits - 1) - 1). Rounding what is rounded changes nothing.

    Parameters
    ----------
    weight_OI : Tensor (outputs, inputs) or (experts, outputs, inputs), any float type
    bits : int, 2 to 24
    inputs : int, default -1
        Dimension of the inputs, over which a scale holds.

    Returns
    -------
    Tensor of the same shape and type.
    """
    index, scale = buckets(weight_OI, bits, inputs)
    return (index * scale).to(weight_OI.dtype)


def buckets(weight_OI: Tensor, bits: int, inputs: int = -1) -> tuple[Tensor, Tensor]:
    """Whole numbers that stand for the weights, as float32, and the scale of each channel."""
    if not 2 <= bits <= 24:  # float32 holds no longer whole numbers
        raise ValueError(f"bits={bits}: expected 2 to 24.")
    weight = weight_OI.detach().float()
    largest = weight.abs().amax(dim=inputs, keepdim=True)
    scale = largest / (2 ** (bits - 1) - 1)
    return torch.round(weight / torch.where(scale > 0, scale, torch.ones_like(scale))), scale


class Linear(NamedTuple):
    """Weight of a linear layer, or of that layer in all experts of a mixture."""

    weight: Tensor
    inputs: int
    """Dimension of its inputs: the last, but in GPT-2's layers and in the experts of some families."""


def linear_layers(model: nn.Module) -> dict[str, Linear]:
    """Linear layers by the name of their weight, those below adapters and experts among them, but for the output layer.

    The output layer is left as it is, as common 4-bit kernels do; it often shares its weights with the embedding. So is
    the router of a mixture, where transformers does not make it a linear layer.
    """
    inner = inner_of(model)
    head, found = inner.get_output_embeddings(), {}
    for name, module in inner.named_modules():
        if module is head or ".lora_" in name:
            continue
        if isinstance(module, nn.Linear | Conv1D):
            found[f"{name}.weight"] = Linear(module.weight, -2 if isinstance(module, Conv1D) else -1)
        elif "Experts" in (kind := type(module).__name__):
            turned = getattr(module, "is_transposed", kind in _TURNED_EXPERTS)
            for own, weight in module.named_parameters(recurse=False):
                if weight.ndim == 3:
                    found[f"{name}.{own}"] = Linear(weight, -2 if turned else -1)
    return {plain_name(name): layer for name, layer in found.items()}


_TURNED_EXPERTS = ("Llama4TextExperts",)
"""Those that keep (experts, I, O) and do not say so."""


@contextmanager
def quantised(model: nn.Module, bits: int) -> Iterator[None]:
    """Let a model act with the weights of its linear layers rounded to `bits` bits; then all is as it was, bit by bit.

    An adapter is added to its layers first, as it is before a model is shipped. The weights are kept on the CPU
    meanwhile.

    Raises
    ------
    InputError : an adapter that cannot be added to its layers.
    """
    layers, adapted = linear_layers(model), shares(model)
    named = ((plain_name(name), weight) for name, weight in inner_of(model).named_parameters())
    touched = {name: weight for name, weight in named if name in layers or name in adapted}
    with torch.no_grad(), _restored(touched), merged(model):
        for layer in layers.values():
            layer.weight.copy_(fake_quantised(layer.weight, bits, layer.inputs))
        yield


@contextmanager
def _restored(touched: dict[str, nn.Parameter]) -> Iterator[None]:
    kept = {name: weight.detach().to("cpu", copy=True) for name, weight in touched.items()}
    try:
        yield
    finally:
        with torch.no_grad():
            for name, weight in touched.items():
                weight.copy_(kept[name])


@contextmanager
def merged(model: nn.Module) -> Iterator[None]:
    """Add an adapter to its layers meanwhile; what rounding leaves behind is for the caller to undo."""
    if not isinstance(model, PeftModel):
        yield
        return
    check_lora(model)
    tuner: Any = model.base_model
    tuner.merge_adapter()
    try:
        yield
    finally:
        tuner.unmerge_adapter()


def check_lora(model: PeftModel) -> None:
    """Refuse adapters whose share of a weight is not the product of two matrices.

    Raises
    ------
    InputError
    """
    plain = LoraLinear | ParamWrapper
    kinds = {type(m).__name__ for m in model.modules() if isinstance(m, LoraLayer) and not isinstance(m, plain)}
    others = [str(c.peft_type) for c in model.peft_config.values() if not str(c.peft_type).endswith("LORA")]
    special = any(
        getattr(c, "modules_to_save", None) or getattr(c, "use_dora", False) for c in model.peft_config.values()
    )
    if kinds or others or special:
        raise InputError("the adapter is not a plain LoRA of linear layers. Merge it into its base model first.")


# Comparing


class LowRank(NamedTuple):
    """An adapter's share of a weight: scaling x B A, (O, I), turned where the layer keeps (I, O); of experts each."""

    a_rI: Tensor
    b_Or: Tensor
    scaling: float
    turned: bool

    def dense(self, device: torch.device) -> Tensor:
        """Multiply it out, float32."""
        share_OI = self.scaling * (self.b_Or.to(device).float() @ self.a_rI.to(device).float())
        return share_OI.T if self.turned else share_OI


@dataclass(frozen=True)
class Snapshot:
    """Weights of a model, kept on the CPU until another is loaded: of an adapter its own share alone."""

    base: str | None
    """Of an adapter: the model that it stands on; None: `whole` has every weight."""
    shares: dict[str, LowRank] = field(default_factory=dict)
    whole: dict[str, Tensor] = field(default_factory=dict)


def snapshot(model: nn.Module, base: str | None) -> Snapshot:
    """Keep a model's weights.

    base : str or None
        Name of the model below the adapter if the other model has the same below it: its weights are not kept then.

    Raises
    ------
    InputError : an adapter that is not a plain LoRA.
    """
    own = shares(model)
    if base is not None:
        return Snapshot(
            base, {n: s._replace(a_rI=s.a_rI.cpu().clone(), b_Or=s.b_Or.cpu().clone()) for n, s in own.items()}
        )
    return Snapshot(
        None,
        whole={name: acting(weight, own.get(name)).to("cpu", copy=True) for name, weight in weights(model).items()},
    )


def shares(model: nn.Module) -> dict[str, LowRank]:
    """Find what the adapter adds to each weight."""
    if not isinstance(model, PeftModel):
        return {}
    check_lora(model)
    found = {}
    for name, module in inner_of(model).named_modules():
        if isinstance(module, LoraLinear):
            layer: Any = module
            (adapter,) = layer.active_adapters
            a, b = layer.lora_A[adapter].weight.detach(), layer.lora_B[adapter].weight.detach()
            turned = isinstance(layer.base_layer, Conv1D)
            found[f"{plain_name(name)}.weight"] = LowRank(a, b, float(layer.scaling[adapter]), turned)
        elif isinstance(module, ParamWrapper):  # of weights that are no layer: experts, routers
            wrapper: Any = module
            (adapter,) = wrapper.active_adapters
            a, b = wrapper.lora_A[adapter].weight, wrapper.lora_B[adapter].weight
            if wrapper.num_experts > 1:
                b, a, _ = wrapper.get_delta_factors(adapter)  # in the order of the weight itself
            share = LowRank(a.detach(), b.detach(), float(wrapper.scaling[adapter]), turned=False)
            found[f"{plain_name(name)}.{wrapper.parameter_name}"] = share
    return found


def weights(model: nn.Module) -> dict[str, Tensor]:
    """Weights of a model, or of the one below an adapter, by name."""
    return {plain_name(name): w.detach() for name, w in inner_of(model).named_parameters() if ".lora_" not in name}


def acting(weight: Tensor, share: LowRank | None) -> Tensor:
    """Weight with the adapter's share."""
    return weight if share is None else weight.float() + share.dense(weight.device)


def plain_name(name: str) -> str:
    """Name of a weight or module without what an adapter adds to it."""
    return name.replace(".base_layer", "")


class Drift(NamedTuple):
    """How far the weights of one layer, or of all, have moved."""

    layer: str
    """"0", "1", ...; "other": embeddings, norms and output layer; "all"."""
    relative: float
    """||after - before|| / ||before||, Frobenius."""
    changed: float
    """Share of weights that moved by more than CHANGED of their size."""
    num_weights: int


class Comparison(NamedTuple):
    """Drift by layer, "all" first, and for each number of bits the share of weights in another bucket."""

    drift: list[Drift]
    flips: dict[int, float]


def compare(after: Snapshot, before: nn.Module, bits: tuple[int, ...] = (8, 4)) -> Comparison:
    """Compare a model's kept weights with those of the model before.

    Raises
    ------
    InputError : weights of other names or shapes: the models are not of one family.
    """
    own, theirs = shares(before), weights(before)
    mine = theirs if after.base is not None else after.whole
    wrong = [name for name in mine.keys() | theirs.keys() if name not in mine or name not in theirs]
    wrong += [name for name in mine.keys() & theirs.keys() if mine[name].shape != theirs[name].shape]
    if wrong:
        raise InputError(f"the two models have other weights ({sorted(wrong)[0]}), so no weight can be compared.")
    layers = linear_layers(before)
    sums: dict[str, list[float]] = {}
    flips, num_linear = dict.fromkeys(bits, 0), 0
    for name, weight in theirs.items():
        w_before = acting(weight, own.get(name)).float()
        kept = weight if after.base is not None else after.whole[name].to(weight.device)
        w_after = acting(kept, after.shares.get(name)).float()
        found = LAYER.search(f".{name}")
        moved = (w_after - w_before).abs()
        numbers = (
            moved.double().square().sum().item(),
            w_before.double().square().sum().item(),
            float((moved > CHANGED * w_before.abs()).sum()),
            float(moved.numel()),
        )
        for layer in (found[1] if found else "other", "all"):
            sums[layer] = [old + new for old, new in zip(sums.get(layer, [0.0] * 4), numbers, strict=True)]
        if name in layers:
            num_linear += moved.numel()
            for b in bits:
                index, _ = buckets(w_before, b, layers[name].inputs)
                flips[b] += int((buckets(w_after, b, layers[name].inputs)[0] != index).sum())
    order = ["all", *sorted((s for s in sums if s.isdecimal()), key=int), *(s for s in sums if s == "other")]
    drift = [
        Drift(s, (sums[s][0] / sums[s][1]) ** 0.5 if sums[s][1] else 0.0, sums[s][2] / sums[s][3], int(sums[s][3]))
        for s in order
    ]
    return Comparison(drift, {b: count / max(1, num_linear) for b, count in flips.items()})
