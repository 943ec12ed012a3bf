"""The calibration in a bundle: of a model and batches in memory, in one process, in limited time.

It uses the same functions as `packer.calibrate` and gives the same curvature bit for bit.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Collection, Iterable, Mapping

import torch
from torch import Tensor, nn

from packer.curvature.observing import (
    MAY_TAKE,
    WORKING_SHARE,
    collect,
    gradients_for,
    live_tensors,
    observe,
)
from packer.curvature.sampled_labels import gradient_of_sampled_labels
from packer.curvature.weight_uses import OutOfTimeError, WeightUses
from packer.errors import CurvatureError
from packer.eval.foreign_forward import way_to_logits
from packer.eval.forward import device_of, evaluation_mode
from packer.quantizers.curvature import Curvature


def curvature_within(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    names: Collection[str],
    ties: Mapping[str, str],
    batches: Iterable[Tensor],
    seconds: float,
    seed: int = 0,
) -> tuple[dict[str, Curvature], int, float]:
    """(curvature by tensor, tokens read, seconds taken), in no more than `seconds`.

    model: not compiled, so that its operations are observed. weights: those to be encoded, under
    these names and ties, equal to the model's. batches: int64 [windows, time]. A batch that does
    not end in time is left out completely.
    Raises CurvatureError: weights that differ from the model's, no logits or none that are finite,
    batches that are not tokens, no batch in time.
    """
    started, tokens, longest = time.perf_counter(), 0, 0.0
    limit = started + WORKING_SHARE * seconds
    uses = WeightUses(live_tensors(model, names, ties))
    for name in names:
        keep_same(name, weights.get(name), uses.weights.get(name))
    device = device_of(model)
    generator = torch.Generator(device).manual_seed(seed)

    def gradient_of(logits: Tensor) -> Tensor:
        return gradient_of_sampled_labels(logits, generator)

    with evaluation_mode([model]), gradients_for(uses.weights.values()):
        forward = keep_way(*way_to_logits(model))
        for batch in batches:
            begun = time.perf_counter()
            if begun + longest > limit:
                break
            kept, uses.until = None, math.inf
            if not longest or begun + MAY_TAKE * longest > limit:
                kept, uses.until = copy.deepcopy(uses.moments), limit
            try:
                observe(lambda ids: forward(ids).float(), uses, batch.to(device), gradient_of)
            except OutOfTimeError:
                uses.moments = kept or uses.moments
                break
            tokens += batch.numel()
            longest = max(longest, time.perf_counter() - begun)
    keep_read(tokens, seconds)
    return dict(collect(uses, tokens)), tokens, time.perf_counter() - started


def keep_same(name: str, weight: Tensor | None, live: Tensor | None) -> None:
    """Raises CurvatureError, in a bundle too: the model lacks this weight, or has other values."""
    if weight is None:
        raise CurvatureError(f"{name} is not among the weights")
    if not weight.is_floating_point():
        return
    if not weight.isfinite().all():
        raise CurvatureError(f"{name} has values that are not finite")
    if live is None:
        raise CurvatureError(f"the model has no weight {name}; calibrate the plan's own")
    # Either may be rounded to the dtype of the other.
    if not (torch.equal(weight.to(live), live) or torch.equal(live.to(weight), weight)):
        raise CurvatureError(
            f"{name} {list(weight.shape)} is not as in the model, {list(live.shape)}: load the "
            "weights that are to be encoded before calibrating"
        )


def keep_way(forward: nn.Module | None, tried: list[str]) -> nn.Module:
    """Raises CurvatureError, in a bundle too: no call of the model returned logits."""
    if forward is None:
        raise CurvatureError("the model gives no logits: " + "; ".join(tried))
    return forward


def keep_read(tokens: int, seconds: float) -> None:
    """Raises CurvatureError, in a bundle too: no token was read."""
    if not tokens:
        raise CurvatureError(
            f"no batch was read within {seconds:g} seconds; allow more, or give smaller ones"
        )
