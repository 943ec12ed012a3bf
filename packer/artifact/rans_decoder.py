"""Coder 6: interleaved rANS in numpy (Duda, arXiv:1311.2540; Giesen, arXiv:1402.3392).

Several rANS states ("lanes") share one stream of words: symbol i of a call belongs to state i mod
lanes, so that one numpy operation decodes a symbol of every state. Like decoder.py this module is
closed and part of the shipped loader. docs/format.md specifies it.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from packer.artifact.reader import ArtifactError

PRECISION = 14  # bits of a probability
LOWEST = 1 << 16  # of a state; below it a 16-bit word is read
MOST_LANES = 10  # log2 of the interleaved states

Table = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.int64]]


def lane_frequencies(counts: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """int64 [symbols], summing to 2^14; 0 for symbols whose count is 0, and for no others."""
    used = counts > 0
    ends = counts.cumsum() * ((1 << PRECISION) - used.sum()) // counts.sum() + used.cumsum()
    frequencies: npt.NDArray[np.int64] = np.diff(ends, prepend=0)
    return frequencies


def lane_model(counts: npt.NDArray[Any]) -> Table:
    """(symbol, its frequency, offset of the slot within the symbol) of the slots, each [2^14]."""
    frequencies = lane_frequencies(counts)
    symbols = np.arange(len(counts)).repeat(frequencies)
    starts = frequencies.cumsum() - frequencies
    return symbols, frequencies[symbols], np.arange(1 << PRECISION) - starts[symbols]


class LaneDecoder:
    """Interleaved rANS states. Byte 0: log2 of their number; then 32-bit states, 16-bit words."""

    def __init__(self, data: bytes | memoryview) -> None:
        check_lanes(data)
        lanes = 1 << data[0]
        self.states = np.frombuffer(data, "<u4", lanes, 1).astype(np.int64)
        self.words = np.frombuffer(data, "<u2", -1, 1 + 4 * lanes)
        self.at = 0

    def decode(self, model: Table, count: int) -> npt.NDArray[np.int64]:
        """int64 [count] symbols."""
        symbols, frequencies, offsets = model
        slots = np.empty(count, np.int64)  # [count]
        lanes = len(self.states)
        for start in range(0, count, lanes):
            here = slots[start : start + lanes]
            states = self.states[: len(here)]
            here[:] = states & (1 << PRECISION) - 1
            states[:] = frequencies[here] * (states >> PRECISION) + offsets[here]
            low = np.flatnonzero(states < LOWEST)
            words = self.words[self.at : self.at + len(low)]
            if len(words) < len(low):
                raise ArtifactError("an ANS stream ends before its last symbol")
            states[low] = states[low] << 16 | words
            self.at += len(low)
        return symbols[slots]

    def is_empty(self) -> bool:
        """Whether all data were used, and every state is back at its encoder's initial value."""
        return self.at == len(self.words) and bool((self.states == LOWEST).all())


def check_lanes(data: bytes | memoryview) -> None:
    """Raises ArtifactError: too many states, a state below LOWEST, an even length."""
    if not len(data) or data[0] > MOST_LANES:
        log2_lanes = data[0] if len(data) else "?"
        raise ArtifactError(
            f"an ANS stream has 2^{log2_lanes} states; at most 2^{MOST_LANES} may be"
        )
    states = 4 << data[0]
    if len(data) < 1 + states or len(data) % 2 == 0:
        raise ArtifactError(f"{len(data)} bytes do not hold {1 << data[0]} states and words")
    if (np.frombuffer(data, "<u4", 1 << data[0], 1) < LOWEST).any():
        raise ArtifactError("an interleaved state of an ANS stream is too small")
