"""Curvature of a trained model from its own training data, within the training budget."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from packer.quantizers.choice import parse_choice
from packer.quantizers.formats import FormatError
from packer.train.ledger import Ledger
from packer.train.model import model_of
from packer.train.settings import TrainConfig
from packer.train.training_data import TrainingData
from torch import Tensor

from packer.curvature.calibration import TextSource, calibrate
from packer.curvature.curvature_set import CurvatureSet
from packer.curvature.ranks import ALONE, Ranks
from packer.curvature.windows import token_batches
from packer.errors import CurvatureError, PlanError


def curvature_of(
    weights: Mapping[str, Tensor],
    config: TrainConfig,
    data: TrainingData,
    ledger: Ledger,
    share: float,
    ranks: Ranks = ALONE,
) -> tuple[CurvatureSet | None, str]:
    """(curvature of these weights or None, a note on it), on all ranks, which share the batches.

    share: of the training budget that is left, which is never exceeded.
    """
    tokens = min(config.pack.calibration_tokens, len(data.train))
    limit = config.schedule.max_wallclock
    if tokens < config.batch.sequence:
        return None, ""
    if limit and not config.schedule.calibration_reserve:
        return None, "not calibrated: nothing is reserved for it (schedule.calibration_reserve)"
    seconds = share * (limit - ledger.training_budget) if limit else None
    model = model_of(config.model, weights)
    device = next(model.parameters()).device
    with ledger.time("calibration"):
        batches = token_batches(data.train, config.batch.sequence, tokens, device)
        try:
            text = _text(data, tokens)
            curvature = calibrate(model, batches, seconds=seconds, text=text, ranks=ranks)
        except CurvatureError as error:
            return None, f"not calibrated: {error}"
    return curvature, f"calibrated on {curvature.tokens:,} training tokens"


def _text(data: TrainingData, tokens: int) -> TextSource:
    """Training data, and the bytes of text behind one of its tokens where that is known."""
    if data.counter is None:
        return TextSource("training data")
    text_bytes = int(data.counter.target_bytes(data.train[:tokens], 1).sum())
    return TextSource("training data", text_bytes / max(tokens - 1, 1))


def without_gptq(choice: str) -> str:
    """The choice rounded to nearest, for when there is no curvature. Raises PlanError."""
    try:
        return str(replace(parse_choice(choice), rounding="nearest"))
    except FormatError as error:
        raise PlanError(str(error)) from None
