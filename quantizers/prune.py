"""Magnitude pruning: the smallest weights of a tensor become zero before quantization."""

from __future__ import annotations

import torch


def prune_smallest(weight: torch.Tensor, fraction: float) -> torch.Tensor:
    """A copy of `weight` with floor(fraction · count) smallest magnitudes set to zero.

    Equal magnitudes are pruned in order of position, so that the result does not depend on how a
    sort breaks ties.
    """
    count = int(fraction * weight.numel())
    flat = weight.flatten().clone()
    flat.index_fill_(0, flat.abs().sort(stable=True).indices[:count], 0)
    return flat.reshape(weight.shape)
