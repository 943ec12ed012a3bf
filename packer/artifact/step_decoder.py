"""Stepped formats: steps and codes of one tensor from its streams.

Like decoder.py this module is closed and part of the shipped loader. docs/format.md specifies it.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from packer.artifact.reader import ArtifactError, Reader
from packer.artifact.stream_decoder import ANS, NUMPY, decode_ans, decode_stream
from packer.artifact.trellis_decoder import decode_trellis
from packer.quantizers.step_grid import (
    LARGEST_INDEX,
    MAX_SHRINK,
    PER_OCTAVE,
    SMALLEST_INDEX,
    step_values,
)

# Of a format byte; plus 4 for codes on a trellis, 2 for a step per row, 1 for a step per column.
STEPPED_BYTE = 0x60


@dataclass(frozen=True)
class StoredSteps:
    """The steps of one axis: indices `base` + `stride` · the stream's symbols, or base alone."""

    base: int
    stride: int
    stream: tuple[int, memoryview] | None


def read_stepped(reader: Reader, format: int) -> tuple[int, tuple[StoredSteps, ...]]:
    """(shrink, steps of rows and then of columns), which follow the format byte."""
    shrink = reader.take(1)[0]
    steps = [read_steps(reader, format & 2)]
    if format & 1:
        steps.append(read_steps(reader, 1))
    return shrink, tuple(steps)


def read_steps(reader: Reader, several: int) -> StoredSteps:
    base = int.from_bytes(reader.take(2), "little", signed=True)
    if not several:
        return StoredSteps(base, 1, None)
    stride = reader.take(1)[0]
    if stride not in (1, 2, 4, PER_OCTAVE):
        raise ArtifactError(
            f"steps are {stride} grid points apart; 1, 2, 4 or {PER_OCTAVE} are known"
        )
    return StoredSteps(base, stride, reader.stream())


def decode_steps(stored: StoredSteps, count: int) -> npt.NDArray[Any]:
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
    return step_values(indices)


def decode_stepped(
    codes: tuple[int, memoryview],
    steps: tuple[StoredSteps, ...],
    shrink: int,
    rows: int,
    columns: int,
    trellis: int = 0,
) -> tuple[npt.NDArray[Any], npt.NDArray[Any], npt.NDArray[Any] | None, npt.NDArray[Any]]:
    """(int16 codes [rows, columns], row, column or None, uint8 shrink [1]), for dequantize_stepped.

    Raises ArtifactError.
    """
    if shrink > MAX_SHRINK:
        raise ArtifactError(
            f"values are shrunk by {shrink}/256 of a step; at most {MAX_SHRINK}/256"
        )
    coder, data = codes
    if coder not in (ANS, NUMPY):
        raise ArtifactError(f"codes of a stepped format come from coder {coder}, not from ans")
    row = decode_steps(steps[0], rows)
    column = decode_steps(steps[1], columns) if len(steps) > 1 else None
    if trellis:
        decoded = decode_trellis(data, rows, columns, row, column, coder)
    else:
        decoded = decode_ans(data, rows, columns, row, column, True, coder)
    return decoded, row, column, np.array([shrink], "u1")
