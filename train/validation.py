"""Bits per byte of a model on the validation shards."""

from __future__ import annotations

from packer.eval import score as scoring
from packer.eval.batches import Setting
from packer.eval.errors import EvalError
from packer.eval.score import Score
from packer.train.model import GPT
from packer.train.training_data import TrainingData

from packer.errors import PackerError


def validate(
    model: GPT,
    data: TrainingData,
    window: int,
    tokens: int = 0,
    *,
    stride: int | None = None,
    rank: int = 0,
    world_size: int = 1,
) -> Score | None:
    """The score of this rank's part of the windows; None without validation data.

    tokens: number of tokens to score from the start; 0 for all. Raises PackerError: the data cannot
    be scored.
    """
    if data.valid is None or data.counter is None:
        return None
    available = len(data.valid) - 1
    setting = Setting(
        window=min(window, available),
        stride=stride,
        tokens=min(tokens or available, available),
        autocast=next(model.parameters()).is_cuda,
        rank=rank,
        world_size=world_size,
    )
    try:
        return scoring.score(model, data.valid, data.counter, setting)
    except EvalError as error:
        raise PackerError(f"validation: {error}") from None
