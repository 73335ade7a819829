"""What a model's numbers say beneath its answers: beside another model, layer by layer, and in its gradients.

Shapes: N answer tokens, V vocabulary, D width of the model, L layers.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from amends.assessment.attacks import cut
from amends.io.errors import InputError
from amends.io.progress import track
from amends.lm.load import autocast, inner_of
from amends.lm.logprobs import PackedRow, answer_logprobs, forward_kl, layer_list, masked_mean, note, output_layer, pack
from amends.lm.memorisation import record_row
from amends.lm.pairs import Pair

LAST_NORMS = ("norm", "ln_f", "norm_f", "final_norm", "final_layer_norm", "final_layernorm")
"""Names that families give to what stands between the last layer and the output layer."""
ROUNDING = 1e-6
"""A divergence below this is that of single precision from itself."""


# Beside another model


class States(NamedTuple):
    """What a model hands to its output layer for each token of some answers, on the CPU, and that layer."""

    rows: list[PackedRow]
    hidden: list[Tensor]
    """(N, D) a row."""
    logits_of: Callable[[Tensor], Tensor]
    device: torch.device


def states(model: Any, rows: Sequence[PackedRow], pad_id: int) -> States:
    """Note the states of rows of one answer each; of the model they keep no more than its output layer."""
    hidden = note(model, rows, pad_id, lambda out: out.hidden_BAD)
    return States(list(rows), hidden, output_layer(model), next(model.parameters()).device)


class Divergences(NamedTuple):
    """Mean over the tokens of each answer."""

    kl: list[float]
    """KL(reference || model), nats."""
    js: list[float]
    """Jensen-Shannon divergence, bits: 0 the same, 1 nothing in common."""


def divergences(reference: States, model: States) -> Divergences:
    """Say how far a model's next-token distributions are from the reference's, given the right tokens before.

    Raises
    ------
    InputError : the two read the answers as other tokens, or have vocabularies of other sizes.
    """
    if reference.rows != model.rows:
        raise InputError("The reference cuts the answers into other tokens, so its distributions cannot be compared.")
    found = Divergences([], [])
    with torch.inference_mode(), autocast():
        for theirs_ND, mine_ND in zip(reference.hidden, model.hidden, strict=True):
            theirs_NV = reference.logits_of(theirs_ND.to(reference.device))
            mine_NV = model.logits_of(mine_ND.to(model.device)).to(theirs_NV.device)
            if theirs_NV.shape != mine_NV.shape:
                raise InputError("The reference has a vocabulary of another size, so it cannot be compared.")
            middle_NV = torch.logaddexp(theirs_NV.log_softmax(-1), mine_NV.log_softmax(-1)) - math.log(2)
            js_N = (forward_kl(middle_NV, theirs_NV) + forward_kl(middle_NV, mine_NV)) / 2
            for values, mean in (
                (found.kl, forward_kl(mine_NV, theirs_NV).mean()),
                (found.js, js_N.mean() / math.log(2)),
            ):
                values.append(0.0 if mean <= ROUNDING else float(mean))
    return found


# Layer by layer


def lens_ranks(model: Any, tokenizer: PreTrainedTokenizerBase, pairs: Sequence[Pair]) -> list[list[int]]:
    """Rank of the first token of each answer's last name or number, read off after each layer; 1 is the best.

    The answer up to there is given (`amends.assessment.attacks.cut`). A layer's state goes through the last norm
    and the output layer (logit lens, nostalgebraist 2020). Of tokens with equal logits it is the last. Rows whose
    tokens run over the cut get an empty list, and so do those with a logit that is no number.

    Raises
    ------
    InputError : no list of layers, or no norm behind it, was found in the model.
    """
    owner, name = layer_list(inner_of(model))
    norm = next((child for n, child in owner.named_children() if n in LAST_NORMS), None)
    if norm is None:
        raise InputError(f"{model.config.model_type}: amends did not find the norm behind this model's layers.")
    logits_of, caught = output_layer(model), list[Tensor]()

    def catch(_: Any, __: Any, output: Any) -> None:
        caught.append((output[0] if isinstance(output, tuple) else output)[:, -1])

    found: list[list[int]] = []
    hooks = [layer.register_forward_hook(catch) for layer in getattr(owner, name)]
    try:
        for pair in pairs:
            given, _ = cut(pair)
            row = record_row(tokenizer, pair.prompt, [pair.answer, *([given] if given else [])])
            whole, start = row.answers[0], row.answers[1] if given else []
            if whole[: len(start)] != start or len(start) >= len(whole):
                found.append([])
                continue
            caught.clear()
            with torch.inference_mode(), autocast():
                ids = torch.tensor([row.prompt + start], device=next(model.parameters()).device)
                model(input_ids=ids, use_cache=False, logits_to_keep=1)
                logits_LV = logits_of(norm(torch.cat(caught)))
            own_L1 = logits_LV[:, whole[len(start)], None]
            ranks_L = (logits_LV >= own_L1).sum(-1).tolist()
            found.append([] if logits_LV.isnan().any() else ranks_L)
    finally:
        for hook in hooks:
            hook.remove()
    return found


# In its gradients


def gradient_norms(model: Any, rows: Sequence[PackedRow], pad_id: int, label: str) -> list[float]:
    """Mean over a model's weight tensors of the 2-norm of the gradient of each row's mean NLL.

    One pass forward and back a row. The tensors are those below an adapter, which acts but is not asked, so that models
    with and without one can be compared. Each tensor's gradient is dropped as soon as its norm is known, and the model
    is left as it was. Source: the gradient-norm attack of OpenUnlearning (arXiv 2506.12618).
    """
    inner, found = inner_of(model), list[float]()
    flags = {name: weight.requires_grad for name, weight in model.named_parameters()}
    asked = [weight for name, weight in inner.named_parameters() if ".lora_" not in name]
    norms: list[float] = []

    def take(weight: Tensor) -> None:
        assert weight.grad is not None
        norms.append(float(weight.grad.float().norm()))
        weight.grad = None

    was_training, hooks = model.training, []
    device = next(model.parameters()).device
    try:
        model.eval().requires_grad_(False)
        for weight in asked:
            weight.requires_grad_(True)
            hooks.append(weight.register_post_accumulate_grad_hook(take))
        for row in track(rows, label):
            norms.clear()
            batch = {name: t.to(device) for name, t in pack([row], pad_id).items()}
            with torch.enable_grad(), autocast():
                out = answer_logprobs(model, batch)
                (-masked_mean(out.logp_BA, out.mask(0)).sum()).backward()
            found.append(sum(norms) / len(asked))
    finally:
        for hook in hooks:
            hook.remove()
        model.train(was_training)
        for name, weight in model.named_parameters():
            weight.requires_grad_(flags[name])
            weight.grad = None
    return found
