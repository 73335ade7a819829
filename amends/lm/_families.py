"""What changes with a model's family: where its layers are, what masks they take, what follows its output layer.

Shapes: L lines of T tokens, D width of the model, V vocabulary.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn.attention.flex_attention import create_block_mask

from amends.io.errors import InputError

FULL, SLIDING = "full_attention", "sliding_attention"
_checked_heads: WeakSet[nn.Module] = WeakSet()


@contextmanager
def hidden_states(inner: Any, layer: int | None) -> Iterator[list[Tensor]]:
    """Catch what the model hands to its output layer, and let through the last column only; or a layer's output."""
    caught: list[Tensor] = []

    def catch(_: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
        if layer is None:
            caught.append(inputs[0])
        return (inputs[0][:, -1:],)

    def catch_output(_: nn.Module, __: Any, output: Any) -> None:
        caught.append(output[0] if isinstance(output, tuple) else output)

    hooks = [inner.get_output_embeddings().register_forward_pre_hook(catch)]
    try:
        if layer is None:
            yield caught
            return
        with _first_layers(inner, layer + 1) as last:
            hooks.append(last.register_forward_hook(catch_output))
            yield caught
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def _first_layers(inner: Any, count: int) -> Iterator[nn.Module]:
    """Leave the other layers out of the model while this lasts; gives the last that is in it."""
    owner, name = layer_list(inner)
    layers = getattr(owner, name)
    setattr(owner, name, layers[:count])
    try:
        yield layers[count - 1]
    finally:
        setattr(owner, name, layers)


def layer_list(model: nn.Module) -> tuple[nn.Module, str]:
    """Where a model keeps its list of layers: the module and the name of its attribute.

    Raises
    ------
    InputError : there is none of the length that the configuration says.
    """
    config = model.config.get_text_config()  # type: ignore[operator,union-attr]
    for owner in model.modules():
        for name, child in owner.named_children():
            if isinstance(child, nn.ModuleList) and len(child) == config.num_hidden_layers:
                return owner, name
    raise InputError(f"{config.model_type}: amends did not find the list of this model's layers.")


def head_logits(head: nn.Module, config: Any, hidden: Tensor) -> Tensor:
    """Logits in float32, with what some families do to them after the output layer."""
    if isinstance(head, FSDPModule):  # its hooks, passed by here, count one call in a pass, with the layers it shares
        head.unshard()
    logits: Tensor = head.forward(hidden).float()
    if factor := getattr(config, "logit_scale", None):
        logits = logits * factor
    if divisor := getattr(config, "logits_scaling", None):
        logits = logits / divisor
    cap = getattr(config, "final_logit_softcapping", None)
    return cap * torch.tanh(logits / cap) if cap else logits


def check_head(head: nn.Module, config: Any, hidden: Tensor, logits: Tensor) -> None:
    """See once for each model, on one column, that `head_logits` gives its own logits (where they are numbers)."""
    if head in _checked_heads or not torch.isfinite(logits).all():
        return
    with torch.no_grad():
        ours, tolerance = head_logits(head, config, hidden), 1e-3 if logits.dtype == torch.float32 else 0.1
    if not torch.allclose(ours, logits.float(), atol=tolerance, rtol=tolerance):
        raise InputError(
            f"{config.model_type}: this model changes what its output layer gives in a way that amends does not know. "
            "Please report it with the name of the model."
        )
    _checked_heads.add(head)


def attention_masks(inner: Any, config: Any, allowed_L1TT: Tensor, position_LT: Tensor) -> Any:
    """Make what a model takes as `attention_mask`: one mask, or one for each kind of its layers.

    Layers with a sliding window see no token further back than that, counted in positions, not in columns: a mask that
    is given in full takes the place of the model's own, window and all.
    """
    attention = config._attn_implementation
    if attention not in ("sdpa", "eager", "flex_attention"):
        raise InputError(
            f"{config.model_type}: the model was loaded with the attention {attention!r}, which takes no mask of who "
            "sees whom, so rows that share a pass would see each other. Load it with attn_implementation='sdpa', "
            "'eager' or 'flex_attention'."
        )
    window: int = getattr(config, "sliding_window", None) or 0
    kinds = set(getattr(config, "layer_types", None) or [SLIDING if window else FULL])
    if unknown := kinds - {FULL, SLIDING}:
        raise InputError(
            f"{config.model_type}: its layers of the kind {', '.join(sorted(unknown))} carry more from token to token "
            "than an attention mask can part. Choose a model with full or sliding attention."
        )
    masks = {FULL: allowed_L1TT}
    if SLIDING in kinds:
        distance_LTT = position_LT[:, :, None] - position_LT[:, None, :]
        masks[SLIDING] = allowed_L1TT & (distance_LTT < window)[:, None]
    if attention == "flex_attention":
        masks = {kind: _for_flex(mask) for kind, mask in masks.items()}
    elif attention != "sdpa":  # SDPA takes booleans; the others add the mask to the scores
        zero = torch.zeros((), dtype=inner.dtype, device=allowed_L1TT.device)
        masks = {kind: torch.where(mask, zero, torch.finfo(inner.dtype).min) for kind, mask in masks.items()}
    return (
        {kind: masks[kind] for kind in kinds}
        if getattr(config, "layer_types", None) and SLIDING in kinds
        else masks[kinds.pop()]
    )


def _for_flex(allowed_L1TT: Tensor) -> Any:
    """Make the mask of FlexAttention, which leaves out whole blocks where nothing sees anything."""

    def sees(line: Tensor, _: Tensor, query: Tensor, key: Tensor) -> Tensor:
        return allowed_L1TT[line, 0, query, key]

    num_lines, _, num_tokens, _ = allowed_L1TT.shape
    return create_block_mask(sees, num_lines, None, num_tokens, num_tokens, device=allowed_L1TT.device.type)
