"""The encoding half of rans_decoder.py: interleaved rANS states ("lanes") in numpy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from packer.artifact.rans_decoder import LOWEST, PRECISION, lane_frequencies

# A state may reach its symbol's frequency shifted so far, before it is coded.
_ROOM = 32 - PRECISION

Frequencies = tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]
"""(frequency, where its slots begin) of every symbol."""


def lane_counts(counts: npt.NDArray[Any]) -> Frequencies:
    """The model for LaneEncoder; `lane_model` gives LaneDecoder's, from the same counts."""
    frequencies = lane_frequencies(counts)
    return frequencies, frequencies.cumsum() - frequencies


class LaneEncoder:
    """A stack: what is encoded last is decoded first."""

    def __init__(self, lanes: int) -> None:
        self.states = np.full(lanes, LOWEST, dtype=np.int64)
        self.words: list[npt.NDArray[np.int64]] = []  # the last are read first

    def encode_reverse(self, symbols: npt.NDArray[Any], model: Frequencies) -> None:
        """Symbols [count] of one model, so that they are decoded in order."""
        frequencies, starts = model
        lanes = len(self.states)
        for start in reversed(range(0, len(symbols), lanes)):
            here = symbols[start : start + lanes]
            states, frequency = self.states[: len(here)], frequencies[here]
            full = np.flatnonzero(states >= frequency << _ROOM)
            self.words.append(states[full] & 0xFFFF)
            states[full] >>= 16
            whole, rest = np.divmod(states, frequency)
            states[:] = (whole << PRECISION) + rest + starts[here]

    def encode_each(self, symbols: Sequence[int], models: Sequence[Frequencies]) -> None:
        """Symbols that the decoder reads in calls of one symbol each: all of them in state 0."""
        state, words = int(self.states[0]), []
        for symbol, (frequencies, starts) in zip(reversed(symbols), reversed(models), strict=True):
            frequency = int(frequencies[symbol])
            if state >= frequency << _ROOM:
                words.append(state & 0xFFFF)
                state >>= 16
            whole, rest = divmod(state, frequency)
            state = (whole << PRECISION) + rest + int(starts[symbol])
        self.words.append(np.array(words[::-1], dtype=np.int64))
        self.states[0] = state

    def data(self) -> bytes:
        """As `LaneDecoder` reads it."""
        words = np.concatenate([*reversed(self.words), np.empty(0, np.int64)])
        lanes = bytes([len(self.states).bit_length() - 1])
        return lanes + self.states.astype("<u4").tobytes() + words.astype("<u2").tobytes()
