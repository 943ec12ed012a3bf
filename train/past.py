"""What a model keeps of the positions it has been through: the next one is computed alone."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


class KeyValues:
    """Keys and values of one layer, [batch, kv_heads, length, head_dim], filled from the left."""

    def __init__(self, length: int) -> None:
        self.length, self.filled = length, 0
        self._kept: tuple[Tensor, Tensor] | None = None

    def extended(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values [batch, kv_heads, positions, head_dim] with those of one more
        position, [batch, 1, kv_heads, head_dim]. Raises ValueError: the length is used up.
        """
        if self.filled == self.length:
            raise ValueError(f"all {self.length} positions are filled")
        if self._kept is None:
            batch, _, heads, width = k.shape
            shape = batch, heads, self.length, width
            self._kept = v.new_empty(shape), v.new_empty(shape)
        at, self.filled = self.filled, self.filled + 1
        keys, values = self._kept
        keys[:, :, at], values[:, :, at] = k[:, 0], v[:, 0]
        return keys[:, :, : at + 1], values[:, :, : at + 1]


class Past:
    """Keys and values of every layer, and the rotary tables of the whole window."""

    def __init__(self, layers: int, length: int, rope: tuple[Tensor, Tensor]) -> None:
        self.layers = [KeyValues(length) for _ in range(layers)]
        self.rope = rope

    @property
    def filled(self) -> int:
        """Positions that it has been through."""
        return self.layers[0].filled

    def rope_here(self) -> tuple[Tensor, Tensor]:
        """Cosines and sines [1, dims / 2] of the position that comes next."""
        cos, sin = (table[self.filled : self.filled + 1] for table in self.rope)
        return cos, sin


def attend_to_past(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Attention of one position to all up to itself.

    The query heads that share a key head are taken for as many positions of it, so that nothing
    that is kept needs to be repeated.

    Args:
        q: [batch, 1, heads, head_dim].
        k, v: [batch, kv_heads, positions, head_dim].

    Returns:
        [batch, 1, heads, head_dim], in the dtype of `v`.
    """
    batch, _, heads, width = q.shape
    grouped = q.reshape(batch, v.size(1), heads // v.size(1), width).to(v.dtype)
    return F.scaled_dot_product_attention(grouped, k, v).reshape(batch, 1, heads, width)
