"""Bits per byte: nats over the targets of a token stream, over the bytes these stand for."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from .batches import Notice, Progress, Setting, ignore, walk
from .blocks import BlockSums, ratio_stderr
from .errors import ScoreError
from .forward import AnyModel, token_nats
from .shards import SCAN, TokenStream
from .token_bytes import CONTEXT


class ByteCounter(Protocol):
    """Bytes of text behind tokens: `TokenBytes`, `SidecarBytes` or `CountedText`."""

    def target_bytes(self, tokens: NDArray[np.integer[Any]], position: int) -> NDArray[np.int64]:
        """Bytes [n] of tokens[1:] given tokens [n + 1]; tokens[1] is at `position`."""

    def unknown_count(self, tokens: NDArray[np.integer[Any]]) -> int:
        """The number of tokens whose bytes of text are unknown."""

    def after(self, start: int) -> ByteCounter:
        """Of the stream without its first `start` tokens."""


@dataclass(frozen=True, eq=False)
class Score:
    """Bits per byte and its components. Sums are float64.

    Attributes:
        block_nats: float64 [blocks], nats over each block of 2,048 scored tokens.
        block_bytes: float64 [blocks], bytes of text in each.
        tokens: scored tokens.
        unknown_tokens: of these, tokens whose bytes of text are unknown.
        seconds: the time it took, reading and counting included.
        window, stride: how the stream was divided.
        notes: what happened on the way, in words for people.
    """

    block_nats: NDArray[np.float64]
    block_bytes: NDArray[np.float64]
    tokens: int
    unknown_tokens: int
    seconds: float
    window: int
    stride: int
    notes: tuple[str, ...] = ()

    @property
    def nats(self) -> float:
        return math.fsum(self.block_nats)

    @property
    def bytes(self) -> int:
        return int(self.block_bytes.sum())

    @property
    def bits_per_byte(self) -> float:
        """Raises ScoreError where the scored tokens stand for no bytes."""
        if self.bytes == 0:
            raise ScoreError(
                f"the {self.tokens:,} scored tokens stand for no bytes at all: "
                "the tokenizer or bytes table does not belong to this data"
            )
        return self.nats / math.log(2) / self.bytes

    @property
    def nats_per_token(self) -> float:
        return self.nats / self.tokens

    @property
    def perplexity(self) -> float:
        """Of a token; at most the exponential of 700, which is still a float64."""
        return math.exp(min(self.nats_per_token, 700.0))

    @property
    def bytes_per_token(self) -> float:
        return self.bytes / self.tokens

    @property
    def tokens_per_second(self) -> float:
        return self.tokens / self.seconds if self.seconds > 0 else 0.0

    @property
    def stderr_bits_per_byte(self) -> float | None:
        """Standard error of bits per byte over blocks; None with fewer than two."""
        return ratio_stderr(self.block_nats / math.log(2), self.block_bytes)

    def as_dict(self) -> dict[str, Any]:
        """The numbers, for JSON."""
        return {
            "bits_per_byte": self.bits_per_byte,
            "nats_per_token": self.nats_per_token,
            "perplexity": self.perplexity,
            "nats": self.nats,
            "tokens": self.tokens,
            "bytes": self.bytes,
            "bytes_per_token": self.bytes_per_token,
            "unknown_tokens": self.unknown_tokens,
            "stderr_bits_per_byte": self.stderr_bits_per_byte,
            "window": self.window,
            "stride": self.stride,
            "seconds": self.seconds,
            "tokens_per_second": self.tokens_per_second,
            "notes": list(self.notes),
        }


def target_bytes(
    stream: TokenStream, counter: ByteCounter, start: int, stop: int
) -> NDArray[np.int64]:
    """Bytes [stop - start] of targets start ... stop - 1, counted with the tokens around them."""
    first = max(start - CONTEXT, 0)
    counted = counter.target_bytes(stream[first : stop + 1 + CONTEXT], first + 1)
    return counted[start - first : stop - first]


def total_bytes(stream: TokenStream, counter: ByteCounter) -> int:
    """Bytes of text behind all targets of a stream."""
    targets = len(stream) - 1
    return sum(
        int(target_bytes(stream, counter, start, min(start + SCAN, targets)).sum())
        for start in range(0, targets, SCAN)
    )


class ScoreSums:
    """Adds up a score batch by batch."""

    def __init__(self, stream: TokenStream, counter: ByteCounter, setting: Setting) -> None:
        self.stream, self.counter = stream, counter
        self.windows = setting.windows(stream)
        self.nats, self.bytes = (BlockSums(self.windows.targets) for _ in range(2))
        self.tokens = self.unknown_tokens = 0

    def add(self, start: int, nats: NDArray[np.float64]) -> None:
        """Add nats [n] of targets start ... start + n - 1.

        Raises ScoreError: losses that are not finite.
        """
        if not np.isfinite(nats).all():
            at = start + int((~np.isfinite(nats)).argmax())
            raise ScoreError(
                f"the model's loss at target {at:,} is not finite: its weights are damaged or "
                "overflow in this precision"
            )
        stop = start + len(nats)
        self.nats.add(start, nats)
        self.bytes.add(start, target_bytes(self.stream, self.counter, start, stop))
        self.tokens += len(nats)
        self.unknown_tokens += self.counter.unknown_count(self.stream[start + 1 : stop + 1])

    def score(self, seconds: float, notes: Sequence[str]) -> Score:
        return Score(
            self.nats.sums,
            self.bytes.sums,
            self.tokens,
            self.unknown_tokens,
            seconds,
            self.windows.window,
            self.windows.stride,
            tuple(notes),
        )


def score(
    model: AnyModel,
    stream: TokenStream,
    counter: ByteCounter,
    setting: Setting,
    *,
    progress: Progress = ignore,
    notice: Notice = ignore,
) -> Score:
    """Score a model on a stream of tokens.

    Args:
        model: tokens [batch, time] to logits [batch, time, vocab], or one of the richer protocols
            of `forward`; it is in evaluation mode while this runs.
        progress: called after each batch with (scored, to score) tokens of this rank.
        notice: called with a sentence when the batch had to be made smaller; `notes` has it too.

    Raises ScoreError: settings that do not fit the stream, a model or data of another vocabulary,
    losses that are not finite, or not enough memory for one window.
    """
    started, sums, notes = time.perf_counter(), ScoreSums(stream, counter, setting), list[str]()
    vocab_size = getattr(counter, "vocab_size", None)

    def note(text: str) -> None:
        notes.append(text)
        notice(text)

    for start, nats in _scored(model, stream, vocab_size, setting, progress, note):
        sums.add(start, nats)
    return sums.score(time.perf_counter() - started, notes)


def nats_per_token(
    model: AnyModel,
    stream: TokenStream,
    setting: Setting,
    *,
    progress: Progress = ignore,
    notice: Notice = ignore,
) -> NDArray[np.float32]:
    """Nats float32 [targets] of every target, in order; those of other ranks are left at zero."""
    out = np.zeros(setting.windows(stream).targets, dtype=np.float32)
    for start, nats in _scored(model, stream, None, setting, progress, notice):
        out[start : start + len(nats)] = nats
    return out


def combine(parts: Sequence[Score]) -> Score:
    """The score of all ranks from the parts of each.

    Raises ScoreError: no parts, or parts of different data or settings.
    """
    if len({(len(part.block_nats), part.window, part.stride) for part in parts}) != 1:
        raise ScoreError("parts of one score must come from the same data, window and stride")
    return Score(
        np.sum([part.block_nats for part in parts], axis=0),
        np.sum([part.block_bytes for part in parts], axis=0),
        sum(part.tokens for part in parts),
        sum(part.unknown_tokens for part in parts),
        max(part.seconds for part in parts),
        parts[0].window,
        parts[0].stride,
        tuple(dict.fromkeys(note for part in parts for note in part.notes)),
    )


def _scored(
    model: AnyModel,
    stream: TokenStream,
    vocab_size: int | None,
    setting: Setting,
    progress: Progress,
    notice: Notice,
) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """Yield (first target, nats float64 [n]) batch by batch."""

    def compute(inputs: Tensor, targets: Tensor, count: int) -> NDArray[np.float64]:
        return token_nats(model, inputs, targets, count, vocab_size).double().cpu().numpy()[None]

    parts = walk(
        [model], stream, setting, compute, vocab_size=vocab_size, progress=progress, notice=notice
    )
    for start, rows in parts:
        yield start, rows[0]


def bytes_per_token(
    stream: TokenStream, counter: ByteCounter, starts: Sequence[int], window: int
) -> float:
    """Bytes of text behind one target of windows, on average.

    starts: the token of the stream that each begins with. Raises ScoreError: they stand for none.
    """
    total = targets = 0
    for start in starts:
        piece = stream[start : start + window + 1]
        total += int(counter.after(start).target_bytes(piece, 1).sum())
        targets += len(piece) - 1
    if total == 0:
        raise ScoreError(
            f"{targets:,} tokens of the text stand for no bytes at all: "
            "the tokenizer or bytes table does not belong to this data"
        )
    return total / targets
