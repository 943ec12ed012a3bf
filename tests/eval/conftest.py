"""Small models and tables for tests of scoring."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from packer.eval.token_bytes import TokenBytes
from torch import Tensor, nn

VOCAB = 11


class Tiny(nn.Module):
    """Logits from a decaying sum over the tokens so far: causal, and every position differs."""

    def __init__(self, seed: int, vocab: int = VOCAB) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.table = nn.Parameter(torch.randn(vocab, vocab, generator=generator))
        self.batches: list[int] = []

    def forward(self, tokens: Tensor) -> Tensor:
        self.batches.append(len(tokens))
        ages = torch.arange(tokens.size(1))
        weights = torch.tril(0.8 ** (ages[:, None] - ages).clamp(min=0).float())
        return weights @ self.table[tokens]


@pytest.fixture(scope="session")
def tiny() -> Callable[..., Tiny]:
    return Tiny


@pytest.fixture(scope="session")
def stream() -> NDArray[np.int64]:
    return np.random.default_rng(0).integers(0, VOCAB, 5000)


@pytest.fixture(scope="session")
def table() -> TokenBytes:
    """Token i stands for i bytes, odd ones with a space too; 0 is a boundary, 1 is unknown."""
    ids = np.arange(VOCAB)
    return TokenBytes(np.where(ids < 2, 0, ids), (ids % 2 == 1) & (ids > 1), ids < 2, ids == 1)
