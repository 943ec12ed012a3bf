"""Resolves curvature from the user to one type, checked against the checkpoint."""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch

from packer.checkpoint.checkpoint import Checkpoint
from packer.checkpoint.fingerprint import contents_fingerprint
from packer.curvature.curvature_set import CurvatureSet
from packer.curvature.file import AGAIN, check_tensors, read_curvature
from packer.errors import CurvatureError
from packer.quantizers.curvature import Curvature
from packer.quantizers.formats import FormatError

CurvatureLike = str | os.PathLike[str] | CurvatureSet | Mapping[str, Curvature | torch.Tensor]


def resolve_curvature(
    checkpoint: Checkpoint, curvature: CurvatureLike | None
) -> CurvatureSet | None:
    """The set in a file, or a set itself, or one of curvature by tensor; None for None.

    Second moments of a tensor's inputs, means over tokens of shape [columns, columns] or [banks,
    columns, columns], can take the place of a Curvature: GPTQ rounds with them, and damage is a
    squared error.
    Raises CurvatureError: it is of another checkpoint, of a tensor that is missing or has another
    shape, not finite or not symmetric.
    """
    if curvature is None:
        return None
    if isinstance(curvature, str | os.PathLike):
        return read_curvature(curvature, checkpoint)
    if not isinstance(curvature, CurvatureSet):
        curvature = _set_of(curvature)
    if curvature.contents is not None:
        contents = contents_fingerprint(checkpoint)
        if curvature.contents != contents:
            raise CurvatureError(
                f"the curvature is of weights with contents {curvature.contents[:12]}, and "
                f"{checkpoint.source} has {contents[:12]}. {AGAIN}"
            )
    check_tensors(curvature.by_tensor, checkpoint)
    return curvature


def _set_of(curvature: Mapping[str, Curvature | torch.Tensor]) -> CurvatureSet:
    by_tensor = {
        name: value if isinstance(value, Curvature) else _of_hessian(name, value)
        for name, value in curvature.items()
    }
    tokens = max((one.tokens for one in by_tensor.values()), default=0)
    return CurvatureSet(by_tensor, None, "curvature from the user", tokens, 0.0, None, None)


def _of_hessian(name: str, hessian: torch.Tensor) -> Curvature:
    try:
        return Curvature(hessian.detach().float().cpu(), None, 1)
    except FormatError as error:
        raise CurvatureError(f"the Hessian given for {name}: {error}") from None
