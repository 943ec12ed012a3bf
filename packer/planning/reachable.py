"""Refuse a cap far below what any plan can reach, before minutes are spent on measuring."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from packer.artifact.encoder import encode_tensor, header_bytes
from packer.checkpoint.checkpoint import Checkpoint
from packer.checkpoint.roles import Role, TensorRole
from packer.errors import CapError
from packer.planning.account import Limits
from packer.planning.candidates import TensorInfo
from packer.planning.measure import (
    LONG_GRID_ELEMENTS,
    STEP_GRID,
    header_of,
    metadata_of,
    pinned_choices,
    tensor_infos,
)
from packer.planning.options import MeasureOptions
from packer.planning.step_grid import FINEST, OCTAVES
from packer.quantizers.choice import parse_choice
from packer.quantizers.formats import FormatError
from packer.quantizers.quantize import quantizable, quantize
from packer.threads import side_by_side

MANY = 1 << 24  # weights; fewer are soon measured, and the refusal then has the exact size
AMPLE = 1.0  # bits a weight: with more room than that, some plan fits
# By whether there is curvature: the coarsest of the choices that are measured then.
COARSEST = {
    True: (f"step+nearest@{FINEST * 2**OCTAVES:.3g}",),
    False: ("int2.row", f"int8.tensor+kstd@{127 * STEP_GRID[-1]:.4g}"),
}


def check_reachable(
    checkpoint: Checkpoint, limits: Limits, options: MeasureOptions, curved: bool
) -> None:
    """Raises CapError: the cap of a large model is below the size of all matrices in their coarsest
    formats. SelectorError, PlanError: pins that cannot be read.

    curved: whether there is, or may be, curvature, with which coarser steps are measured. Steps of
    rows and columns, and rounding by GPTQ, then take more bytes (docs/planner.md, Candidates).

    Matrices are rounded to nearest, which takes seconds where measuring takes minutes. Pinned and
    small tensors are left out.
    """
    infos = tensor_infos(checkpoint)
    roles = {info.name: TensorRole(Role(info.role), info.layer) for info in infos}
    pinned = pinned_choices(options.pins, roles)
    header = header_of(infos, checkpoint.ties, metadata_of(checkpoint, options.metadata))
    fixed = limits.code_bytes + limits.margin_bytes + header_bytes(header)
    large = [
        info
        for info in infos
        if info.elements >= LONG_GRID_ELEMENTS and len(info.shape) > 1 and info.name not in pinned
    ]
    room, weights = limits.cap_bytes - fixed, sum(info.elements for info in large)
    if weights < MANY or 8 * room >= AMPLE * weights:
        return

    def smallest(info: TensorInfo) -> int:
        return _smallest(checkpoint.tensors[info.name], COARSEST[curved], options.coder)

    coarsest = sum(side_by_side(smallest, large))
    if room < coarsest:
        raise CapError(
            f"no plan fits under the cap of {limits.cap_bytes:,} bytes: beside code and header, "
            f"{fixed:,} bytes, the matrices alone take about {coarsest:,} in their coarsest "
            "formats, which ruin most models. Raise the cap to several times that, or take a "
            "smaller model."
        )


def _smallest(weight: torch.Tensor, choices: Sequence[str], coder: str | None) -> int:
    """Bytes of a matrix under the smallest of the choices; 0 where only the exact one holds it."""
    if not (quantizable(weight) and bool(weight.isfinite().all())):
        return 0
    sizes = []
    for text in choices:
        choice = replace(parse_choice(text), coder=coder)
        try:
            sizes.append(encode_tensor(quantize(weight, choice), choice.coder).size_bytes)
        except FormatError:
            continue
    return min(sizes, default=0)
