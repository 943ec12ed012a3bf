"""Which windows of a token stream are scored, and where.

Target j is token j + 1, predicted from the tokens before it. Window k reads tokens from k * stride
on. The first one scores all its positions, every later one its last `stride`, so that each target
is scored once. The last window may reach past the end: it is filled up to full length, which
changes nothing before the filling, and scores what is left.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .errors import ScoreError
from .shards import TokenStream

PADDING = -1  # a target that does not exist


@dataclass(frozen=True)
class Windows:
    """How `targets` targets are divided: lengths in tokens.

    Raises ScoreError: a stride or window that does not fit.
    """

    targets: int
    window: int
    stride: int

    def __post_init__(self) -> None:
        if self.window < 1:
            raise ScoreError(f"window = {self.window} must be at least 1 token")
        if not 1 <= self.stride <= self.window:
            raise ScoreError(
                f"stride = {self.stride} must lie between 1 and the window's {self.window}"
            )
        if self.targets < self.window:
            raise ScoreError(
                f"a window of {self.window:,} tokens is longer than the {self.targets:,} targets "
                "to score: take a shorter window or more text"
            )

    @property
    def count(self) -> int:
        return 1 + -(-(self.targets - self.window) // self.stride)

    def scored_per_window(self, first: int) -> int:
        """Positions at the end of each window that are scored, in a batch from window `first`."""
        return self.window if first == 0 else self.stride

    def scored(self, first: int, stop: int) -> tuple[int, int]:
        """First and last-but-one target of windows first ... stop - 1."""
        start = 0 if first == 0 else self.window + (first - 1) * self.stride
        return start, min(self.window + (stop - 1) * self.stride, self.targets)

    def batches(self, size: int) -> list[tuple[int, int]]:
        """(first, stop) window numbers; windows of one batch score equally many positions."""
        head = [(0, 1)] if self.stride < self.window else []
        return head + [
            (first, min(first + size, self.count)) for first in range(len(head), self.count, size)
        ]

    def read(self, tokens: TokenStream, first: int, stop: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets int64 [windows, window]; filling is 0 and `PADDING`."""
        start = first * self.stride
        length = (stop - 1 - first) * self.stride + self.window
        piece = np.zeros(length + 1, dtype=np.int64)
        targets = np.full(length, PADDING, dtype=np.int64)
        available = tokens[start : min(start + length, self.targets) + 1]
        piece[: len(available)] = available
        targets[: len(available) - 1] = available[1:]
        cut = torch.arange(stop - first)[:, None] * self.stride + torch.arange(self.window)
        return torch.from_numpy(piece)[cut], torch.from_numpy(targets)[cut]
