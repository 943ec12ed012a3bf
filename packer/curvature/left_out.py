"""Which tensors of a checkpoint got no curvature, and why."""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Tensor

from packer.curvature.weight_uses import MAX_GRADIENT_COLUMNS, WeightUses
from packer.quantizers.curvature import Curvature


def left_out(
    by_tensor: Mapping[str, Curvature],
    covered: Collection[str],
    uses: WeightUses,
    meta_tensors: Mapping[str, Tensor],
) -> tuple[str, ...]:
    """A line of text for every float tensor without curvature.

    covered: names that other warnings mention. meta_tensors: shapes and dtypes of the checkpoint.
    """
    return tuple(
        f"{name}: {_reason(name, meta, uses)}; nothing is known of it"
        for name, meta in sorted(meta_tensors.items())
        if meta.is_floating_point() and name not in by_tensor and name not in covered
    )


def _reason(name: str, meta: Tensor, uses: WeightUses) -> str:
    if name not in uses.weights:
        return "the model has no tensor of this name"
    if meta.dim() and meta.size(-1) > MAX_GRADIENT_COLUMNS:
        return (
            f"it has {meta.size(-1):,} columns, and the moment of a gradient is kept of "
            f"{MAX_GRADIENT_COLUMNS:,} at most"
        )
    if name in uses.met:
        return f"only {', '.join(uses.met[name])} was seen to use it, and no gradient came back"
    return "nothing was seen to use it, and no gradient came back"
