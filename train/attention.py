"""Attention of the companion model: rotary positions, grouped heads, and what may be added to them.

Shapes in comments: batch, time, heads, kv_heads, head_dim, dim (model width). `Attention` computes
only the last `last` positions when asked to: keys and values still need the whole window, queries
and everything after them do not, and that is all a sliding-window score of the last layer reads.
"""

from __future__ import annotations

import contextlib
import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .past import KeyValues, attend_to_past

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
FLASH_DEVICE = "cuda"
# From torch 2.5 on; without it each key and value head is repeated.
GROUPED_HEADS = "enable_gqa" in (F.scaled_dot_product_attention.__doc__ or "")


def rms_norm(x: Tensor) -> Tensor:
    """Divide by the root mean square over the last axis, computed in float32; no parameters.

    The result has the dtype of `x`, also where autocast would make it float32.
    """
    return F.rms_norm(x.float(), (x.size(-1),)).to(x.dtype)


def stream_dtype(x: Tensor) -> torch.dtype:
    """Of the residual stream: that of matrix products under autocast, as half the traffic."""
    if torch.is_autocast_enabled(x.device.type):
        return torch.get_autocast_dtype(x.device.type)
    return x.dtype


def rope_tables(
    time: int, dims: int, base: float, train_length: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Cosines and sines [time, dims / 2] in float32 for the first `dims` of a head.

    Beyond `train_length` the base grows by (time / train_length)^(dims / (dims - 2)), so that the
    slowest wave stretches with the sequence ("NTK-aware" scaling; `dims` must be above 2 for it).
    A `train_length` of 0 never does.
    """
    if train_length and time > train_length:
        base = base * (time / train_length) ** (dims / (dims - 2))
    exponents = torch.arange(0, dims, 2, device=device, dtype=torch.float32) / dims
    angles = torch.outer(
        torch.arange(time, device=device, dtype=torch.float32), 1.0 / base**exponents
    )
    return angles.cos(), angles.sin()


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary embedding (Su et al. 2021) of the leading dimensions; the rest pass unchanged.

    Args:
        x: [batch, time, heads, head_dim]; dimension i turns together with i + dims / 2.
        cos, sin: [time, dims / 2].
    """
    half = cos.size(-1)
    cos, sin = cos[:, None, :].to(x.dtype), sin[:, None, :].to(x.dtype)
    first, second, rest = x[..., :half], x[..., half : 2 * half], x[..., 2 * half :]
    return torch.cat((first * cos + second * sin, second * cos - first * sin, rest), dim=-1)


def flash_attention() -> Callable[..., Any] | None:
    """FlashAttention 3 on Hopper, else 2 from Ampere on, where it can be imported; else None."""
    if not torch.cuda.is_available():
        return None
    generation = torch.cuda.get_device_capability()[0]
    for name, oldest, newest in (("flash_attn_interface", 9, 9), ("flash_attn", 8, 99)):
        if oldest <= generation <= newest:
            with contextlib.suppress(ImportError):
                return importlib.import_module(name).flash_attn_func  # type: ignore[no-any-return]
    return None


def chosen_attention(head_dim: int) -> Attend:
    """The attention of a model: chosen once, when it is made, since compilers stop at imports.

    FlashAttention has kernels for heads of up to 256 in multiples of 8.
    """
    flash = flash_attention() if head_dim % 8 == 0 and head_dim <= 256 else None
    return causal_attention if flash is None else partial(flash_causal_attention, flash)


def attention_name(attend: Attend) -> str:
    """What computes attention, for a notice."""
    if isinstance(attend, partial):
        return f"FlashAttention of {attend.args[0].__module__.partition('.')[0]}"
    return "scaled_dot_product_attention"


def flash_causal_attention(flash: Callable[..., Any], q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`causal_attention` by FlashAttention, which takes floats of 16 bits on a GPU alone."""
    if v.device.type != FLASH_DEVICE or v.dtype.itemsize != 2:
        return causal_attention(q, k, v)
    result = flash(q.to(v.dtype), k.to(v.dtype), v, causal=True)
    # Some releases return the log-sum-exp beside it.
    out: Tensor = result[0] if isinstance(result, tuple) else result
    return out


def attention_in_float32(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """`causal_attention` in float32, in the dtype of `v` again: faster on some CPUs."""
    return causal_attention(q.float(), k.float(), v.float()).to(v.dtype)


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention with grouped key and value heads.

    The queries are the last positions of the window when there are fewer of them than keys.

    Args:
        q: [batch, queries, heads, head_dim].
        k, v: [batch, time, kv_heads, head_dim]; kv_heads divides heads.

    Returns:
        [batch, queries, heads, head_dim], in the dtype of `v`.
    """
    queries, time = q.size(1), k.size(1)
    # Masks of scaled_dot_product_attention start at the first key; ours ends at the last.
    mask = None
    if queries != time:
        mask = torch.ones(queries, time, dtype=torch.bool, device=q.device).tril(time - queries)
    q, k, groups = q.to(v.dtype), k.to(v.dtype), q.size(2) // k.size(2)
    if groups > 1 and not GROUPED_HEADS:
        k, v = k.repeat_interleave(groups, dim=2), v.repeat_interleave(groups, dim=2)
    options: dict[str, Any] = {"enable_gqa": True} if groups > 1 and GROUPED_HEADS else {}
    attended = F.scaled_dot_product_attention(
        q.transpose(1, 2),
        k.transpose(1, 2),
        v.transpose(1, 2),
        attn_mask=mask,
        is_causal=mask is None,
        **options,
    )
    return attended.transpose(1, 2)


def exclude_self(y: Tensor, v: Tensor) -> Tensor:
    """XSA: take out of each head's output its projection on the position's own value vector.

    Args:
        y: [batch, time, heads, head_dim], attention output.
        v: [batch, time, kv_heads, head_dim], the values at the same positions.
    """
    grouped = y.reshape(*v.shape[:3], -1, v.size(3))  # [batch, time, kv_heads, group, head_dim]
    direction = F.normalize(v, dim=-1).unsqueeze(3)
    along = (grouped * direction).sum(dim=-1, keepdim=True)
    return (grouped - along * direction).view_as(y).to(y.dtype)


class Attention(nn.Module):
    """Causal self-attention with grouped heads, QK-norm, partial RoPE, XSA and value residuals."""

    def __init__(
        self,
        dim: int,
        num_heads: int,
        num_kv_heads: int,
        *,
        q_gain_init: float | None,
        xsa: bool,
        value_residual_init: float | None,
    ) -> None:
        """`q_gain_init` None leaves out QK-norm, `value_residual_init` None leaves out VRL."""
        super().__init__()
        self.num_heads, self.num_kv_heads, self.xsa = num_heads, num_kv_heads, xsa
        self.attend = chosen_attention(dim // num_heads)
        kv_dim = dim // num_heads * num_kv_heads
        self.c_q = nn.Linear(dim, dim, bias=False)
        self.c_k = nn.Linear(dim, kv_dim, bias=False)
        self.c_v = nn.Linear(dim, kv_dim, bias=False)
        self.proj = nn.Linear(dim, dim, bias=False)
        self.q_gain = None
        if q_gain_init is not None:
            self.q_gain = nn.Parameter(torch.full((num_heads,), q_gain_init))
        self.vrl_alpha = None
        if value_residual_init is not None:
            self.vrl_alpha = nn.Parameter(torch.full((1,), value_residual_init))

    def forward(
        self,
        x: Tensor,
        rope: tuple[Tensor, Tensor],
        value_embedding: Tensor | None,
        first_values: Tensor | None,
        last: int,
        past: KeyValues | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Attend from the last `last` positions to all before them.

        Args:
            x: [batch, time, dim], normalized.
            rope: tables of `rope_tables` for the whole window.
            value_embedding: [batch, time, kv_dim], added to the values.
            first_values: [batch, time, kv_heads, head_dim], the values of layer 0.
            past: keys and values of all positions before, where `x` is one position alone.

        Returns:
            The output [batch, last, dim], and this layer's values before the first layer's are
            mixed in, [batch, time, kv_heads, head_dim].
        """
        cos, sin = rope
        batch, time, _ = x.shape
        q = self.c_q(x[:, -last:]).view(batch, last, self.num_heads, -1)
        k = self.c_k(x).view(batch, time, self.num_kv_heads, -1)
        values = self.c_v(x)
        if value_embedding is not None:
            values = values + value_embedding.to(values.dtype)
        values = values.view(batch, time, self.num_kv_heads, -1)
        v = values
        if self.vrl_alpha is not None and first_values is not None:
            v = values + torch.sigmoid(self.vrl_alpha).to(values.dtype) * first_values
        if self.q_gain is not None:
            q, k = rms_norm(q), rms_norm(k)
        q, k = rotate(q, cos[-last:], sin[-last:]), rotate(k, cos, sin)
        if self.q_gain is not None:
            q = q * self.q_gain[:, None].to(q.dtype)
        y = self.attend(q, k, v) if past is None else attend_to_past(q, *past.extended(k, v))
        if self.xsa:
            y = exclude_self(y, v[:, -last:])
        return self.proj(y.flatten(2)), values
