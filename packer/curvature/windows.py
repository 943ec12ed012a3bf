"""The windows of a text that a model is calibrated on, and their batches."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from packer.errors import CurvatureError
from packer.eval.shards import TokenStream

BATCH_TOKENS = {"cpu": 1024, "cuda": 16_384}
LARGE_MODEL = 1 << 26  # weights; from here on batches are half as large, to save memory


def window_starts(windows: int, window: int, end: int) -> list[int]:
    """The first tokens of windows evenly spaced over the first `end` tokens of a text, which
    neither overlap nor touch its beginning; back to back from the first if they take as many.
    """
    end = max(end, windows * window)
    return [((2 * at + 1) * end - windows * window) // (2 * windows) for at in range(windows)]


def window_count(stream: TokenStream, window: int, tokens: int) -> int:
    """Windows in at most `tokens` tokens. Raises CurvatureError: not one."""
    tokens = min(tokens, len(stream))
    if window > tokens:
        raise CurvatureError(
            f"a window of {window:,} tokens is longer than the {tokens:,} tokens "
            "to calibrate on; take a shorter --window or more text"
        )
    return tokens // window


def token_batches(
    stream: TokenStream,
    window: int,
    tokens: int,
    device: torch.device,
    end: int = 0,
    weights: int = 0,
) -> list[Tensor]:
    """`tokens` tokens as int64 [windows, window], without an incomplete last window.

    end: the windows are evenly spaced over so many tokens; by default they are the first. weights:
    how many the model has. Raises CurvatureError: less than one window.
    """
    starts = window_starts(window_count(stream, window, tokens), window, end)
    windows = np.stack([stream[start : start + window] for start in starts])
    size = BATCH_TOKENS.get(device.type, BATCH_TOKENS["cpu"]) // (1 + (weights >= LARGE_MODEL))
    batches = torch.split(torch.tensor(windows, dtype=torch.int64), max(1, size // window))
    return list(batches)
