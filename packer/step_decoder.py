"""Stepped formats: steps and codes of one tensor out of its streams.

Like decoder.py this module is closed and part of the shipped loader. docs/format.md specifies it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from packer.quantizers.step_grid import (
    LARGEST_INDEX,
    MAX_SHRINK,
    PER_OCTAVE,
    SMALLEST_INDEX,
    steps_of,
)
from packer.stream_decoder import ArtifactError, decode_ans, decode_stream

STEPPED = 0x60  # of a format byte; plus 2 for a step per row, 1 for a step per column


@dataclass(frozen=True)
class StoredSteps:
    """The steps of one axis: indices `base` + `stride` · the stream's symbols, or base alone."""

    base: int
    stride: int
    stream: tuple[int, memoryview] | None


def parse_base(raw: memoryview) -> int:
    return int.from_bytes(raw, "little", signed=True)


def parse_stride(byte: int) -> int:
    if byte not in (1, 2, 4, PER_OCTAVE):
        raise ArtifactError(
            f"steps are {byte} grid points apart; 1, 2, 4 or {PER_OCTAVE} are known"
        )
    return byte


def decode_steps(stored: StoredSteps, count: int) -> torch.Tensor:
    """float32 [count], or [1] where one step serves all. Raises ArtifactError."""
    indices = np.array([stored.base], dtype=np.int64)
    if stored.stream is not None:
        symbols = decode_stream(stored.stream, 1, count, None)[0].astype(np.int64)
        indices = stored.base + stored.stride * symbols
    if indices.size and not (indices.min() >= SMALLEST_INDEX and indices.max() <= LARGEST_INDEX):
        raise ArtifactError(
            f"a step has index {indices.min()} or {indices.max()}; {SMALLEST_INDEX} to "
            f"{LARGEST_INDEX} are allowed"
        )
    return steps_of(indices)


def decode_stepped(
    codes: tuple[int, memoryview],
    steps: tuple[StoredSteps, ...],
    shrink: int,
    rows: int,
    columns: int,
) -> dict[str, Any]:
    """codes int16 [rows, columns], row, column (None without) and shrink: what dequantizes.

    Raises ArtifactError.
    """
    if shrink > MAX_SHRINK:
        raise ArtifactError(
            f"values are shrunk by {shrink}/256 of a step; at most {MAX_SHRINK}/256"
        )
    if codes[0] != 1:
        raise ArtifactError(f"codes of a stepped format come from coder {codes[0]}, not from ans")
    row = decode_steps(steps[0], rows)
    column = decode_steps(steps[1], columns) if len(steps) > 1 else None
    scales = row.numpy(), None if column is None else column.numpy()
    decoded = decode_ans(codes[1], rows, columns, *scales, wide=True)
    shrinks = torch.tensor([shrink], dtype=torch.uint8)
    return {"codes": torch.from_numpy(decoded), "row": row, "column": column, "shrink": shrinks}
