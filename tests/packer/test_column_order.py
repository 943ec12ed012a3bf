"""The order in which GPTQ takes columns: found where it pays, and reproduced from a plan."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packer.quantizers.choice import parse_choice
from packer.quantizers.curvature import Curvature
from packer.quantizers.quantize import quantize

import packer
from packer.checkpoint.checkpoint import from_state_dict
from packer.checkpoint.fingerprint import contents_fingerprint
from packer.curvature.curvature_set import CurvatureSet
from packer.planning.step_grid import _cost, step_choices
from packer.shipping.bundle import make_bundle


def moment(vectors: torch.Tensor) -> torch.Tensor:
    found = vectors.T @ vectors / len(vectors)
    return (found + found.T) / 2


def curvature_of(rows: int, columns: int, seed: int = 0) -> Curvature:
    """Inputs as the squares of what a rectifier lets through: few are large, and all correlated."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(4 * columns, columns, generator=generator)
    drawn += torch.randn(4 * columns, 1, generator=generator)
    inputs = drawn.relu().square() * torch.randn(columns, generator=generator).exp()
    outputs = moment(torch.randn(4 * rows, rows, generator=generator))
    return Curvature(moment(inputs), outputs.diagonal().clone(), 4096, outputs=outputs)


def matrix(rows: int, columns: int) -> torch.Tensor:
    return 0.1 * torch.randn(rows, columns, generator=torch.Generator().manual_seed(5))


@settings(deadline=None, max_examples=15)
@given(
    st.sampled_from(
        [
            "step.row.col+ascending+gptq@0.6",
            "step.row.col+ascending+gptq2@0.6",
            "trellis.row.col+ascending+gptq2@0.4",
            "int4.row+ascending+gptq",
        ]
    ),
    st.integers(0, 99),
)
def test_only_the_diagonal_decides_the_order(text, seed):
    """Columns that stand otherwise, with their curvature, get the codes that they had."""
    weight, curvature = matrix(24, 70), curvature_of(24, 70)
    at = torch.randperm(70, generator=torch.Generator().manual_seed(seed))
    moved = Curvature(
        curvature.hessian[at][:, at], curvature.fisher, curvature.tokens, outputs=curvature.outputs
    )
    whole = quantize(weight, parse_choice(text), curvature)
    again = quantize(weight[:, at], parse_choice(text), moved)
    differ = (whole.codes[:, at] != again.codes).float().mean()
    assert differ < 0.01  # sums in another order may fall to the other side of a half
    descending = quantize(weight, parse_choice(text.replace("+ascending", "")), curvature)
    assert (whole.codes != descending.codes).float().mean() > 0.05


@pytest.fixture(scope="module")
def planned():
    """(weights, curvature, plan): the coarse choice of an MLP's output matrix is found."""
    weights = {"blocks.0.mlp.proj.weight": matrix(96, 256)}
    by_name = {name: curvature_of(*weight.shape) for name, weight in weights.items()}
    contents = contents_fingerprint(from_state_dict(weights))
    whole = CurvatureSet(by_name, contents, "seeded", 4096, 0.0, 128, 4.0)
    return weights, whole, packer.plan(weights, 6_000, curvature=whole)


@pytest.mark.parametrize("way", ["step+gptq", "step.row.col+gptq"])
def test_a_step_twice_as_small_costs_what_its_damage_is_worth(way: str):
    """The exchange by which ways are compared: a bit a weight for a quarter of the damage."""
    weight, curvature = matrix(96, 64), curvature_of(96, 64)
    coarse, fine = (_cost(weight, curvature, f"{way}@{step}") for step in (0.2, 0.1))
    assert abs(fine - coarse) / weight.numel() < 0.1


def test_it_is_offered_where_it_pays(planned):
    weights, whole, plan = planned
    (name,) = weights
    assert "+ascending+gptq" in plan.choices[name]
    offered = [str(one) for one in step_choices(weights[name], whole.by_tensor[name], True)]
    assert any(one.startswith("trellis") and "+ascending" in one for one in offered)
    even = Curvature(torch.eye(64) + 0.5, torch.ones(96), 4096)
    offered = step_choices(matrix(96, 64), even)
    assert not any(one.ascending for one in offered)


def test_a_plan_and_its_bundle_reproduce_it(planned):
    weights, whole, plan = planned
    packed = packer.pack(weights, plan, curvature=whole)
    assert packed.rounds == 1
    assert packer.verify(packed.data, weights, plan, curvature=whole).problems == ()
    space: dict = {"__name__": "bundle"}
    exec(make_bundle(plan.bundled).script, space)
    known = {
        name: space["Curvature"](one.hessian, one.fisher, one.tokens, None, None, one.outputs)
        for name, one in whole.by_tensor.items()
    }
    size = len(packed.data)
    theirs = packer.unpack(space["encode_weights"](weights, known, size, 0))
    ours = packer.unpack(packed.data)
    assert all(torch.equal(theirs[name], ours[name]) for name in ours)
