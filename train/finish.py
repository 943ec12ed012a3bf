"""The end of a run: every average of the weights is packed under the cap and scored, both ways."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from packer.eval.score import Score
from packer.train.calibrating import curvature_of, without_gptq
from packer.train.config import settings_of
from packer.train.ledger import Ledger
from packer.train.settings import TrainConfig
from packer.train.trained_plan import plan_as_trained, with_pruned_codes
from packer.train.training_data import TrainingData
from packer.train.validation import Validation
from torch import Tensor

from packer import api
from packer.curvature.curvature_set import CurvatureSet
from packer.curvature.ranks import ALONE, Ranks
from packer.errors import CapError
from packer.packing.verify import write_weights
from packer.planning.account import Account

T = TypeVar("T")
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, eq=False)
class Finished:
    """One average. before, after: its score as trained and through the file, None without data.

    artifact, account: None where no cap was asked for, or nothing fits. refused: why not.
    """

    name: str
    checkpoint: Path
    before: Score | None
    artifact: Path | None = None
    account: Account | None = None
    after: Score | None = None
    note: str = ""

    def to_json(self) -> dict[str, Any]:
        return {
            "average": self.name,
            "checkpoint": str(self.checkpoint),
            "bits_per_byte": None if self.before is None else self.before.bits_per_byte,
            "artifact": None if self.artifact is None else str(self.artifact),
            "total_bytes": None if self.account is None else self.account.total_bytes,
            "unused_bytes": None if self.account is None else self.account.unused_bytes,
            "packed_bits_per_byte": None if self.after is None else self.after.bits_per_byte,
            "note": self.note,
        }


@dataclass(frozen=True, eq=False)
class Ending:
    """What the end of a run works with. ranks: all calibrate and score; the first packs and writes.

    Every rank calls the same methods, and each returns the same on all.
    """

    config: TrainConfig
    data: TrainingData
    folder: Path
    ledger: Ledger
    validation: Validation
    ranks: Ranks = ALONE

    def finish(
        self,
        averages: Mapping[str, Mapping[str, Tensor]],
        pins: Mapping[str, str],
        progress: Progress,
    ) -> list[Finished]:
        """Write, score, and under a cap pack and score again, every average by name.

        pins: tensor or selector -> choice that packing is held to while it fits.
        Raises PackerError: a file cannot be written, or the weights are not finite.
        """
        done = []
        for number, (name, weights) in enumerate(averages.items()):
            progress(f"{name} weights", number, len(averages))
            done.append(self._finish_one(name, weights, pins, 1 / (len(averages) - number)))
        progress("finished", len(averages), len(averages))
        return done

    def _finish_one(
        self, name: str, weights: Mapping[str, Tensor], pins: Mapping[str, str], share: float
    ) -> Finished:
        """share: of the calibration time that is left, which this average may take."""
        weights = {key: weight.detach().float().contiguous() for key, weight in weights.items()}
        checkpoint, artifact = (self.folder / f"{name}.{kind}" for kind in ("safetensors", "pack"))
        self._on_first(lambda: write_weights(checkpoint, _on_cpu(weights), {}, self._metadata()))
        before = self._score(weights)
        if not self.config.pack.cap:
            return Finished(name, checkpoint, before)
        curvature, note = curvature_of(
            weights, self.config, self.data, self.ledger, share, self.ranks
        )
        packed = self._on_first(lambda: self._pack(_on_cpu(weights), pins, curvature, artifact))
        account, reason = self.ranks.first_says(packed) or (None, "")
        if account is None:
            return Finished(name, checkpoint, before, note=reason)
        after = self._score(self._on_first(lambda: api.unpack(artifact)))
        note = "; ".join(text for text in (note, reason) if text)
        return Finished(name, checkpoint, before, artifact, account, after, note)

    def _on_first(self, work: Callable[[], T]) -> T | None:
        """The result of the first rank's work, None on others; they wait, and fail with it."""
        return self.ranks.together(lambda: work() if self.ranks.rank == 0 else None)

    def _metadata(self) -> dict[str, str]:
        return {"config": json.dumps(settings_of(self.config.model), sort_keys=True)}

    def _pack(
        self,
        weights: Mapping[str, Tensor],
        pins: Mapping[str, str],
        curvature: CurvatureSet | None,
        artifact: Path,
    ) -> tuple[Account | None, str]:
        """(account of the artifact written, what had to give way), or (None, why nothing fits)."""
        pack = self.config.pack
        if curvature is None:
            pins = {name: without_gptq(choice) for name, choice in pins.items()}
        try:
            with self.ledger.time("quantization"):
                pins = with_pruned_codes(pins, weights, curvature, pack.prune_codes)
                options = api.MeasureOptions(pins, self._metadata())
                measured = api.measure(weights, options, curvature=curvature)
                plan, note = plan_as_trained(measured, pack.cap, pins, code=pack.code)
            with self.ledger.time("packing"):
                return api.pack(weights, plan, out=artifact, curvature=curvature).account, note
        except CapError as error:
            return None, str(error)

    def _score(self, weights: Mapping[str, Tensor] | None) -> Score | None:
        if not self.data.validates:
            return None
        with self.ledger.time("evaluation"):
            return self.validation.score(weights)


def _on_cpu(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: weight.cpu() for name, weight in weights.items()}


def best_of(finished: list[Finished]) -> Finished | None:
    """The artifact with the fewest bits per byte, without a cap the weights; None without data."""
    packed = [(one.after.bits_per_byte, one) for one in finished if one.after is not None]
    scored = [(one.before.bits_per_byte, one) for one in finished if one.before is not None]
    found = min(packed or scored, key=lambda pair: pair[0], default=None)
    return None if found is None else found[1]
