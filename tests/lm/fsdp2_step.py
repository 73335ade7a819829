"""Run by test_fsdp.py in two processes: a few steps on weights that are sharded over both (FSDP2), losses on stdout."""

import json
import sys

import torch
import torch.distributed as dist
from conftest import tiny
from torch.distributed.fsdp import fully_shard

from amends.lm.logprobs import PackedRow, answer_logprobs, masked_mean, pack

ROWS = [PackedRow([1 + i, 2, 3], [[4 + i, 5], [6]]) for i in range(8)]


def main() -> None:
    """Print the loss of each step, summed over the processes."""
    sharded = len(sys.argv) > 1
    rank, num_processes = 0, 1
    model = tiny("llama").train()
    if sharded:
        dist.init_process_group("gloo")
        rank, num_processes = dist.get_rank(), dist.get_world_size()
        mesh = dist.init_device_mesh("cpu", (num_processes,))
        for layer in model.model.layers:
            fully_shard(layer, mesh=mesh)
        fully_shard(model, mesh=mesh)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    losses = []
    for _ in range(4):
        out = answer_logprobs(model, pack(ROWS[rank::num_processes], 0))
        # Gradients are averaged over processes.
        loss = -masked_mean(out.logp_BA, out.mask(0)).sum() / len(ROWS) * num_processes
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        total = loss.detach() / num_processes
        if sharded:
            dist.all_reduce(total)
        losses.append(total.item())
    if rank == 0:
        print(json.dumps({"losses": losses, "sharded": type(next(model.parameters())).__name__}))
    if sharded:
        dist.destroy_process_group()


main()
