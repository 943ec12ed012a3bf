"""The predicted damage of a candidate, in bits per byte, from the curvature of its weight."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import torch

from packer.budget.plan import Candidate
from packer.curvature.curvature_set import CurvatureSet
from packer.eval.damage import kronecker_nats, quadratic_forms, second_order_nats
from packer.planning.candidates import TensorInfo
from packer.quantizers.curvature import Curvature


def predicted_nats(curvature: Curvature, change: torch.Tensor) -> float | None:
    """KL in nats per token of a changed weight; None if the Fisher of its rows is not known.

    A tied embedding adds its damage as output head and as lookup table.
    """
    if curvature.row_fisher is None:
        return None
    rows = change.reshape(-1, curvature.columns)
    factors = curvature.row_factors
    if factors is None:
        nats = second_order_nats(rows, curvature.hessian, curvature.row_fisher)
    else:
        nats = kronecker_nats(rows, curvature.hessian, factors)
    if curvature.lookup is not None:
        nats += predicted_nats(curvature.lookup, rows) or 0.0
    return nats


def output_error(curvature: Curvature, change: torch.Tensor) -> float:
    """The squared error of the outputs, for inputs of mean square 1: a squared weight error in
    which columns count by the second moments of their inputs.
    """
    rows = change.reshape(-1, curvature.columns)
    mean_square = curvature.hessian.diagonal(dim1=-2, dim2=-1).mean()
    if not mean_square > 0:
        return 0.0
    return float(quadratic_forms(rows, curvature.hessian).sum() / mean_square)


def bits_per_byte(nats_per_token: float, curvature: CurvatureSet) -> float:
    """Bits per byte, or bits per token when bytes_per_token is unknown."""
    return nats_per_token / math.log(2) / (curvature.bytes_per_token or 1.0)


def complete(
    candidates: Sequence[Candidate], infos: Sequence[TensorInfo]
) -> tuple[tuple[Candidate, ...], tuple[str, ...]]:
    """(candidates that all have damage, tensors whose damage is estimated from weight errors).

    A tensor without curvature takes the median damage per weight error of the others. If no tensor
    has curvature, candidates are returned unchanged.
    """
    known = [c for c in candidates if c.damage_bpb is not None and c.weight_error > 0]
    if not known:
        return tuple(candidates), ()
    ratios = torch.tensor([(c.damage_bpb or 0.0) / c.weight_error for c in known])
    ratio = float(ratios.double().median())
    guessed = {c.tensor for c in candidates if c.damage_bpb is None}
    filled = tuple(
        c if c.damage_bpb is not None else replace(c, damage_bpb=ratio * c.weight_error)
        for c in candidates
    )
    large = {info.name for info in infos if info.elements > 1}
    return filled, tuple(sorted(guessed & large))


def describe_source(curvature: CurvatureSet, guessed: Sequence[str]) -> str:
    """What damage was computed from, as text."""
    unit = "KL to the unquantized model"
    if curvature.bytes_per_token is None:
        unit += " in bits per token (the number of bytes per token is unknown)"
    text = f"predicted {unit}, from the curvature of {curvature.describe()}"
    if guessed:
        text += f"; for {len(guessed)} tensors without curvature, estimated from weight errors"
    return text
