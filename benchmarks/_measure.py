"""What every benchmark needs: both sides in turn in one process, peak memory, the machine's own limit, claims as JSON.

Noise rule: the sides take turns, the best of the rounds counts; CPU seconds stand beside wall seconds.
"""

import ctypes
import gc
import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch


class Cost(NamedTuple):
    """What one call took: the best of the rounds."""

    wall_s: float
    cpu_s: float
    peak_bytes: int
    """Above what was held before the call."""


def in_turn(sides: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, Cost]:
    """Call the sides in turn, `rounds` times after one that does not count, and take each side's best."""
    costs: dict[str, list[Cost]] = {name: [] for name in sides}
    for counted in [False] + [True] * rounds:
        for name, call in sides.items():
            cost = once(call)
            if counted:
                costs[name].append(cost)
    return {name: Cost(*(min(values) for values in zip(*found, strict=True))) for name, found in costs.items()}


def once(call: Callable[[], Any]) -> Cost:
    """Call and measure."""
    gc.collect()
    on_gpu = torch.cuda.is_available()
    if on_gpu:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
    held = torch.cuda.memory_allocated() if on_gpu else _reset_peak()
    wall, cpu = time.perf_counter(), time.process_time()
    call()
    if on_gpu:
        torch.cuda.synchronize()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    peak = torch.cuda.max_memory_allocated() if on_gpu else _status("VmHWM")
    return Cost(wall, cpu, peak - held)


def peak_bytes() -> int:
    """Peak of the whole process since the last call of `once` began (Linux, without a GPU)."""
    return _status("VmHWM")


def _reset_peak() -> int:
    """Set the process's peak back to what it holds now (Linux with glibc), and return that."""
    ctypes.CDLL(None).malloc_trim(0)  # memory that was freed but not handed back would hide the next peak
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def _status(name: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) * 1024


def matmul_flops(dtype: torch.dtype, device: torch.device, size: int = 2048, rounds: int = 10) -> float:
    """FLOP/s of a square matrix product here: the limit to compare with; best of the rounds."""
    one, other = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    best = min(once(lambda: one @ other).wall_s for _ in range(rounds + 2))
    return 2 * size**3 / best


class Claim(NamedTuple):
    """What a benchmark found, beside what was aimed at."""

    claim: str
    value: float
    aim: float
    unit: str
    better: str
    """"higher" or "lower"."""


def claim(text: str, value: float, aim: float, unit: str, better: str) -> None:
    """Print one claim as a line of JSON."""
    print(json.dumps({"claim": text, "value": round(value, 4), "aim": aim, "unit": unit, "better": better}))
