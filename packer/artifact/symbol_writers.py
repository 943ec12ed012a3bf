"""Encoders of ANS streams, stacks that take the last symbol first: constriction's, or numpy's."""

from __future__ import annotations

import functools
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from packer.artifact import stream_decoder
from packer.artifact.rans_encoder import Frequencies, LaneEncoder, lane_counts, lanes_for


class SymbolEncoder(Protocol):
    """A stack of symbols."""

    def model(self, counts: npt.NDArray[np.int64]) -> Any:
        """The model of symbols with these counts, for `symbols`."""

    def symbols(self, symbols: npt.NDArray[np.int32], model: Any) -> None:
        """Push symbols [count] under one model."""

    def levels(self, levels: list[int], guesses: list[int]) -> None:
        """Push the levels of a table, each under the model of its guess."""

    def data(self) -> bytes:
        """The bytes of the stream."""


class ConstrictionEncoder:
    """Coder 1: constriction's AnsCoder."""

    def __init__(self) -> None:
        import constriction

        self.coder: Any = constriction.stream.stack.AnsCoder()

    def model(self, counts: npt.NDArray[np.int64]) -> Any:
        return stream_decoder.categorical(counts)

    def symbols(self, symbols: npt.NDArray[np.int32], model: Any) -> None:
        self.coder.encode_reverse(symbols, model)

    def levels(self, levels: list[int], guesses: list[int]) -> None:
        import constriction

        family = constriction.stream.model.Categorical(perfect=False)
        weights = level_weight_table()[np.array(guesses) + 1]
        self.coder.encode_reverse(np.array(levels, dtype=np.int32), family, weights)

    def data(self) -> bytes:
        words: bytes = self.coder.get_compressed().astype("<u4").tobytes()
        return words


class RansEncoder:
    """Coder 6: interleaved rANS, its number of states by the entropy of the codes."""

    def __init__(self, codes: npt.NDArray[np.int8], reach: int) -> None:
        counts = np.bincount(codes.ravel().astype(np.int16) + reach)
        counts = counts[counts > 0]
        bits = float((counts * np.log2(codes.size / counts)).sum())
        self.coder = LaneEncoder(lanes_for(bits / 8))

    def model(self, counts: npt.NDArray[np.int64]) -> Any:
        return lane_counts(counts)

    def symbols(self, symbols: npt.NDArray[np.int32], model: Any) -> None:
        self.coder.encode_reverse(symbols, model)

    def levels(self, levels: list[int], guesses: list[int]) -> None:
        self.coder.encode_each(levels, [_level_frequencies(guess) for guess in guesses])

    def data(self) -> bytes:
        return self.coder.data()


@functools.cache
def level_weight_table() -> npt.NDArray[np.float64]:
    """Weights of the levels for every prediction [1 + LEVELS, LEVELS], -1 (none) first."""
    table = [stream_decoder.level_weights(guess) for guess in range(-1, stream_decoder.LEVELS)]
    return np.stack(table).astype(np.float64)


@functools.cache
def _level_frequencies(guess: int) -> Frequencies:
    return lane_counts(stream_decoder.level_weights(guess))
