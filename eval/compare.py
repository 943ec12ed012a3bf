"""Two models on the same tokens: the paired difference, the divergence, the agreement.

Both models see the same passages, so the difference of their scores is far better known than
either score: its standard error is over differences block by block.
"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .batches import Notice, Progress, Setting, ignore, walk
from .blocks import BlockSums, ratio_stderr
from .errors import ScoreError
from .forward import AnyModel, device_of, nats_of, scoring, tail_logits
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
        reference, other: their scores; each one's seconds are those of its own forward.
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

    def as_dict(self) -> dict[str, Any]:
        """The numbers, for JSON."""
        return {
            "delta_bpb": self.difference.delta_bpb,
            "delta_stderr_bits_per_byte": self.difference.stderr_bits_per_byte,
            "kl_bits_per_byte": self.kl_bits_per_byte,
            "kl_stderr_bits_per_byte": self.kl_stderr_bits_per_byte,
            "top1_agreement": self.top1_agreement,
        }


def compare(reference: Score, other: Score) -> Difference:
    """The paired difference of two scores of the same targets.

    Raises:
        ScoreError: scores of different targets.
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
    vocab_size = getattr(counter, "vocab_size", None)
    seconds, notes = np.zeros(1 + len(others)), list[str]()
    scores = [ScoreSums(stream, counter, setting) for _ in range(1 + len(others))]
    divergences = [BlockSums(scores[0].windows.targets) for _ in others]
    agreeing = [0] * len(others)

    def compute(inputs: Tensor, targets: Tensor, count: int) -> NDArray[np.float64]:
        with scoring([reference, *others], setting.autocast):
            return _rows([reference, *others], inputs, targets, count, vocab_size, seconds)

    def note(text: str) -> None:
        notes.append(text)
        notice(text)

    for start, rows in walk(
        stream, setting, device_of(reference), vocab_size, compute, progress, note
    ):
        scores[0].add(start, rows[0])
        for i, (nats, kl, agrees) in enumerate(rows[1:].reshape(len(others), ROWS, rows.shape[1])):
            scores[i + 1].add(start, nats)
            divergences[i].add(start, kl)
            agreeing[i] += int(agrees.sum())
    finished = [s.score(float(t), notes) for s, t in zip(scores, seconds, strict=True)]
    return [
        Divergence(finished[0], other, kl.sums, agrees)
        for other, kl, agrees in zip(finished[1:], divergences, agreeing, strict=True)
    ]


def combine(parts: Sequence[Divergence]) -> Divergence:
    """The divergence over all ranks from the parts of each; errors as in `score.combine`."""
    return Divergence(
        combine_scores([part.reference for part in parts]),
        combine_scores([part.other for part in parts]),
        np.sum([part.block_kl_nats for part in parts], axis=0),
        sum(part.agreeing_tokens for part in parts),
    )


def _rows(
    models: Sequence[AnyModel],
    inputs: Tensor,
    targets: Tensor,
    count: int,
    vocab_size: int | None,
    seconds: NDArray[np.float64],
) -> NDArray[np.float64]:
    """Rows float64 [1 + 3 * others, windows, count]; adds each model's time to `seconds`."""
    rows: list[Tensor] = []
    expected, best = inputs, inputs  # replaced by the reference, which comes first
    for i, model in enumerate(models):
        started = time.perf_counter()
        logits = tail_logits(model, inputs, count, vocab_size)
        rows.append(nats_of(logits, targets[:, -count:]).double().cpu())
        seconds[i] += time.perf_counter() - started
        log_probabilities = torch.log_softmax(logits, dim=-1)
        if i == 0:
            expected, best = log_probabilities, logits.argmax(dim=-1)
            continue
        if logits.shape != expected.shape:
            raise ScoreError(
                f"vocabularies of {expected.size(-1):,} and {logits.size(-1):,} tokens have no "
                "divergence: compare models of one vocabulary"
            )
        # Never negative but for rounding.
        kl = (expected.exp() * (expected - log_probabilities)).sum(dim=-1).clamp(min=0)
        rows.append(kl.double().cpu())
        rows.append((logits.argmax(dim=-1) == best).double().cpu())
    return torch.stack(rows).numpy()
