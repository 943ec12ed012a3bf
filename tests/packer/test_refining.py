"""A refined plan: never worse, real in every byte, and as good as one of many more measurements."""

from __future__ import annotations

import pytest
import torch
from packer.quantizers.curvature import Curvature

from packer import api
from packer.checkpoint.checkpoint import from_state_dict
from packer.curvature.curvature_set import CurvatureSet
from packer.curvature.given import resolve_curvature
from packer.planning.account import Limits
from packer.planning.candidates import Measurement
from packer.planning.damage_fit import DamageFit
from packer.planning.measure import common_variants, measure, measure_choices, tensor_infos
from packer.planning.options import MeasureOptions
from packer.planning.plan import PackPlan, make_plan
from packer.planning.refine import PASSES, refined
from packer.planning.step_grid import DENSE, SPARSE, Variants, best_variants

CAP = 24_000
Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def calibrated() -> tuple[Weights, CurvatureSet]:
    """Eight matrices of 64 x 96 and their curvature, one of them without a Fisher of rows."""
    generator = torch.Generator().manual_seed(3)
    weights, curvature = {}, {}
    for layer in range(8):
        name = f"blocks.{layer}.mlp.fc.weight"
        weights[name] = 0.1 * torch.randn(64, 96, generator=generator)
        inputs = torch.randn(400, 96, generator=generator) * torch.linspace(0.2, 2, 96)
        fisher = torch.rand(64, generator=generator).exp() * 1e-4 if layer else None
        curvature[name] = Curvature(inputs.T @ inputs / 400, fisher, 400)
    return weights, resolve_curvature(from_state_dict(weights), curvature)


def test_a_refined_plan_is_better_and_its_bytes_are_real(calibrated):
    weights, curvature = calibrated
    checkpoint = from_state_dict(weights)
    sparse = measure(checkpoint, curvature=curvature, grid=SPARSE)
    rough = make_plan(sparse, Limits(CAP), {})
    fine = refined(checkpoint, rough, curvature)
    added = len(fine.measurement.candidates) - len(sparse.candidates)
    assert 0 < added <= PASSES * len(weights)
    assert fine.plan.damage < rough.plan.damage
    dense = make_plan(measure(checkpoint, curvature=curvature, grid=DENSE), Limits(CAP), {})
    assert fine.plan.damage < 1.01 * dense.plan.damage
    again = measure_choices(checkpoint, fine.choices, curvature=curvature)
    measured = {c.tensor: (c.size_bytes, c.weight_error) for c in again.candidates}
    for chosen in fine.plan.chosen:
        assert measured[chosen.tensor] == (chosen.size_bytes, chosen.weight_error)
    packed = api.pack(weights, fine, curvature=curvature)
    assert packed.rounds == 1
    assert packed.account.total_bytes == fine.plan.total_bytes <= CAP


def test_pinned_tensors_and_plans_without_curvature_are_left_alone(calibrated):
    weights, curvature = calibrated
    checkpoint = from_state_dict(weights)
    pins = dict.fromkeys(weights, "int4.row")
    sparse = measure(checkpoint, MeasureOptions(pins=pins), curvature=curvature, grid=SPARSE)
    made = make_plan(sparse, Limits(2 * CAP), pins)
    assert refined(checkpoint, made, curvature) == made
    blind = make_plan(measure(checkpoint), Limits(CAP), {})
    assert refined(checkpoint, blind, None) == blind


def test_added_damage_is_fitted_as_the_rest_is(calibrated):
    weights, curvature = calibrated
    checkpoint = from_state_dict(weights)
    plain = measure(checkpoint, curvature=curvature, grid=SPARSE)
    fit = DamageFit({"mlp_in": 3.0}, 3.0, 0.0, "a text", 400, ())
    by_choice = []
    for measured in (plain, plain.fitted(fit)):
        fine = refined(checkpoint, make_plan(measured, Limits(CAP), {}), curvature)
        by_choice.append({c.choice: c.damage for c in fine.plan.chosen})
    before, after = by_choice
    assert after == {one: pytest.approx(3 * damage, rel=1e-9) for one, damage in before.items()}


def test_large_tensors_of_a_role_take_what_its_middle_one_was_probed_for(calibrated, monkeypatch):
    weights, curvature = calibrated
    checkpoint = from_state_dict(weights)
    own = common_variants(checkpoint, tensor_infos(checkpoint), curvature.by_tensor)
    assert own == {}  # small ones are probed each by itself
    monkeypatch.setattr("packer.planning.measure.PROBED_ALONE", 1)
    common = common_variants(checkpoint, tensor_infos(checkpoint), curvature.by_tensor)
    middle = "blocks.4.mlp.fc.weight"
    expected = best_variants(weights[middle], curvature.by_tensor[middle])
    assert common == dict.fromkeys(weights, expected)
    steps = measure(checkpoint, curvature=curvature, grid=SPARSE).by_tensor
    for name, candidates in steps.items():
        stepped = {c.choice.partition("@")[0] for c in candidates if c.choice.startswith("step")}
        assert stepped == {expected.fine, expected.coarse}, name
    of_rows = Variants("step.row+gptq", "step+gptq")
    suits = [of_rows.suit(curvature.by_tensor[name]) for name in weights]
    assert suits == [False] + 7 * [True]  # the first has no Fisher of rows


def test_formats_of_more_bits_are_measured_only_where_the_finest_step_is_best(calibrated):
    weights, curvature = calibrated
    checkpoint = from_state_dict(weights)
    sparse = measure(checkpoint, curvature=curvature, grid=SPARSE)
    dense = measure(checkpoint, curvature=curvature, grid=DENSE)

    def planned(cap: int) -> PackPlan:
        return refined(checkpoint, make_plan(sparse, Limits(cap), {}), curvature)

    def all_steps(measurement: Measurement) -> bool:
        return all(one.choice.startswith("step") for one in measurement.candidates)

    assert all_steps(sparse) and all_steps(planned(CAP).measurement)
    everything = planned(1_000_000)
    assert everything.choices == dict.fromkeys(weights, "fp32") and everything.plan.damage == 0
    nearly = make_plan(dense, Limits(150_000), {})
    assert {"fp32", "fp16"} & set(nearly.choices.values())
    assert planned(150_000).plan.damage <= nearly.plan.damage
