"""Curvature however the user gives it, checked against the checkpoint."""

from __future__ import annotations

import os
from collections.abc import Mapping

import torch

from packer.checkpoint import Checkpoint
from packer.curvature.curvature_set import CurvatureSet
from packer.curvature.file import AGAIN, check_tensors, read_curvature
from packer.errors import CurvatureError
from packer.fingerprint import contents_fingerprint
from packer.quantizers.curvature import Curvature
from packer.quantizers.formats import FormatError


def given_curvature(
    checkpoint: Checkpoint,
    curvature: str | os.PathLike[str] | CurvatureSet | Mapping[str, Curvature] | None,
    hessians: Mapping[str, torch.Tensor] | None,
) -> CurvatureSet | Mapping[str, Curvature] | None:
    """A file read, a set checked, or second moments put in their type; None without any.

    hessians: [columns, columns] by tensor, or [banks, columns, columns]; means over tokens.
    Raises CurvatureError: both, of another checkpoint, of a tensor that is not there or another
    shape, not finite or not symmetric.
    """
    if hessians is not None:
        if curvature is not None:
            raise CurvatureError("curvature and hessians are both given; give one of the two")
        curvature = {name: _of_hessian(name, value) for name, value in hessians.items()}
    if curvature is None:
        return None
    if isinstance(curvature, str | os.PathLike):
        return read_curvature(curvature, checkpoint)
    if isinstance(curvature, CurvatureSet):
        found = contents_fingerprint(checkpoint)
        if curvature.contents not in (None, found):
            raise CurvatureError(
                f"the curvature is of weights with contents {str(curvature.contents)[:12]}, and "
                f"{checkpoint.source} has {found[:12]}. {AGAIN}"
            )
        check_tensors(curvature.by_tensor, checkpoint)
        return curvature
    check_tensors(curvature, checkpoint)
    return curvature


def _of_hessian(name: str, hessian: torch.Tensor) -> Curvature:
    try:
        return Curvature(hessian.detach().float().cpu(), None, 1)
    except FormatError as error:
        raise CurvatureError(f"the Hessian given for {name}: {error}") from None
