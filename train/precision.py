"""The precision and compilation that suit a device."""

from __future__ import annotations

import torch


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """The dtype of matrix products, None for float32.

    `auto` is bfloat16 on CUDA, and on CPUs that multiply in it: elsewhere it is emulated, slower
    than float32.
    """
    if precision == "auto":
        return torch.bfloat16 if device.type == "cuda" or _cpu_multiplies_bfloat16() else None
    return torch.bfloat16 if precision == "bfloat16" else None


def _cpu_multiplies_bfloat16() -> bool:
    # Present since torch 2.6; an older torch stays with float32.
    ask = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(ask is not None and ask())


def compiles(setting: str, device: torch.device) -> bool:
    """Whether to compile: `auto` does on CUDA; a CPU run of minutes would not earn it back."""
    return setting == "on" or (setting == "auto" and device.type == "cuda")
