"""Encoders of ANS streams, stacks that take the last symbol first: constriction's, or numpy's."""

from __future__ import annotations

import functools
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from packer.artifact import stream_decoder
from packer.artifact.rans_decoder import MOST_LANES
from packer.artifact.rans_encoder import Frequencies, LaneEncoder, lane_counts

BYTES_PER_LANE = 2048  # of a stream, at least


class SymbolEncoder(Protocol):
    """A stack of symbols."""

    def model(self, counts: npt.NDArray[np.int64]) -> Any:
        """The model of symbols with these counts, for `encode_reverse`."""

    def encode_reverse(self, symbols: npt.NDArray[np.int32], model: Any) -> None:
        """Push symbols [count] under one model, so that they are decoded in order."""

    def levels(self, levels: npt.NDArray[np.int64], guesses: npt.NDArray[np.int64]) -> None:
        """Push the levels [count] of a table, each under the model of its guess."""

    def data(self) -> bytes:
        """The bytes of the stream."""


class ConstrictionEncoder:
    """Coder 1: constriction's AnsCoder."""

    def __init__(self) -> None:
        import constriction

        self.coder: Any = constriction.stream.stack.AnsCoder()

    def model(self, counts: npt.NDArray[np.int64]) -> Any:
        return stream_decoder.categorical(counts)

    def encode_reverse(self, symbols: npt.NDArray[np.int32], model: Any) -> None:
        self.coder.encode_reverse(symbols, model)

    def levels(self, levels: npt.NDArray[np.int64], guesses: npt.NDArray[np.int64]) -> None:
        import constriction

        family = constriction.stream.model.Categorical(perfect=False)
        weights = level_weight_table()[guesses + 1]
        self.coder.encode_reverse(levels.astype(np.int32), family, weights)

    def data(self) -> bytes:
        words: bytes = self.coder.get_compressed().astype("<u4").tobytes()
        return words


class RansEncoder(LaneEncoder):
    """Coder 6: interleaved rANS, its number of states by the entropy of the codes."""

    def __init__(self, codes: npt.NDArray[np.int8], reach: int) -> None:
        counts = np.bincount(codes.ravel().astype(np.int16) + reach)
        counts = counts[counts > 0]
        bits = float((counts * np.log2(codes.size / counts)).sum())
        # A power of two; a lane costs about two bytes, 0.1 % of BYTES_PER_LANE.
        lanes = 1 << int(np.log2(max(bits / 8 / BYTES_PER_LANE, 1.0)))
        super().__init__(min(lanes, 1 << MOST_LANES))

    def model(self, counts: npt.NDArray[np.int64]) -> Any:
        return lane_counts(counts)

    def levels(self, levels: npt.NDArray[np.int64], guesses: npt.NDArray[np.int64]) -> None:
        models = [_level_frequencies(guess) for guess in guesses.tolist()]
        self.encode_each(levels.tolist(), models)


@functools.cache
def level_weight_table() -> npt.NDArray[np.float64]:
    """Weights of the levels for every prediction [1 + LEVELS, LEVELS], -1 (none) first."""
    table = [stream_decoder.level_weights(guess) for guess in range(-1, stream_decoder.LEVELS)]
    return np.stack(table).astype(np.float64)


@functools.cache
def _level_frequencies(guess: int) -> Frequencies:
    return lane_counts(stream_decoder.level_weights(guess))
