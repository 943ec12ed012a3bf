"""A stand-in for FlashAttention, if missing, while a third-party model file is imported.

The functions compute the same through `scaled_dot_product_attention`. Options that would change
the result and are not implemented are refused by name, never ignored.
"""

from __future__ import annotations

import importlib.machinery
import importlib.util
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# FlashAttention 2 and the two places where 3 lives.
MODULES = ("flash_attn", "flash_attn.flash_attn_interface", "flash_attn_interface")

# Options of either release that change speed only, or whose default changes nothing.
HARMLESS = {
    "deterministic": (True, False),
    "return_attn_probs": (False,),
    "return_softmax_lse": (False,),
    "alibi_slopes": (None,),
    "softcap": (0, 0.0),
    "num_splits": (0, 1),
    "pack_gqa": (None, True, False),
    "sm_margin": (0,),
}


@contextmanager
def flash_stand_in() -> Iterator[None]:
    """Make `import flash_attn` and `import flash_attn_interface` work where they are missing.

    The stand-ins are in `sys.modules` only inside this context.
    """
    missing = [name for name in MODULES if not _installed(name)]
    for name in missing:
        module = ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        module.__path__ = []
        module.flash_attn_func = flash_attn_func  # type: ignore[attr-defined]
        module.flash_attn_varlen_func = flash_attn_varlen_func  # type: ignore[attr-defined]
        sys.modules[name] = module
    try:
        yield
    finally:
        for name in missing:
            sys.modules.pop(name, None)


def _installed(name: str) -> bool:
    root = name.partition(".")[0]
    return root in sys.modules or importlib.util.find_spec(root) is not None


def flash_attn_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    dropout_p: float = 0.0,
    softmax_scale: float | None = None,
    causal: bool = False,
    window_size: tuple[int, int] = (-1, -1),
    **options: Any,
) -> Tensor:
    """Attention [batch, queries, heads, head_dim] over k, v [batch, time, kv_heads, head_dim].

    Queries are aligned with the last keys, as in FlashAttention from 2.1 on.
    Raises NotImplementedError: an option that would change the result.
    """
    if dropout_p:
        raise NotImplementedError("the flash_attn stand-in has no dropout")
    for name, value in options.items():
        if value not in HARMLESS.get(name, ()):
            raise NotImplementedError(f"the flash_attn stand-in has no {name}={value!r}")
    groups = q.size(2) // k.size(2)
    k, v = (x.repeat_interleave(groups, dim=2).transpose(1, 2) for x in (k, v))
    mask = _mask(q.size(1), k.size(2), causal, window_size, q.device)
    out = F.scaled_dot_product_attention(
        q.transpose(1, 2), k, v, attn_mask=mask, scale=softmax_scale
    )
    return out.transpose(1, 2)


def flash_attn_varlen_func(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    cu_seqlens_k: Tensor,
    max_seqlen_q: int | None = None,
    max_seqlen_k: int | None = None,
    **options: Any,
) -> Tensor:
    """Attention [tokens, heads, head_dim] within each of several sequences in a row."""
    del max_seqlen_q, max_seqlen_k  # they only size the kernel's work
    bounds = zip(
        *(x.tolist() for x in (cu_seqlens_q, cu_seqlens_q[1:], cu_seqlens_k, cu_seqlens_k[1:])),
        strict=False,
    )
    return torch.cat(
        [
            flash_attn_func(q[None, a:b], k[None, c:d], v[None, c:d], **options)[0]
            for a, b, c, d in bounds
        ]
    )


def _mask(
    queries: int, time: int, causal: bool, window: tuple[int, int], device: torch.device
) -> Tensor | None:
    left, right = window
    if causal:
        right = 0
    if left < 0 and right < 0:
        return None
    at = torch.arange(time - queries, time, device=device)[:, None]
    key = torch.arange(time, device=device)
    near = torch.ones(queries, time, dtype=torch.bool, device=device)
    if left >= 0:
        near &= key >= at - left
    if right >= 0:
        near &= key <= at + right
    return near
