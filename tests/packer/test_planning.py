"""From measurements to a plan, and from a plan to a file that is never over the cap."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from packer.budget.plan import Candidate
from packer.quantizers.curvature import Curvature

from packer import api
from packer.artifact.decoder import parse
from packer.checkpoint.checkpoint import from_state_dict
from packer.errors import CapError, PackerError, PlanError, SelectorError
from packer.packing.pack import Packed, pack_to_cap
from packer.planning.account import CodeFile, Limits
from packer.planning.candidates import Measurement
from packer.planning.plan import (
    PackPlan,
    follow_policy,
    make_plan,
    read_measurement,
    read_plan,
    replan,
    restrict,
)
from packer.shipping.loader import loader_bytes

CAP = 12_000
Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def measured(weights: Weights) -> Measurement:
    return api.measure(weights)


@pytest.fixture(scope="module")
def seeds(weights: Weights) -> list[Weights]:
    """Three runs of one model: the same structure, other values, some of them wider."""
    found = []
    for seed in (1, 2, 3):
        generator = torch.Generator().manual_seed(seed)
        run = {
            name: (weight + seed * 0.05 * torch.randn(weight.shape, generator=generator)).to(
                weight.dtype
            )
            if weight.is_floating_point()
            else weight
            for name, weight in weights.items()
        }
        found.append({**run, "lm_head.weight": run["tok_emb.weight"]})
    return found


def check_packed(packed: Packed, plan: PackPlan, weights: Weights) -> None:
    """The file fits, and what the account and the plan say of it is true to the byte."""
    limits, stored = plan.limits, parse(packed.data)
    total = len(packed.data) + limits.code_bytes
    assert total + limits.margin_bytes <= limits.cap_bytes
    assert total == packed.account.total_bytes == packed.plan.plan.total_bytes
    assert packed.account.unused_bytes == limits.cap_bytes - total
    assert (stored.cap_bytes, stored.code_bytes) == (limits.cap_bytes, limits.code_bytes)
    chosen = {c.tensor: c.size_bytes for c in packed.plan.plan.chosen}
    assert {tensor.name: tensor.size_bytes for tensor in stored.tensors} == chosen
    unpacked = api.unpack(packed.data)
    assert {name: (w.shape, w.dtype) for name, w in unpacked.items()} == {
        name: (w.shape, w.dtype) for name, w in weights.items()
    }


def test_the_plan_in_json_comes_back_exactly(measured: Measurement) -> None:
    limits = Limits(40_000, (CodeFile("/a/train.py", 123), CodeFile("b", 4)), 13_000, 77)
    plan = make_plan(measured, limits, {"late-k": "fp16"})
    assert plan.pins == {"blocks.1.attn.c_k.weight": "fp16"}
    text = json.dumps(plan.to_json())
    again = PackPlan.from_json(json.loads(text), "plan.json")
    assert again == plan
    assert json.dumps(again.to_json()) == text


def test_files_come_back_exactly(measured: Measurement, tmp_path: Path) -> None:
    plan = api.plan(measured, CAP, out=tmp_path / "plan.json")
    assert read_plan(tmp_path / "plan.json") == plan
    assert read_measurement(tmp_path / "plan.json") == (measured, {})
    api.plan(plan, CAP, out=tmp_path / "again.json")
    assert (tmp_path / "again.json").read_bytes() == (tmp_path / "plan.json").read_bytes()


def test_damages_given_in_bits_per_byte_come_back_exactly(measured: Measurement) -> None:
    candidates = tuple(replace(c, damage_bpb=c.weight_error / 3) for c in measured.candidates)
    plan = make_plan(replace(measured, candidates=candidates), Limits(CAP))
    assert plan.plan.damage_kind == "damage_bpb"
    assert PackPlan.from_json(json.loads(json.dumps(plan.to_json())), "plan.json") == plan


def test_a_larger_cap_never_does_more_damage(measured: Measurement) -> None:
    damages = [make_plan(measured, Limits(cap)).plan.damage for cap in range(8_000, 60_000, 2_000)]
    assert damages == sorted(damages, reverse=True)
    assert damages[-1] == 0


@pytest.mark.parametrize("margin", [0, 1, 500, 3_000])
def test_the_margin_is_left_free(weights: Weights, measured: Measurement, margin: int) -> None:
    plan = make_plan(measured, Limits(CAP, margin_bytes=margin))
    packed = pack_to_cap(from_state_dict(weights), plan)
    check_packed(packed, plan, weights)
    assert margin <= packed.account.unused_bytes <= margin + 500


def test_pins_are_taken_from_the_room_of_the_others(measured: Measurement) -> None:
    free = make_plan(measured, Limits(15_000))
    pinned = make_plan(measured, Limits(15_000), {"embeddings": "fp32"})
    assert pinned.choices["tok_emb.weight"] == "fp32" != free.choices["tok_emb.weight"]
    assert pinned.plan.total_bytes <= 15_000
    assert pinned.plan.damage > free.plan.damage
    left = {c.choice for c in restrict(measured, pinned.pins) if c.tensor == "tok_emb.weight"}
    assert left == {"fp32"}


def test_pins_that_cannot_be_followed(measured: Measurement) -> None:
    with pytest.raises(SelectorError, match="matches no tensor"):
        make_plan(measured, Limits(CAP), {"missing": "fp16"})
    with pytest.raises(PlanError, match=r"int3\.row', which was not measured"):
        make_plan(measured, Limits(CAP), {"embeddings": "int3.row"})
    with pytest.raises(CapError, match=r"no plan fits.*tok_emb\.weight"):
        make_plan(measured, Limits(9_000), {"embeddings": "fp32"})


def test_predicted_bytes_are_packed_bytes_for_every_default_choice() -> None:
    generator = torch.Generator().manual_seed(3)
    weights = {
        "long.weight": torch.randn(64, 64, generator=generator),
        "short.weight": torch.randn(3, 7, 5, generator=generator),
        "bias": torch.randn(40, generator=generator),
        "half.weight": torch.randn(20, 30, generator=generator).half(),
        "bfloat.weight": torch.randn(20, 30, generator=generator).bfloat16(),
        "double.weight": torch.randn(9, 9, generator=generator).double(),
        "count": torch.arange(5),
        "scalar": torch.tensor(0.5),
        "empty": torch.zeros(0, 3),
    }
    measured = api.measure(weights)
    by_tensor = measured.by_tensor
    for index in range(max(map(len, by_tensor.values()))):
        choices = [found[min(index, len(found) - 1)] for found in by_tensor.values()]
        pins = {candidate.tensor: candidate.choice for candidate in choices}
        plan = make_plan(measured, Limits(1_000_000), pins)
        assert plan.choices == pins
        packed = pack_to_cap(from_state_dict(weights), plan)
        assert packed.rounds == 1
        check_packed(packed, plan, weights)
        predicted = measured.header_bytes + sum(c.size_bytes for c in choices)
        assert len(packed.data) == predicted


def test_another_order_of_names_is_the_same_checkpoint(
    weights: Weights, measured: Measurement
) -> None:
    plan = make_plan(measured, Limits(CAP))
    others = dict(reversed(weights.items()))
    # The first of two tied names is the one stored.
    ordered = {"tok_emb.weight": others.pop("tok_emb.weight"), **others}
    one, two = (pack_to_cap(from_state_dict(w), plan) for w in (weights, ordered))
    assert one.data == two.data


@pytest.mark.parametrize("change", ["value", "name", "dtype", "tie"])
def test_a_plan_is_stale_for_other_contents(
    weights: Weights, measured: Measurement, change: str
) -> None:
    other = dict(weights)
    if change == "value":
        other["step"] = torch.tensor(8)
    elif change == "name":
        other["steps"] = other.pop("step")
    elif change == "dtype":
        other["step"] = torch.tensor(7, dtype=torch.int32)
    else:
        other["lm_head.weight"] = other["lm_head.weight"] + 1  # a copy of equal values is a tie
    plan = make_plan(measured, Limits(CAP))
    with pytest.raises(PlanError, match=r"was made for state dict with contents .*--policy"):
        pack_to_cap(from_state_dict(other), plan)


def test_sizes_that_grew_lead_to_another_round(weights: Weights, measured: Measurement) -> None:
    """Measured with another version of a compressor, each choice 300 bytes too small."""
    true = make_plan(measured, Limits(CAP))
    sizes = {(c.tensor, c.choice): c.size_bytes - 300 for c in measured.candidates if _large(c)}
    hopeful = make_plan(measured.corrected(sizes), Limits(CAP))
    packed = pack_to_cap(from_state_dict(weights), hopeful)
    assert packed.rounds > 1
    check_packed(packed, hopeful, weights)
    assert packed.plan.choices != hopeful.choices
    assert packed.plan.plan.damage >= true.plan.damage


def test_sizes_that_shrank_leave_room_for_more(weights: Weights, measured: Measurement) -> None:
    chosen = make_plan(measured, Limits(CAP)).plan.chosen
    sizes = {(c.tensor, c.choice): c.size_bytes + 400 for c in chosen if _large(c)}
    cautious = make_plan(measured.corrected(sizes), Limits(CAP))
    packed = pack_to_cap(from_state_dict(weights), cautious)
    check_packed(packed, cautious, weights)
    assert packed.plan.plan.damage <= cautious.plan.damage


def test_sizes_that_grew_past_every_choice(weights: Weights, measured: Measurement) -> None:
    smallest = _smallest(measured)
    sizes = {(c.tensor, c.choice): c.size_bytes - 50 for c in measured.candidates if _large(c)}
    hopeful = make_plan(measured.corrected(sizes), Limits(smallest - 20))
    with pytest.raises(CapError, match="no plan fits"):
        pack_to_cap(from_state_dict(weights), hopeful)


def test_pins_and_limits_stay_when_sizes_change(measured: Measurement) -> None:
    limits = Limits(40_000, (CodeFile("train.py", 100),), 13_000, 50)
    plan = make_plan(measured, limits, {"late-k": "fp16"})
    sizes = {(c.tensor, c.choice): c.size_bytes + 10 for c in plan.plan.chosen}
    again = replan(plan, measured.corrected(sizes))
    assert plan.limits == replace(limits, loader_bytes=loader_bytes(plan.choices.values()))
    assert (again.limits, again.pins) == (plan.limits, plan.pins)
    assert again.choices["blocks.1.attn.c_k.weight"] == "fp16"
    assert again.plan.total_bytes + 50 <= 40_000


def test_a_policy_is_kept_where_it_fits(measured: Measurement, seeds: list[Weights]) -> None:
    policy = make_plan(measured, Limits(CAP), {"late-k": "fp16"})
    for weights in seeds:
        followed = api.plan(weights, 2 * CAP, policy=policy)
        assert followed.choices == policy.choices
        assert followed.pins == policy.pins
        packed = api.pack(weights, followed)
        check_packed(packed, followed, weights)


def test_three_runs_under_one_policy_all_fit(measured: Measurement, seeds: list[Weights]) -> None:
    policy = make_plan(measured, Limits(CAP), {"late-k": "fp16"})
    stepped = 0
    for weights in seeds:
        followed = api.plan(weights, CAP, policy=policy)
        check_packed(api.pack(weights, followed), followed, weights)
        assert followed.choices["blocks.1.attn.c_k.weight"] == "fp16"
        stepped += followed.choices != policy.choices
    assert stepped > 0


def test_a_policy_steps_down_only_to_smaller_choices(
    measured: Measurement, seeds: list[Weights]
) -> None:
    policy = make_plan(measured, Limits(CAP))
    sizes = {(c.tensor, c.choice): c.size_bytes for c in api.measure(seeds[0]).candidates}
    followed = api.plan(seeds[0], 9_000, policy=policy)
    for tensor, choice in followed.choices.items():
        kept = policy.choices[tensor]
        assert choice == kept or sizes[tensor, choice] < sizes[tensor, kept]
    assert followed.choices != policy.choices


def test_a_policy_of_another_structure_or_with_pins_too_large(
    weights: Weights, measured: Measurement
) -> None:
    policy = make_plan(measured, Limits(20_000), {"embeddings": "fp32"})
    other = api.measure({"tok_emb.weight": torch.ones(3)})
    with pytest.raises(PlanError, match="another structure"):
        follow_policy(policy, other, Limits(CAP))
    with pytest.raises(CapError, match=r"tok_emb\.weight"):
        api.plan(weights, 9_000, policy=policy)


def test_the_frontier_of_a_real_checkpoint_is_met(shared: Path, tmp_path: Path) -> None:
    """Never over, at most 2,000 bytes unused, with and without code; two runs give one file."""
    checkpoint = api.load(shared / "checkpoints" / "ref6x256.pt")
    measured = api.measure(checkpoint)
    ties = {tied: checkpoint.tensors[kept] for tied, kept in checkpoint.ties.items()}
    whole = {**checkpoint.tensors, **ties}
    (tmp_path / "code.py").write_bytes(b"#" * 50_000)
    for cap in (1_500_000, 2_000_000, 2_500_000):
        for code in ((), (tmp_path / "code.py",)):
            plan = api.plan(measured, api.PlanLimits(cap, code=code))
            packed = api.pack(checkpoint, plan)
            check_packed(packed, plan, whole)
            assert 0 <= packed.account.unused_bytes <= 2_000
            assert packed.rounds == 1
    assert api.pack(checkpoint, plan).data == packed.data


def _large(candidate: Candidate) -> bool:
    return candidate.size_bytes > 600


def _smallest(measured: Measurement) -> int:
    least = [min(c.size_bytes for c in found) for found in measured.by_tensor.values()]
    return measured.header_bytes + sum(least)


DTYPES = (
    *(torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.float8_e4m3fn),
    *(torch.int64, torch.int8, torch.uint16, torch.bool, torch.complex64),
)
SHAPES = ((), (0,), (3, 0), (1,), (5,), (17,), (1, 1), (4, 6), (16, 1), (2, 3, 4))
KINDS = ("normal", "zeros", "constant", "huge", "tiny")


@st.composite
def state_dicts(draw: st.DrawFn) -> Weights:
    """Up to five tensors of any dtype and shape, some of them tied."""
    weights: Weights = {}
    for index in range(draw(st.integers(1, 4))):
        shape, dtype = draw(st.sampled_from(SHAPES)), draw(st.sampled_from(DTYPES))
        values = _values(draw(st.sampled_from(KINDS)), shape, index).to(dtype)
        weights[f"t{index}.weight"] = _finite(values)
    if draw(st.booleans()):
        weights["tied.weight"] = weights["t0.weight"]
    return weights


def _values(kind: str, shape: tuple[int, ...], seed: int) -> torch.Tensor:
    if kind in ("zeros", "constant"):
        return torch.full(shape, 0.0 if kind == "zeros" else -0.3)
    values = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).clamp(-3, 3)
    return values * {"normal": 1.0, "huge": 1e38, "tiny": 1e-40}[kind]


def _finite(values: torch.Tensor) -> torch.Tensor:
    """What overflowed becomes the largest number there is."""
    if values.dtype.is_complex or not values.dtype.is_floating_point:
        return values
    largest = torch.finfo(values.dtype).max
    return values.double().nan_to_num(largest).clamp(-largest, largest).to(values.dtype)


@settings(
    max_examples=80, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
@given(weights=state_dicts(), cap=st.integers(1, 900), margin=st.sampled_from([0, 0, 7]))
def test_no_state_dict_is_ever_packed_over_a_cap(weights: Weights, cap: int, margin: int) -> None:
    measured = api.measure(weights)
    try:
        plan = api.plan(measured, api.PlanLimits(cap, margin_bytes=margin))
    except CapError as error:
        match = re.search(r"the smallest possible total is ([\d,]+)", str(error))
        assert match is not None
        smallest = int(match[1].replace(",", ""))
        assert smallest == _smallest(measured) + margin > cap
        plan = api.plan(measured, api.PlanLimits(smallest, margin_bytes=margin))
    packed = api.pack(weights, plan)
    check_packed(packed, plan, weights)
    assert packed.plan == plan
    unpacked = api.unpack(packed.data)
    if "tied.weight" in weights and weights["tied.weight"].numel():
        assert unpacked["tied.weight"] is unpacked["t0.weight"]
    assert api.verify(packed.data, weights, plan).problems == ()


def test_refusals_are_of_one_family() -> None:
    """A script can catch them all."""
    assert all(issubclass(error, PackerError) for error in (CapError, PlanError, SelectorError))


def test_an_earlier_plans_pins_are_kept(measured: Measurement, tmp_path: Path) -> None:
    pinned = api.plan(
        measured, CAP, api.MeasureOptions(pins={"late-k": "fp16"}), out=tmp_path / "plan.json"
    )
    assert pinned.pins
    assert api.plan(pinned, CAP + 500).pins == pinned.pins
    assert api.plan(tmp_path / "plan.json", CAP + 500).pins == pinned.pins
    other = api.plan(pinned, CAP + 500, api.MeasureOptions(pins={"late-k": "bf16"}))
    assert set(other.pins) == set(pinned.pins) and set(other.pins.values()) == {"bf16"}


def test_a_policy_takes_no_other_pins(measured: Measurement) -> None:
    made = api.plan(measured, CAP)
    with pytest.raises(PlanError, match="carries its own pins"):
        api.plan(measured, CAP, api.MeasureOptions(pins={"late-k": "fp16"}), policy=made)


def test_a_pin_may_be_spelled_in_another_way(weights: Weights) -> None:
    measured = api.measure(weights, api.MeasureOptions(pins={"late-k": "int6.row+kstd@20.0000"}))
    for spelled in ("int6.row+kstd@20.0000", "int6.row+kstd@2e1", "int6.row+kstd@20"):
        made = api.plan(measured, CAP, api.MeasureOptions(pins={"late-k": spelled}))
        assert made.pins == {"blocks.1.attn.c_k.weight": "int6.row+kstd@20"}
        assert made.choices["blocks.1.attn.c_k.weight"] == "int6.row+kstd@20"
    with pytest.raises(PlanError, match="pin late-k: "):
        api.plan(measured, CAP, api.MeasureOptions(pins={"late-k": "int6.row+kstd@twenty"}))


def test_a_plan_with_gptq_needs_the_curvature_it_was_measured_with(weights: Weights) -> None:
    name = "blocks.0.mlp.fc.weight"
    inputs = torch.randn(200, 32, generator=torch.Generator().manual_seed(1))
    inputs[:, 1] = inputs[:, 0] + 0.1 * inputs[:, 1]
    curvature = {name: Curvature(inputs.T @ inputs / 200, None, 200)}
    pins = {name: "int4.row+gptq"}
    plan = api.plan(weights, CAP, api.MeasureOptions(pins=pins), curvature=curvature)
    packed = api.pack(weights, plan, curvature=curvature)
    assert packed.rounds == 1
    assert packed.rounding_problems == {}
    assert list(packed.roundings) == [name]
    nearest = api.pack(weights, api.plan(weights, CAP, api.MeasureOptions(pins={name: "int4.row"})))
    assert packed.encoded[name].block != nearest.encoded[name].block
    assert api.verify(packed.data, weights, plan, curvature=curvature).problems == ()
    assert api.verify(packed.data, weights, plan).problems == ()
    with pytest.raises(PlanError, match=rf"{name}: int4.row\+gptq needs curvature"):
        api.plan(weights, CAP, api.MeasureOptions(pins=pins))
    with pytest.raises(PlanError, match=rf"{name}: int4.row\+gptq needs curvature, as 1 of"):
        api.pack(weights, plan)


def test_the_summary_names_every_tensor_that_gptq_could_not_round(weights: Weights) -> None:
    name = "blocks.1.mlp.proj.weight"
    curvature = {name: Curvature(torch.zeros(64, 64), None, 200)}
    plan = api.plan(
        weights, CAP, api.MeasureOptions(pins={name: "int4.row+gptq"}), curvature=curvature
    )
    packed = api.pack(weights, plan, curvature=curvature)
    assert packed.rounding_problems == {name: "rounded to nearest: all of its inputs are zero"}


def test_a_pinned_correction_is_packed_weighed_and_verified(weights: Weights) -> None:
    pins = {"mlp-in": "int3.row.rank4x8", "mlp-out": "ternary.row.rank2x2"}
    plan = api.plan(weights, CAP, api.MeasureOptions(pins=pins))
    packed = api.pack(weights, plan)
    assert packed.rounds == 1
    assert api.verify(packed.data, weights, plan).problems == ()
    plain = api.pack(
        weights, api.plan(weights, CAP, api.MeasureOptions(pins={"mlp-in": "int3.row"}))
    )
    name = "blocks.0.mlp.fc.weight"
    factors = packed.encoded[name].side_bytes - plain.encoded[name].side_bytes
    assert 0.8 * 4 * (64 + 32) < factors < 1.2 * 4 * (64 + 32 + 4)
    decoded = api.unpack(packed.data)
    errors = [(one[name] - weights[name]).norm() for one in (decoded, api.unpack(plain.data))]
    assert errors[0] < errors[1]


def test_measurements_are_not_measured_otherwise(measured: Measurement) -> None:
    for options, what in (
        (api.MeasureOptions(coder="numpy"), "coder"),
        (api.MeasureOptions(trellis=True), "trellis"),
        (api.MeasureOptions(metadata={"a": "b"}), "metadata"),
    ):
        with pytest.raises(PlanError, match=f"another {what}"):
            api.plan(measured, CAP, options)
