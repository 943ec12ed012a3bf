"""The parts of the companion model: one class or function an idea, no configuration inside.

Shapes in comments: batch, time, heads, kv_heads, head_dim, dim (model width), vocab. `Attention`
and `Block` compute only the last `last` positions when asked to: keys and values still need the
whole window, queries and everything after them do not, and that is all a sliding-window score of
the last layer reads.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# The hash of BigramHash: two odd multipliers, combined by exclusive or in 32-bit arithmetic.
HASH_CURRENT = 36313
HASH_PREVIOUS = 27191


def rms_norm(x: Tensor) -> Tensor:
    """Divide by the root mean square over the last axis; no parameters."""
    return F.rms_norm(x, (x.size(-1),))


def squared(x: Tensor) -> Tensor:
    return x.square() if x.requires_grad else x.square_()


def relu_squared(x: Tensor) -> Tensor:
    return squared(F.relu(x, inplace=True))


def leaky_relu_squared(x: Tensor) -> Tensor:
    """LeakyReLU with slope 0.5, squared: negative inputs count a quarter of positive ones."""
    return squared(F.leaky_relu(x, 0.5, inplace=True))


# They overwrite their input, the largest activation of all, which nobody needs afterwards.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu_squared": relu_squared,
    "leaky_relu_squared": leaky_relu_squared,
}


def rope_tables(
    time: int, dims: int, base: float, train_length: int, device: torch.device
) -> tuple[Tensor, Tensor]:
    """Cosines and sines [time, dims / 2] in float32 for the first `dims` of a head.

    Beyond `train_length` the base grows by (time / train_length)^(dims / (dims - 2)), so that the
    slowest wave stretches with the sequence ("NTK-aware" scaling; `dims` must be above 2 for it).
    """
    if time > train_length:
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


@cache
def flash_attention() -> Callable[..., Any] | None:
    """FlashAttention 3 if it can be imported, else 2, else None."""
    try:
        from flash_attn_interface import flash_attn_func
    except ImportError:
        try:
            from flash_attn import flash_attn_func
        except ImportError:
            return None
    return flash_attn_func  # type: ignore[no-any-return]


def causal_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention with grouped key and value heads.

    The queries are the last positions of the window when there are fewer of them than keys.

    Args:
        q: [batch, queries, heads, head_dim].
        k, v: [batch, time, kv_heads, head_dim]; kv_heads divides heads.

    Returns:
        [batch, queries, heads, head_dim], in the dtype of `v`.
    """
    flash = flash_attention() if v.is_cuda and v.dtype in (torch.bfloat16, torch.float16) else None
    if flash is not None:
        result = flash(q.to(v.dtype), k.to(v.dtype), v, causal=True)
        # Some releases return the log-sum-exp beside it.
        out: Tensor = result[0] if isinstance(result, tuple) else result
        return out
    queries, time, groups = q.size(1), k.size(1), q.size(2) // k.size(2)
    # Masks of scaled_dot_product_attention start at the first key; ours ends at the last.
    mask = None
    if queries != time:
        mask = torch.ones(queries, time, dtype=torch.bool, device=q.device).tril(time - queries)
    attended = F.scaled_dot_product_attention(
        q.to(v.dtype).transpose(1, 2),
        k.to(v.dtype).repeat_interleave(groups, dim=2).transpose(1, 2),
        v.repeat_interleave(groups, dim=2).transpose(1, 2),
        attn_mask=mask,
        is_causal=mask is None,
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
    return (grouped - along * direction).view_as(y)


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
    ) -> tuple[Tensor, Tensor]:
        """Attend from the last `last` positions to all before them.

        Args:
            x: [batch, time, dim], normalized.
            rope: tables of `rope_tables` for the whole window.
            value_embedding: [batch, time, kv_dim], added to the values.
            first_values: [batch, time, kv_heads, head_dim], the values of layer 0.

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
            values = values + value_embedding
        values = values.view(batch, time, self.num_kv_heads, -1)
        v = values
        if self.vrl_alpha is not None and first_values is not None:
            v = values + torch.sigmoid(self.vrl_alpha) * first_values
        if self.q_gain is not None:
            q, k = rms_norm(q), rms_norm(k)
        q, k = rotate(q, cos[-last:], sin[-last:]), rotate(k, cos, sin)
        if self.q_gain is not None:
            q = q * self.q_gain[:, None]
        y = causal_attention(q, k, v)
        if self.xsa:
            y = exclude_self(y, v[:, -last:])
        return self.proj(y.flatten(2)), values


class MLP(nn.Module):
    def __init__(self, dim: int, hidden: int, activation: str) -> None:
        super().__init__()
        self.fc = nn.Linear(dim, hidden, bias=False)
        self.proj = nn.Linear(hidden, dim, bias=False)
        self.activation = ACTIVATIONS[activation]

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.proj(self.activation(self.fc(x)))
        return out


class Block(nn.Module):
    """Attention and MLP, each normalized before and scaled after, on a stream mixed with `x0`."""

    def __init__(
        self,
        dim: int,
        attention: Attention,
        mlp: MLP,
        *,
        norm_scale: float,
        resid_mix: bool,
        output_scales: bool,
    ) -> None:
        super().__init__()
        self.attn, self.mlp, self.norm_scale = attention, mlp, norm_scale
        self.attn_scale = nn.Parameter(torch.ones(dim)) if output_scales else None
        self.mlp_scale = nn.Parameter(torch.ones(dim)) if output_scales else None
        self.resid_mix = None
        if resid_mix:
            self.resid_mix = nn.Parameter(torch.stack((torch.ones(dim), torch.zeros(dim))))

    def forward(
        self,
        x: Tensor,
        x0: Tensor,
        rope: tuple[Tensor, Tensor],
        value_embedding: Tensor | None,
        first_values: Tensor | None,
        last: int,
    ) -> tuple[Tensor, Tensor]:
        """Args and returns as in `Attention`; `x0` [batch, time, dim] enters every block."""
        if self.resid_mix is not None:
            x = torch.addcmul(self.resid_mix[0] * x, self.resid_mix[1], x0)
        out, values = self.attn(self._normalized(x), rope, value_embedding, first_values, last)
        x = _add(x[:, -last:], self.attn_scale, out)
        return _add(x, self.mlp_scale, self.mlp(self._normalized(x))), values

    def _normalized(self, x: Tensor) -> Tensor:
        x = rms_norm(x)
        return x if self.norm_scale == 1.0 else x * self.norm_scale


def _add(x: Tensor, scale: Tensor | None, out: Tensor) -> Tensor:
    return x + out if scale is None else torch.addcmul(x, scale, out)


class SmearGate(nn.Module):
    """Blend each position with the one before it; the first sees zeros."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.gate)
        before = F.pad(x[:, :-1], (0, 0, 1, 0))
        return (1 - gate) * x + gate * before


class BigramHash(nn.Module):
    """An embedding of the pair (previous token, token), hashed into `size - 1` rows.

    The last row is for the first position, which has no previous token.
    """

    def __init__(self, size: int, width: int, dim: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(size, width)
        self.proj = nn.Linear(width, dim, bias=False) if width != dim else None
        self.scale = nn.Parameter(torch.tensor(0.05))

    def rows(self, tokens: Tensor) -> Tensor:
        """Row [batch, time] of the table for every position."""
        tokens = tokens.to(torch.int32)
        first = self.embed.num_embeddings - 1
        pair = (HASH_CURRENT * tokens[:, 1:]) ^ (HASH_PREVIOUS * tokens[:, :-1])
        return F.pad(pair % first, (1, 0), value=first)

    def forward(self, tokens: Tensor) -> Tensor:
        x: Tensor = self.embed(self.rows(tokens))
        return (x if self.proj is None else self.proj(x)) * self.scale


class ValueEmbedding(nn.Module):
    """A second token embedding, added to the attention values of some layers."""

    def __init__(self, vocab_size: int, width: int, kv_dim: int) -> None:
        super().__init__()
        self.embed = nn.Embedding(vocab_size, width)
        self.proj = nn.Linear(width, kv_dim, bias=False) if width != kv_dim else None
        self.scale = nn.Parameter(torch.tensor(0.1))

    def forward(self, tokens: Tensor) -> Tensor:
        x: Tensor = self.embed(tokens)
        return (x if self.proj is None else self.proj(x)) * self.scale


def layer_norm_scale(layer: int) -> float:
    """The LN scale of a layer: 1 / sqrt(layer + 1)."""
    return 1.0 / math.sqrt(layer + 1)
