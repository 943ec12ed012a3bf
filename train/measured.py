"""What is faster on this machine, decided by one measurement at the start of a run."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

TRIALS = 3


def faster_dtype(work: Callable[[torch.dtype], object], bias: float = 1.0) -> torch.dtype:
    """float32 where `work` in bfloat16 takes more than `bias` times as long, else bfloat16.

    Of each the least of a few trials counts. CPUs without AVX-512-BF16 emulate bfloat16, up to
    thirteen times slower than float32.
    """
    seconds = {torch.float32: float("inf"), torch.bfloat16: float("inf")}
    for _ in range(TRIALS):
        for dtype in seconds:
            started = time.perf_counter()
            work(dtype)
            seconds[dtype] = min(seconds[dtype], time.perf_counter() - started)
    slower = seconds[torch.bfloat16] > bias * seconds[torch.float32]
    return torch.float32 if slower else torch.bfloat16
