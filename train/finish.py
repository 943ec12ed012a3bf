"""The end of a run: every average of the weights is packed under the cap and scored, both ways."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packer.eval.score import Score
from packer.train.calibrating import curvature_of, without_gptq
from packer.train.config import settings_of
from packer.train.ledger import Ledger
from packer.train.model import model_of
from packer.train.settings import TrainConfig
from packer.train.trained_plan import plan_as_trained, with_pruned_codes
from packer.train.training_data import TrainingData
from packer.train.validation import validate
from torch import Tensor

from packer import api
from packer.curvature.curvature_set import CurvatureSet
from packer.errors import CapError
from packer.packing.verify import write_weights
from packer.planning.account import Account

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


def finish(
    averages: Mapping[str, Mapping[str, Tensor]],
    pins: Mapping[str, str],
    config: TrainConfig,
    data: TrainingData,
    folder: Path,
    ledger: Ledger,
    progress: Progress,
) -> list[Finished]:
    """Write, score, and under a cap pack and score again, every average by name.

    pins: tensor or selector -> choice that packing is held to while it fits.
    Raises PackerError: a file cannot be written, or the weights are not finite.
    """
    done = []
    for number, (name, weights) in enumerate(averages.items()):
        progress(f"{name} weights", number, len(averages))
        share = 1 / (len(averages) - number)
        done.append(_finish_one(name, weights, pins, config, data, folder, ledger, share))
    progress("finished", len(averages), len(averages))
    return done


def best_of(finished: list[Finished]) -> Finished | None:
    """The artifact with the fewest bits per byte, without a cap the weights; None without data."""
    packed = [(one.after.bits_per_byte, one) for one in finished if one.after is not None]
    scored = [(one.before.bits_per_byte, one) for one in finished if one.before is not None]
    found = min(packed or scored, key=lambda pair: pair[0], default=None)
    return None if found is None else found[1]


def _finish_one(
    name: str,
    weights: Mapping[str, Tensor],
    pins: Mapping[str, str],
    config: TrainConfig,
    data: TrainingData,
    folder: Path,
    ledger: Ledger,
    share: float,
) -> Finished:
    """share: of the calibration time that is left, which this average may take."""
    on_cpu = {key: weight.detach().float().cpu().contiguous() for key, weight in weights.items()}
    metadata = {"config": json.dumps(settings_of(config.model), sort_keys=True)}
    checkpoint = folder / f"{name}.safetensors"
    write_weights(checkpoint, on_cpu, {}, metadata)
    before = _score(weights, config, data, ledger)
    if not config.pack.cap:
        return Finished(name, checkpoint, before)
    artifact = folder / f"{name}.pack"
    curvature, note = curvature_of(weights, config, data, ledger, share)
    try:
        account, given_up = _pack(on_cpu, pins, config, metadata, curvature, artifact, ledger)
    except CapError as error:
        return Finished(name, checkpoint, before, note=str(error))
    note = "; ".join(text for text in (note, given_up) if text)
    device = next(iter(weights.values())).device
    decoded = {key: weight.to(device) for key, weight in api.unpack(artifact).items()}
    after = _score(decoded, config, data, ledger)
    return Finished(name, checkpoint, before, artifact, account, after, note)


def _pack(
    weights: Mapping[str, Tensor],
    pins: Mapping[str, str],
    config: TrainConfig,
    metadata: Mapping[str, str],
    curvature: CurvatureSet | None,
    artifact: Path,
    ledger: Ledger,
) -> tuple[Account, str]:
    """The account of the artifact written, and what had to give way. Raises CapError."""
    if curvature is None:
        pins = {name: without_gptq(choice) for name, choice in pins.items()}
    with ledger.time("quantization"):
        pins = with_pruned_codes(pins, weights, curvature, config.pack.prune_codes)
        options = api.MeasureOptions(pins, metadata)
        measured = api.measure(weights, options, curvature=curvature)
        plan, note = plan_as_trained(measured, config.pack.cap, pins, code=config.pack.code)
    with ledger.time("packing"):
        return api.pack(weights, plan, out=artifact, curvature=curvature).account, note


def _score(
    weights: Mapping[str, Tensor], config: TrainConfig, data: TrainingData, ledger: Ledger
) -> Score | None:
    if not data.validates:
        return None
    model = model_of(config.model, weights)
    window, tokens = config.batch.sequence, config.run.final_eval_tokens
    with ledger.time("evaluation"):
        return validate(model, data, window, tokens, stride=config.run.stride or None)
