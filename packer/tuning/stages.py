"""In which order the tensors of a model are rounded while the others are tuned."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from packer.checkpoint.roles import TensorRole

SMALLEST_MATRIX = 4096  # weights; smaller tensors are tuned to the end, and rounded last
# Shares of the steps, one for each stage: the first leaves most to be tuned. docs/methods.md,
# "Tuning between stages".
SHARES = (0.48, 0.22, 0.15, 0.15)


@dataclass(frozen=True)
class Stage:
    """rounded: tensors that are rounded first. tuned: those that are tuned then, for `steps`."""

    rounded: tuple[str, ...]
    tuned: tuple[str, ...]
    steps: int


def stages_of(
    tensors: Mapping[str, torch.Tensor], roles: Mapping[str, TensorRole], steps: int
) -> tuple[Stage, ...]:
    """Embeddings and the first half of the blocks; then the other blocks, in parts; then the rest.

    tensors: those of the model, by name. roles: of each, for its block. After the last matrix,
    only small tensors are left to be tuned.
    """
    layers = sorted({layer for name in tensors if (layer := roles[name].layer) is not None})
    place = {layer: index for index, layer in enumerate(layers)}
    half = -(-len(layers) // 2)
    later = max(1, len(layers) - half)

    def stage(name: str) -> int:
        layer = roles[name].layer
        if tensors[name].numel() < SMALLEST_MATRIX:
            return len(SHARES)
        if layer is None or place[layer] < half:
            return 0
        return 1 + (place[layer] - half) * (len(SHARES) - 1) // later

    number = {name: stage(name) for name in tensors}
    groups = [[n for n in tensors if number[n] == k] for k in range(len(SHARES))]
    small = tuple(n for n in tensors if number[n] == len(SHARES))
    used = [(group, share) for group, share in zip(groups, SHARES, strict=True) if group]
    total, result = sum(share for _, share in used), list[Stage]()
    for k, (group, share) in enumerate(used):
        left = [name for later_group, _ in used[k + 1 :] for name in later_group]
        blocks = {roles[name].layer for name in left} - {None}
        # What stands before the first tuned block would make the backward pass longer.
        near = tuple(name for name in small if not left or roles[name].layer in blocks)
        count = int(steps * share / total) if left else steps - sum(one.steps for one in result)
        result.append(Stage(tuple(group), (*left, *near), count))
    return tuple(result) or (Stage((), small, steps),)
