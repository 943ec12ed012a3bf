"""Which windows of the token stream each step reads: a function of the step alone.

Nothing is remembered between steps, so a resumed run reads on exactly where it stopped, and every
process finds its share without asking the others.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from packer.eval.shards import TokenStream
from packer.train.settings import BatchSettings
from torch import Tensor

from packer.errors import PackerError

GOLDEN = (math.sqrt(5) - 1) / 2  # a stride near this share of the windows scatters them evenly


def windows_of_each(settings: BatchSettings, world_size: int) -> int:
    """Windows of a step that each process reads. Raises PackerError: they cannot be shared."""
    windows = settings.tokens // settings.sequence
    if windows % world_size:
        raise PackerError(
            f"batch.tokens = {settings.tokens:,} are {windows} windows of {settings.sequence:,}, "
            f"which {world_size} processes cannot share evenly: set it to a multiple of "
            f"{world_size * settings.sequence:,}"
        )
    return windows // world_size


@dataclass(frozen=True, eq=False)
class Batches:
    """Windows of a stream in the order of a run.

    stream: all training tokens. rank, world_size: this process reads its share of each step.
    Raises PackerError: too few tokens for one window, or windows that the processes cannot share.
    """

    stream: TokenStream
    settings: BatchSettings
    vocab_size: int
    seed: int
    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if self.windows < 1:
            raise PackerError(
                f"the training data has {len(self.stream):,} tokens, fewer than one window of "
                f"{self.settings.sequence:,} and its next token; give more text or a shorter "
                "batch.sequence"
            )
        windows_of_each(self.settings, self.world_size)

    @property
    def windows(self) -> int:
        return (len(self.stream) - 1) // self.settings.sequence

    def read(self, step: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets int64 [windows of this process, sequence] of step `step` (from 0).

        Raises PackerError: a token outside the vocabulary.
        """
        share = windows_of_each(self.settings, self.world_size)
        first = (step * self.world_size + self.rank) * share
        length = self.settings.sequence
        rows = np.empty((share, length + 1), dtype=np.int64)
        for row, number in enumerate(range(first, first + share)):
            start = self.window(number) * length
            rows[row] = self.stream[start : start + length + 1]
        if rows.max() >= self.vocab_size:
            raise PackerError(
                f"step {step} reads token {rows.max()}, outside the model's vocabulary of "
                f"{self.vocab_size:,}: the shards were made with another tokenizer; set "
                "model.vocab_size to theirs"
            )
        tokens = torch.from_numpy(rows)
        return tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

    def window(self, number: int) -> int:
        """The window that is read as number `number` of the whole run."""
        epoch, place = divmod(number, self.windows)
        if self.settings.order == "sequential":
            return place
        offset, stride = self._order(epoch)
        return (offset + place * stride) % self.windows

    def _order(self, epoch: int) -> tuple[int, int]:
        """(offset, stride) of one pass over the windows; another for every pass."""
        generator = np.random.default_rng([self.seed, epoch])
        offset = int(generator.integers(self.windows))
        stride = max(1, int(self.windows * (GOLDEN + 0.01 * generator.random())))
        while math.gcd(stride, self.windows) != 1:
            stride += 1
        return offset, stride
