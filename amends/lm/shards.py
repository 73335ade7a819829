"""Whole weights of a model that FSDP2 shares out over processes."""

from copy import deepcopy
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor


def without_weights(model: nn.Module) -> nn.Module:
    """Copy a model, its buffers too, with parameters that have a shape and no memory."""
    there = {id(p): nn.Parameter(p.detach().to("meta"), p.requires_grad) for p in model.parameters()}
    return deepcopy(model, there)


def gathered(sharded: nn.Module, empty: nn.Module) -> nn.Module:
    """Fill a model with the whole weights of a sharded one, in every process; all of them must call it.

    Parameters
    ----------
    sharded : torch.nn.Module
        A model whose parameters are DTensors, each gathered on its own: one whole copy is all that it takes.
    empty : torch.nn.Module
        The same model `without_weights`. Its dtypes are kept: accelerate shares out float32.
    """
    dtypes = {name: weight.dtype for name, weight in empty.state_dict().items()}
    whole = {name: _whole(weight).to(dtypes[name]) for name, weight in sharded.state_dict().items()}
    filled: Any = deepcopy(empty)
    filled.load_state_dict(whole, assign=True)
    filled.tie_weights()
    return filled  # type: ignore[no-any-return]


def _whole(weight: Tensor) -> Tensor:
    with torch.no_grad():
        return weight.full_tensor() if isinstance(weight, DTensor) else weight


def like(whole: Tensor, weight: Tensor) -> Tensor:
    """Give the part of a whole tensor that this process has of `weight`."""
    if not isinstance(weight, DTensor):
        return whole
    return distribute_tensor(whole, weight.device_mesh, weight.placements)
