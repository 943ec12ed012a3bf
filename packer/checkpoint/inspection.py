"""What is in a checkpoint: a line of statistics per tensor."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from packer.checkpoint.checkpoint import Checkpoint
from packer.checkpoint.natural_order import natural_order
from packer.checkpoint.roles import Role, roles_of
from packer.progress import Progress, WeightCount, ignore_progress
from packer.threads import one_torch_thread

BLOCK_ELEMENTS = 1 << 16  # half a megabyte in float64, which stays in the cache


@dataclass(frozen=True)
class TensorStatistics:
    """One stored tensor.

    dtype, size_bytes: as stored in the checkpoint. share: of the bytes of all tensors, 0 to 1.
    rms: root mean square (of the magnitudes, for complex numbers). kurtosis: the fourth
    standardized moment, 3 for a Gaussian, 1.8 for a uniform distribution. Undefined
    values are None: both for empty and boolean tensors, kurtosis for complex and constant ones.
    tied: other names of the same tensor.
    """

    name: str
    role: Role
    layer: int | None
    shape: tuple[int, ...]
    dtype: str
    size_bytes: int
    share: float
    rms: float | None
    kurtosis: float | None
    tied: tuple[str, ...]


def inspect(
    checkpoint: Checkpoint, progress: Progress = ignore_progress
) -> tuple[TensorStatistics, ...]:
    """Statistics of every stored tensor, in file order but for layers that the alphabet sorted; in
    float64, a block at a time. progress: counts weights.
    """
    with one_torch_thread():
        return tuple(_statistics(checkpoint, progress))


def _statistics(checkpoint: Checkpoint, progress: Progress) -> Iterator[TensorStatistics]:
    shapes = {name: tuple(meta.shape) for name, meta in checkpoint.meta_tensors.items()}
    roles = roles_of(shapes, checkpoint.ties)
    total = max(checkpoint.size_bytes, 1)
    count = WeightCount(progress, {name: math.prod(shape) for name, shape in shapes.items()})
    for name in natural_order(shapes):
        count.begin(name)
        tensor, (stored, size) = checkpoint.tensors[name], checkpoint.stored_as(name)
        yield TensorStatistics(
            name=name,
            role=roles[name].role,
            layer=roles[name].layer,
            shape=shapes[name],
            dtype=stored,
            size_bytes=size,
            share=size / total,
            rms=_rms(tensor),
            kurtosis=_kurtosis(tensor),
            tied=tuple(tied for tied, kept in checkpoint.ties.items() if kept == name),
        )


def _rms(tensor: torch.Tensor) -> float | None:
    if tensor.numel() == 0 or tensor.dtype == torch.bool:
        return None
    largest = max(float(block.abs().max()) for block in _blocks(tensor))
    if largest == 0.0:
        return 0.0
    # Divided by the largest, so that squares of huge or tiny values stay within float64.
    total = math.fsum(float((block.abs() / largest).square().sum()) for block in _blocks(tensor))
    return largest * math.sqrt(total / tensor.numel())


def _kurtosis(tensor: torch.Tensor) -> float | None:
    if tensor.numel() == 0 or tensor.dtype == torch.bool or tensor.is_complex():
        return None
    # Measured from the first value: a constant tensor then gives exact zeros.
    first = next(_blocks(tensor))[0]
    spread = max(float((block - first).abs().max()) for block in _blocks(tensor))
    if spread == 0.0 or math.isinf(spread):
        return None
    mean = math.fsum(float(((b - first) / spread).sum()) for b in _blocks(tensor)) / tensor.numel()
    second = fourth = 0.0
    for block in _blocks(tensor):
        squares = ((block - first) / spread - mean).square_()
        second += float(squares.sum())
        fourth += float(squares.square_().sum())
    return fourth * tensor.numel() / second**2


def _blocks(tensor: torch.Tensor) -> Iterator[torch.Tensor]:
    """The elements in order as float64 or complex128 [up to BLOCK_ELEMENTS]."""
    wide = torch.complex128 if tensor.is_complex() else torch.float64
    for block in torch.split(tensor.reshape(-1), BLOCK_ELEMENTS):
        yield block.to(wide)
