"""The parts of the companion model around attention: one class an idea, no configuration inside.

Shapes in comments: batch, time, heads, kv_heads, head_dim, dim (model width), vocab. `Block`
computes only the last `last` positions when asked to, as `Attention` does.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import Attention, rms_norm
from .past import KeyValues

# The hash of BigramHash: two odd multipliers, combined by exclusive or in 32-bit arithmetic.
HASH_CURRENT = 36313
HASH_PREVIOUS = 27191


def squared(x: Tensor) -> Tensor:
    return x.square() if x.requires_grad else x.square_()


def relu_squared(x: Tensor) -> Tensor:
    return squared(F.relu(x, inplace=True))


def leaky_relu_squared(x: Tensor) -> Tensor:
    """LeakyReLU with slope 0.5, squared: negative inputs count a quarter of positive ones."""
    return squared(F.leaky_relu(x, 0.5, inplace=True))


# They overwrite their input, the largest activation of all, which is not needed afterwards.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu_squared": relu_squared,
    "leaky_relu_squared": leaky_relu_squared,
}


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
        resid_mix: float | None,
        output_scales: bool,
    ) -> None:
        """resid_mix: share of the stream at first, the rest is that of `x0`; None: no mixing."""
        super().__init__()
        self.attn, self.mlp, self.norm_scale = attention, mlp, norm_scale
        self.attn_scale = nn.Parameter(torch.ones(dim)) if output_scales else None
        self.mlp_scale = nn.Parameter(torch.ones(dim)) if output_scales else None
        self.resid_mix = None
        if resid_mix is not None:
            shares = torch.tensor([[resid_mix], [1 - resid_mix]])
            self.resid_mix = nn.Parameter(shares.repeat(1, dim))

    def forward(
        self,
        x: Tensor,
        x0: Tensor,
        rope: tuple[Tensor, Tensor],
        value_embedding: Tensor | None,
        first_values: Tensor | None,
        last: int,
        past: KeyValues | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Args and returns as in `Attention`; `x0` [batch, time, dim] enters every block."""
        if self.resid_mix is not None:
            stream, embedding = self.resid_mix.to(x.dtype)
            x = torch.addcmul(stream * x, embedding, x0)
        out, values = self.attn(
            self._normalized(x), rope, value_embedding, first_values, last, past
        )
        x = _add(x[:, -last:], self.attn_scale, out)
        return _add(x, self.mlp_scale, self.mlp(self._normalized(x))), values

    def _normalized(self, x: Tensor) -> Tensor:
        x = rms_norm(x)
        return x if self.norm_scale == 1.0 else x * self.norm_scale


def _add(x: Tensor, scale: Tensor | None, out: Tensor) -> Tensor:
    out = out.to(x.dtype)
    return x + out if scale is None else torch.addcmul(x, scale.to(x.dtype), out)


class SmearGate(nn.Module):
    """Blend each position with the one before it; the first sees zeros."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.gate = nn.Parameter(torch.zeros(dim))

    def forward(self, x: Tensor) -> Tensor:
        gate = torch.sigmoid(self.gate).to(x.dtype)
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
