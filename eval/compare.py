"""Two models on the same tokens: the paired difference, the divergence, the agreement.

Both models see the same passages, so the difference of their scores is far better known than
either score: its standard error is over differences block by block.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .batches import Notice, Progress, Setting, ignore, walk
from .blocks import BlockSums, ratio_stderr
from .errors import ScoreError
from .forward import AnyModel, nats_of, tail_logits
from .score import ByteCounter, Score, ScoreSums
from .score import combine as combine_scores
from .shards import TokenStream

ROWS = 3  # of a compared model per target: nats, divergence, agreement


@dataclass(frozen=True)
class Difference:
    """Bits per byte of one model minus those of the reference; positive is worse."""

    delta_bpb: float
    stderr_bits_per_byte: float | None  # None with fewer than two blocks


@dataclass(frozen=True, eq=False)
class Divergence:
    """One model against a reference, on the same targets.

    Attributes:
        reference, other: their scores; the seconds of the pass are divided equally among models.
        block_kl_nats: float64 [blocks], KL(reference || other) summed over each block's targets.
        agreeing_tokens: targets where both find the same token most likely.
    """

    reference: Score
    other: Score
    block_kl_nats: NDArray[np.float64]
    agreeing_tokens: int

    @property
    def kl_bits_per_byte(self) -> float:
        return math.fsum(self.block_kl_nats) / math.log(2) / self.reference.bytes

    @property
    def kl_stderr_bits_per_byte(self) -> float | None:
        return ratio_stderr(self.block_kl_nats / math.log(2), self.reference.block_bytes)

    @property
    def top1_agreement(self) -> float:
        return self.agreeing_tokens / self.reference.tokens

    @property
    def difference(self) -> Difference:
        return compare(self.reference, self.other)


def compare(reference: Score, other: Score) -> Difference:
    """The paired difference of two scores of the same targets.

    Raises ScoreError: scores of different targets.
    """
    if not np.array_equal(reference.block_bytes, other.block_bytes) or (
        reference.tokens != other.tokens
    ):
        raise ScoreError(
            f"scores of {reference.tokens:,} and {other.tokens:,} tokens over {reference.bytes:,} "
            f"and {other.bytes:,} bytes are not of the same targets and cannot be paired"
        )
    bits = (other.block_nats - reference.block_nats) / math.log(2)
    return Difference(math.fsum(bits) / reference.bytes, ratio_stderr(bits, reference.block_bytes))


def divergence(
    reference: AnyModel,
    others: Sequence[AnyModel],
    stream: TokenStream,
    counter: ByteCounter,
    setting: Setting,
    *,
    progress: Progress = ignore,
    notice: Notice = ignore,
) -> list[Divergence]:
    """Score a reference and other models in one pass; memory stays that of a batch's logits.

    Arguments and errors as in `score`; every model must give logits, and all of one vocabulary
    and device.
    """
    models, started = [reference, *others], time.perf_counter()
    vocab_size = getattr(counter, "vocab_size", None)
    sums, notes = _Sums(len(others), stream, counter, setting), list[str]()

    def compute(inputs: Tensor, targets: Tensor, count: int) -> NDArray[np.float64]:
        return _rows(models, inputs, targets, count, vocab_size)

    def note(text: str) -> None:
        notes.append(text)
        notice(text)

    parts = walk(
        models, stream, setting, compute, vocab_size=vocab_size, progress=progress, notice=note
    )
    for start, rows in parts:
        sums.add(start, rows)
    return sums.divergences((time.perf_counter() - started) / len(models), notes)


def combine(parts: Sequence[Divergence]) -> Divergence:
    """The divergence over all ranks from the parts of each; errors as in `score.combine`."""
    return Divergence(
        combine_scores([part.reference for part in parts]),
        combine_scores([part.other for part in parts]),
        np.sum([part.block_kl_nats for part in parts], axis=0),
        sum(part.agreeing_tokens for part in parts),
    )


class _Sums:
    """Adds up the rows of a reference and some others, batch by batch."""

    def __init__(
        self, others: int, stream: TokenStream, counter: ByteCounter, setting: Setting
    ) -> None:
        self.reference = ScoreSums(stream, counter, setting)
        self.others = [ScoreSums(stream, counter, setting) for _ in range(others)]
        self.kl = [BlockSums(self.reference.windows.targets) for _ in range(others)]
        self.agreeing = [0] * others

    def add(self, start: int, rows: NDArray[np.float64]) -> None:
        """Add rows [1 + 3 * others, targets] as `_rows` orders them."""
        self.reference.add(start, rows[0])
        by_model = rows[1:].reshape(len(self.others), ROWS, rows.shape[1])
        for i, (nats, kl, agrees) in enumerate(by_model):
            self.others[i].add(start, nats)
            self.kl[i].add(start, kl)
            self.agreeing[i] += int(agrees.sum())

    def divergences(self, seconds: float, notes: Sequence[str]) -> list[Divergence]:
        reference = self.reference.score(seconds, notes)
        return [
            Divergence(reference, other.score(seconds, notes), kl.sums, agreeing)
            for other, kl, agreeing in zip(self.others, self.kl, self.agreeing, strict=True)
        ]


def _rows(
    models: Sequence[AnyModel], inputs: Tensor, targets: Tensor, count: int, vocab_size: int | None
) -> NDArray[np.float64]:
    """Rows float64 [1 + 3 * others, windows, count]: nats; then nats, divergence, agreement."""
    logits = tail_logits(models[0], inputs, count, vocab_size)
    rows = [nats_of(logits, targets[:, -count:])]
    expected, best = torch.log_softmax(logits, dim=-1), logits.argmax(dim=-1)
    for model in models[1:]:
        logits = tail_logits(model, inputs, count, vocab_size)
        if logits.shape != expected.shape:
            raise ScoreError(
                f"vocabularies of {expected.size(-1):,} and {logits.size(-1):,} tokens have no "
                "divergence: compare models of one vocabulary"
            )
        rows.append(nats_of(logits, targets[:, -count:]))
        # A token that the reference rules out adds nothing, though its difference may be NaN.
        gaps = (expected - torch.log_softmax(logits, dim=-1)).masked_fill(expected == -torch.inf, 0)
        # Never negative but for rounding.
        rows.append((expected.exp() * gaps).sum(dim=-1).clamp(min=0))
        rows.append((logits.argmax(dim=-1) == best).float())
    return torch.stack([row.double() for row in rows]).cpu().numpy()
