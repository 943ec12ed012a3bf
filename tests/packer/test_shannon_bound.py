"""The Shannon bound: closed forms of reverse water-filling, and what it says of a plan."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packer.quantizers.choice import parse_choice
from packer.quantizers.curvature import MIN_ROW_FISHER, Curvature
from packer.quantizers.quantize import dequantize, quantize

from packer import api
from packer.curvature.curvature_set import CurvatureSet
from packer.curvature.file import write_curvature
from packer.errors import PlanError
from packer.planning.predicted_damage import predicted_nats
from packer.planning.shannon_bound import (
    GaussianMatrix,
    bounded_plan,
    gaussian_matrices,
    water_level,
)
from packer.reports.sources import load_bounded

ROWS, COLUMNS = 96, 64


def drawn(seed: int, rows: int = ROWS, columns: int = COLUMNS) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def bits_at(matrices: list[GaussianMatrix], damage: float) -> float:
    level = water_level(matrices, damage)
    assert sum(m.at_level(level)[1] for m in matrices) == pytest.approx(damage, rel=1e-9)
    return sum(m.at_level(level)[0] for m in matrices)


def test_white_weights_take_half_the_logarithm_of_their_ratio() -> None:
    """R = n/2 log2(σ²/D), D the distortion of a weight, which costs ½ D nats."""
    weight = 0.3 * drawn(1)
    white = Curvature(torch.eye(COLUMNS), torch.ones(ROWS), 1)
    matrices = gaussian_matrices("w", weight, white, 1.0)
    variance, count = float(weight.double().var(correction=0)), weight.numel()
    row_fisher = 1 + MIN_ROW_FISHER  # of each row
    for distortion in (0.5 * variance, 0.01 * variance, 1e-6 * variance):
        bits = bits_at(matrices, 0.5 * count * row_fisher * distortion)
        assert bits == pytest.approx(0.5 * count * math.log2(variance / distortion), rel=1e-6)


def test_scales_of_curvature_and_damage_cancel() -> None:
    weight, eye = drawn(2), torch.eye(COLUMNS)
    once = gaussian_matrices("w", weight, Curvature(eye, torch.ones(ROWS), 1), 1.0)
    more = gaussian_matrices("w", weight, Curvature(5 * eye, torch.full((ROWS,), 3.0), 1), 2.0)
    assert bits_at(more, 30 * 7.0) == pytest.approx(bits_at(once, 7.0), rel=1e-6)


def test_two_components_under_and_above_the_water() -> None:
    """Components 4 and 1: left with 2 in all, the level is 1 and the smaller takes nothing."""
    two = GaussianMatrix("w", np.array([1.0]), np.array([4.0, 1.0]))
    assert bits_at([two], 2.0) == pytest.approx(1.0)  # ½ log2(4 / 1)
    assert bits_at([two], 1.0) == pytest.approx(0.5 * math.log2(4 / 0.5) + 0.5)
    assert bits_at([two], 3.5) == pytest.approx(0.5 * math.log2(4 / 2.5))
    assert two.at_level(water_level([two], 5.0))[0] == 0.0
    assert two.at_level(water_level([two], 9.0))[0] == 0.0


components = st.lists(st.floats(0, 10), min_size=1, max_size=5)


@settings(deadline=None)
@given(rows=components, columns=components, share=st.floats(0.01, 0.99))
def test_the_level_is_that_of_water_over_every_component(
    rows: list[float], columns: list[float], share: float
) -> None:
    """Against the sum written out, one component after another."""
    matrix = GaussianMatrix("w", np.sort(rows)[::-1].copy(), np.sort(columns)[::-1].copy())
    values = [row * column for row in rows for column in columns]
    if not sum(values) > 1e-6:
        return
    level = water_level([matrix], share * sum(values))
    bits, damage = matrix.at_level(level)
    assert damage == pytest.approx(sum(min(value, level) for value in values), rel=1e-6)
    assert damage == pytest.approx(share * sum(values), rel=1e-6)
    expected = sum(0.5 * math.log2(value / level) for value in values if value > level)
    assert bits == pytest.approx(expected, rel=1e-6, abs=1e-6)


def test_no_scalar_rounding_of_gaussian_weights_beats_it() -> None:
    """Fine uniform rounding and ideal coding are a quarter of a bit above the bound."""
    weight = drawn(3, 256, 256)
    curvature = Curvature(torch.eye(256), torch.ones(256), 1)
    quantized = quantize(weight, parse_choice("step+nearest@0.2"), curvature)
    damage = predicted_nats(curvature, dequantize(quantized) - weight)
    _, counts = torch.unique(quantized.codes, return_counts=True)
    share = counts.double() / weight.numel()
    entropy = -float((share * share.log2()).sum())
    assert damage is not None
    bound = bits_at(gaussian_matrices("w", weight, curvature, 1.0), damage) / weight.numel()
    assert entropy - bound == pytest.approx(0.5 * math.log2(math.pi * math.e / 6), abs=0.02)


def test_correlated_rows_and_banks() -> None:
    """G's eigenvalues take the place of the Fisher; each bank has its own moments."""
    root = drawn(4, 8, 8)
    outputs = torch.stack([torch.eye(8), root @ root.mT])
    fisher = outputs.diagonal(dim1=-2, dim2=-1).reshape(-1).contiguous()
    hessian = torch.stack([torch.eye(4), 2 * torch.eye(4)])
    curvature = Curvature(hessian, fisher, 1, outputs=outputs)
    weight = drawn(5, 16, 4).reshape(2, 8, 4)
    first, second = gaussian_matrices("w", weight, curvature, 1.0)
    factors = curvature.row_factors
    assert factors is not None
    for matrix, bank, scale in ((first, 0, 1.0), (second, 1, 2.0)):
        variance = float(weight[bank].double().var(correction=0))
        assert matrix.columns.tolist() == pytest.approx([scale] * 4)
        expected = 0.5 * variance * torch.linalg.eigvalsh(factors[bank].double()).flip(0)
        assert matrix.rows.tolist() == pytest.approx(expected.tolist(), rel=1e-5, abs=1e-9)


def curved(weights: dict[str, torch.Tensor]) -> CurvatureSet:
    generator = torch.Generator().manual_seed(6)
    by_tensor = {}
    for name in ("big", "bank"):
        rows, columns = weights[name].shape
        inputs = torch.randn(4 * columns, columns, generator=generator)
        hessian = inputs.T @ inputs / len(inputs)
        by_tensor[name] = Curvature(hessian, torch.rand(rows, generator=generator) + 0.1, 9)
    return CurvatureSet(by_tensor, None, "noise", 9, 0.0, 64, 2.0)


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    return {"big": 0.1 * drawn(7), "bank": 0.2 * drawn(8), "gain": torch.linspace(0.5, 2, 64)}


def test_a_plan_stands_above_its_bound(weights: dict[str, torch.Tensor]) -> None:
    loaded, curvature = api.load(weights), curved(weights)
    plan = api.plan(loaded, 6_000, curvature=curvature)
    bounded = bounded_plan(plan, loaded, curvature)
    bound = bounded.at_damage(plan.plan.damage)
    assert bound is not None
    gain = next(c for c in plan.plan.chosen if c.tensor == "gain")
    assert bound.fixed_bytes == plan.plan.header_bytes + gain.size_bytes
    assert set(bound.tensor_bytes) == {"big", "bank"}
    assert 0.5 * plan.plan.total_bytes < bound.total_bytes < plan.plan.total_bytes
    assert bounded.at_damage(bounded.fixed_damage) is None
    larger = bounded.at_damage(2 * plan.plan.damage)
    assert larger is not None and larger.total_bytes < bound.total_bytes


def test_the_curvature_of_another_plan_is_refused(
    weights: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    torch.save(weights, tmp_path / "model.pt")
    loaded = api.load(tmp_path / "model.pt")
    contents = api.measure(loaded).contents
    curvature = replace(curved(weights), contents=contents)
    write_curvature(tmp_path / "curvature.safetensors", curvature)
    plan = api.plan(loaded, 6_000, curvature=curvature)
    bounded = load_bounded(plan, tmp_path / "curvature.safetensors")
    assert bounded.fixed_bytes == bounded_plan(plan, loaded, curvature).fixed_bytes
    write_curvature(tmp_path / "other.safetensors", replace(curvature, tokens=10))
    with pytest.raises(PlanError, match="give the file it was made with"):
        load_bounded(plan, tmp_path / "other.safetensors")
    with pytest.raises(PlanError, match="made without curvature"):
        load_bounded(api.plan(loaded, 6_000), tmp_path / "curvature.safetensors")
    torch.save({**weights, "gain": torch.ones(64)}, tmp_path / "moved.pt")
    with pytest.raises(PlanError, match="has contents"):
        load_bounded(plan, tmp_path / "curvature.safetensors", tmp_path / "moved.pt")
