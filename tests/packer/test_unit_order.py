"""Hidden units of MLPs in another order: found, tried on the model, packed, and compared again."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner, Result
from hypothesis import given, settings
from hypothesis import strategies as st
from packer.eval.token_bytes import TokenBytes
from packer.quantizers.choice import parse_choice
from packer.quantizers.curvature import Curvature
from torch import Tensor, nn

import packer
from packer import api
from packer.account import Limits
from packer.bundle import make_bundle
from packer.checkpoint import from_state_dict, read_checkpoint
from packer.cli import main
from packer.curvature.curvature_set import CurvatureSet
from packer.curvature.file import read_curvature, write_curvature
from packer.decoder import parse
from packer.errors import PlanError
from packer.evaluation import Data
from packer.filling import filled
from packer.hidden_units import hidden_units, ordered_checkpoint, recovered_orders, units_of
from packer.measuring import measure
from packer.planning import make_plan
from packer.trials import damage_bench
from packer.unit_order import felt_orders, ordered_curvature, sorted_units

VOCAB, WIDTH, UNITS = 48, 32, 160
CAP = 14_000


class MLP(nn.Module):
    """SwiGLU with a bias on its units. in_order: each unit has a weight of its own by its place."""

    def __init__(self, in_order: bool) -> None:
        super().__init__()
        self.w1 = nn.Linear(WIDTH, UNITS, bias=False)
        self.w3 = nn.Linear(WIDTH, UNITS)
        self.w2 = nn.Linear(UNITS, WIDTH)
        self.places = torch.linspace(0.2, 2, UNITS) if in_order else torch.ones(())

    def forward(self, x: Tensor) -> Tensor:
        return self.w2(F.silu(self.w1(x)) * self.w3(x) * self.places)


class Model(nn.Module):
    def __init__(self, in_order: bool = False) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.tok_emb = nn.Embedding(VOCAB, WIDTH)
        self.blocks = nn.ModuleList(nn.ModuleDict({"mlp": MLP(in_order)}) for _ in range(2))
        self.lm_head = nn.Linear(WIDTH, VOCAB, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.tok_emb(tokens)
        for block in self.blocks:
            x = x + 2 * block["mlp"](x)
        return self.lm_head(x)


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    return torch.randint(0, VOCAB, (64, 16), generator=torch.Generator().manual_seed(5))


@pytest.fixture(scope="module")
def model() -> Model:
    return Model()


@pytest.fixture(scope="module")
def felt(model: Model, tokens: Tensor) -> CurvatureSet:
    return packer.calibrate(model, tokens.split(16), bytes_per_token=1.0)


def shapes(**more: tuple[int, ...]) -> dict[str, tuple[int, ...]]:
    found = {"fc.weight": (96, 32), "fc.bias": (96,), "proj.weight": (32, 96), "proj.bias": (32,)}
    found |= {name.replace("_", "."): shape for name, shape in more.items()}
    return {f"blocks.0.mlp.{name}": shape for name, shape in found.items() if shape}


def test_units_are_found_with_all_that_meets_them() -> None:
    found = hidden_units(shapes(), {})
    names = {"fc.weight": 0, "fc.bias": 0, "proj.weight": 1}
    assert found == [{f"blocks.0.mlp.{name}": axis for name, axis in names.items()}]
    assert next(iter(found[0])) == "blocks.0.mlp.fc.weight"
    (gated,) = hidden_units(shapes(gate_weight=(96, 32), norm_weight=(96,)), {})
    assert gated["blocks.0.mlp.gate.weight"] == 0 == gated["blocks.0.mlp.norm.weight"]
    assert next(iter(gated)) == "blocks.0.mlp.fc.weight"


@pytest.mark.parametrize(
    "other",
    [
        {"fc_weight": (32, 32), "fc_bias": (32,), "proj_weight": (32, 32)},  # which axis is which
        {"fc_weight": (192, 32), "fc_bias": (192,)},  # two matrices in one
        {"fc_weight": (32, 96)},  # x @ W
        {"fc_weight": ()},  # nothing leads to the units
        {"mix_weight": (96, 96)},  # what it does to the units is not known
    ],
)
def test_an_mlp_whose_units_cannot_be_told_is_left_out(other: dict[str, tuple[int, ...]]) -> None:
    assert hidden_units(shapes(**other), {}) == []


def test_tied_tensors_and_matrices_outside_a_module_are_left_out() -> None:
    assert hidden_units(shapes(), {"blocks.1.mlp.fc.weight": "blocks.0.mlp.fc.weight"}) == []
    assert hidden_units({"up_proj": (96, 32), "down_proj": (32, 96)}, {}) == []


def test_calibration_tries_whether_the_order_is_free(
    model: Model, felt: CurvatureSet, tokens: Tensor, tmp_path: Path
) -> None:
    assert felt.free_order
    kept = Model().state_dict()
    assert all(torch.equal(kept[name], value) for name, value in model.state_dict().items())
    in_order = packer.calibrate(Model(in_order=True), [tokens])
    assert not in_order.free_order
    write_curvature(tmp_path / "c.safetensors", felt)
    again = read_curvature(tmp_path / "c.safetensors", from_state_dict(model.state_dict()))
    assert again.free_order
    assert again.sha256 == felt.sha256
    assert "free_order" not in in_order.provenance()


@pytest.mark.parametrize(("dtype", "slope"), [(torch.float32, 0.01), (torch.bfloat16, 0.5)])
def test_an_order_that_matters_is_told_from_another_order_of_sums(
    tokens: Tensor, dtype: torch.dtype, slope: float
) -> None:
    free, bound = Model().to(dtype), Model(in_order=True).to(dtype)
    for block in bound.blocks:
        block["mlp"].places = torch.linspace(1 - slope, 1 + slope, UNITS, dtype=dtype)
    for block in free.blocks:
        block["mlp"].places = block["mlp"].places.to(dtype)
    assert packer.calibrate(free, [tokens]).free_order
    assert not packer.calibrate(bound, [tokens]).free_order


def test_batches_that_come_only_once_are_all_read(model: Model, tokens: Tensor) -> None:
    found = packer.calibrate(model, iter(tokens.split(16)))
    assert found.tokens == tokens.numel()
    assert found.free_order


def test_a_file_in_another_order_is_the_same_model(
    model: Model, felt: CurvatureSet, tokens: Tensor
) -> None:
    weights = model.state_dict()
    plan = api.plan(weights, CAP, curvature=felt)
    kept = api.plan(weights, CAP, curvature=felt, reorder=False)
    assert plan.measurement.units_sorted and not kept.measurement.units_sorted
    assert plan.measurement.contents == kept.measurement.contents
    packed = api.pack(weights, plan, curvature=felt)
    assert packed.rounds == 1
    assert packed.account.total_bytes == plan.plan.total_bytes
    decoded = api.unpack(packed.data)
    order = felt_orders(units_of(from_state_dict(weights)), felt.by_tensor)
    name = "blocks.0.mlp.w3.weight"
    assert sorted(order[name][1].tolist()) == list(range(UNITS)) != order[name][1].tolist()
    errors = [decoded[name] - one for one in (weights[name][order[name][1]], weights[name])]
    assert errors[0].square().mean() < 0.2 * errors[1].square().mean()
    changed, other = Model(), Model()
    changed.load_state_dict(decoded)
    packed_kept = api.pack(weights, kept, curvature=felt)
    other.load_state_dict(api.unpack(packed_kept.data))
    assert _lost(model, changed, tokens) < 1.3 * _lost(model, other, tokens)


@torch.no_grad()
def _lost(model: Model, changed: Model, tokens: Tensor) -> float:
    before, after = (one(tokens).log_softmax(-1) for one in (model, changed))
    return float((before - after).square().mean())


def test_verify_compares_in_the_order_of_the_file(model: Model, felt: CurvatureSet) -> None:
    weights = model.state_dict()
    plan = api.plan(weights, CAP, curvature=felt)
    data = api.pack(weights, plan, curvature=felt).data
    rounded = [one for one in plan.choices.values() if "+gptq" in one]
    assert rounded
    with_codes = api.verify(data, weights, plan, curvature=felt)
    recovered = api.verify(data, weights, plan)
    assert with_codes.problems == recovered.problems == ()
    assert [one.relative_error for one in with_codes.tensors] == pytest.approx(
        [one.relative_error for one in recovered.tensors]
    )
    name = "blocks.1.mlp.w1.weight"
    other = {**weights, name: weights[name].flip(0)}
    lied = api.verify(data, other, plan, curvature=dict(felt.by_tensor))
    assert any(name in problem and "codes differ" in problem for problem in lied.problems)


def test_an_unpacked_file_is_a_checkpoint_in_the_order_that_it_has(
    model: Model, felt: CurvatureSet, tmp_path: Path
) -> None:
    weights = model.state_dict()
    data = api.pack(weights, api.plan(weights, CAP, curvature=felt), curvature=felt).data
    assert parse(data).metadata["units"] == "sorted"
    path = tmp_path / "w.safetensors"
    api.unpack_to(data, path)
    again = measure(read_checkpoint(path))
    assert not again.units_sorted
    assert not measure(from_state_dict(weights), metadata={"units": "sorted"}).units_sorted


def test_a_plan_that_sorts_units_needs_its_curvature(
    model: Model, felt: CurvatureSet, tokens: Tensor
) -> None:
    weights = model.state_dict()
    plan = api.plan(weights, 10**9, curvature=felt)
    assert plan.measurement.units_sorted
    assert not any("+gptq" in one for one in plan.choices.values())
    with pytest.raises(PlanError, match="hidden units"):
        api.pack(weights, plan)
    other = packer.calibrate(model, [tokens[:8]])
    with pytest.raises(PlanError, match="curvature"):
        api.pack(weights, plan, curvature=other)


def test_a_policy_keeps_units_sorted_where_they_may_be(
    model: Model, felt: CurvatureSet, tokens: Tensor
) -> None:
    weights = model.state_dict()
    policy = api.plan(weights, CAP, curvature=felt)
    again = api.plan(weights, CAP, policy=policy, curvature=felt)
    assert again.choices == policy.choices
    assert again.plan.total_bytes == policy.plan.total_bytes
    assert again.measurement.units_sorted
    in_order = Model(in_order=True)
    placed = packer.calibrate(in_order, [tokens], bytes_per_token=1.0)
    kept = api.plan(in_order.state_dict(), CAP, policy=policy, curvature=placed)
    assert not kept.measurement.units_sorted


def test_trials_measure_in_the_models_own_order(
    model: Model, felt: CurvatureSet, tokens: Tensor
) -> None:
    checkpoint = from_state_dict(model.state_dict())
    counter = TokenBytes(np.ones(VOCAB, np.int64), *np.zeros((3, VOCAB), bool))
    data = Data(tokens.flatten().numpy(), counter, VOCAB, None, None)
    bench = damage_bench(model, checkpoint, felt, data, "t", tokens=512, window=16, held_out=False)
    one = "blocks.0.mlp.w3.weight"
    found = []
    for reorder in (True, False):
        pins = {one: "int3.row"}
        measured = measure(checkpoint, curvature=felt, pins=pins, reorder=reorder)
        assert measured.units_sorted == reorder
        changed = [c for c in measured.candidates if (c.tensor, c.choice) == (one, "int3.row")]
        found.append(bench.trial(measured, changed, "one of three").measured)
    assert found[0] > 0
    assert found[0] == pytest.approx(found[1], rel=1e-4)


def test_a_bundle_sorts_units_too(
    model: Model, felt: CurvatureSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = model.state_dict()
    plan = api.plan(weights, CAP, curvature=felt)
    module = ModuleType("bundle")
    monkeypatch.setitem(sys.modules, "bundle", module)
    exec(make_bundle(plan).script, vars(module))
    write_curvature(tmp_path / "c.safetensors", felt)
    curvature = module.read_curvatures((tmp_path / "c.safetensors").read_bytes())
    made = module.encode_weights(weights, curvature, CAP, 100)
    choices = {name: parse_choice(text) for name, text in plan.choices.items()}
    groups = units_of(from_state_dict(weights))
    wanted = filled(weights, choices, {}, {"units": "sorted"}, felt.by_tensor, CAP, 100, 1, groups)
    assert made == wanted
    assert api.verify(made, weights).problems == ()
    kept = measure(from_state_dict(weights), curvature=felt, reorder=False)
    grown = make_bundle(plan).size_bytes - make_bundle(make_plan(kept, Limits(CAP))).size_bytes
    assert 0 < grown < 600


def test_curvature_is_permuted_with_its_weight(felt: CurvatureSet, model: Model) -> None:
    groups = units_of(from_state_dict(model.state_dict()))
    weights, curvature = sorted_units(groups, model.state_dict(), felt.by_tensor)
    order = felt_orders(groups, felt.by_tensor)
    generator = torch.Generator().manual_seed(1)
    for name, (axis, permutation) in order.items():
        if name not in felt.by_tensor:
            continue
        weight, known, moved = model.state_dict()[name], felt.by_tensor[name], curvature[name]
        change = torch.randn(weight.shape, generator=generator)
        there = change.index_select(axis, permutation)
        assert _felt(there, moved) == pytest.approx(_felt(change, known), rel=1e-4)
        assert torch.equal(weights[name], weight.index_select(axis, permutation))


def _felt(change: Tensor, known: Curvature) -> float:
    flat = change.reshape(-1, change.shape[-1])
    rows = torch.ones(len(flat)) if known.fisher is None else known.fisher
    total = float((rows * ((flat @ known.hessian) * flat).sum(1)).sum())
    if known.outputs is not None:
        total += float((known.outputs * (flat @ known.hessian @ flat.T)).sum())
    return total


def test_curvature_of_rows_and_of_columns() -> None:
    hessian, fisher = torch.diag(torch.tensor([1.0, 2.0])), torch.tensor([3.0, 4.0, 5.0])
    outputs = torch.diag(fisher)
    known = Curvature(hessian, fisher, 8, outputs=outputs)
    by_rows = ordered_curvature(known, False, torch.tensor([2, 0, 1]))
    assert by_rows.fisher is not None and by_rows.outputs is not None
    assert by_rows.fisher.tolist() == [5.0, 3.0, 4.0] == by_rows.outputs.diagonal().tolist()
    assert torch.equal(by_rows.hessian, hessian)
    by_columns = ordered_curvature(known, True, torch.tensor([1, 0]))
    assert by_columns.hessian.diagonal().tolist() == [2.0, 1.0]
    assert torch.equal(by_columns.outputs, outputs)


@settings(max_examples=30)
@given(st.integers(0, 2**31), st.integers(2, 40), st.floats(0, 0.4))
def test_the_order_is_recovered_from_noisy_weights(seed: int, units: int, noise: float) -> None:
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    width = 48 if units != 48 else 49
    weights = {"b.mlp.fc.weight": normal(units, width), "b.mlp.proj.weight": normal(width, units)}
    checkpoint = from_state_dict(weights)
    permutation = torch.randperm(units, generator=generator)
    orders = {"b.mlp.fc.weight": (0, permutation), "b.mlp.proj.weight": (1, permutation)}
    stored = ordered_checkpoint(checkpoint, orders)
    decoded = {name: one + noise * normal(*one.shape) for name, one in stored.tensors.items()}
    found = recovered_orders(checkpoint, decoded)
    assert {name: (axis, order.tolist()) for name, (axis, order) in found.items()} == {
        name: (axis, order.tolist()) for name, (axis, order) in orders.items()
    }


def test_silent_and_equal_units_are_each_taken_once() -> None:
    row = torch.randn(48, generator=torch.Generator().manual_seed(2))
    into = torch.stack([row, row, torch.zeros(48), torch.zeros(48), -row])
    weights = {"b.mlp.fc.weight": into, "b.mlp.proj.weight": into.mT.contiguous()}
    checkpoint = from_state_dict(weights)
    permutation = torch.tensor([4, 2, 0, 3, 1])
    decoded = {
        "b.mlp.fc.weight": into[permutation],
        "b.mlp.proj.weight": into.mT[:, permutation].contiguous(),
    }
    found = recovered_orders(checkpoint, decoded)
    _, order = found["b.mlp.fc.weight"]
    assert sorted(order.tolist()) == list(range(5))
    assert torch.equal(into[order], into[permutation])


def test_the_command_compares_codes_with_the_curvature_given(
    model: Model, felt: CurvatureSet, tokens: Tensor, tmp_path: Path
) -> None:
    checkpoint, plan, artifact = tmp_path / "w.pt", tmp_path / "p.json", tmp_path / "m.pack"
    torch.save(model.state_dict(), checkpoint)
    write_curvature(tmp_path / "c.safetensors", felt)
    made = api.plan(checkpoint, CAP, curvature=tmp_path / "c.safetensors", out=plan)
    api.pack(checkpoint, made, curvature=felt, out=artifact)
    packer.calibrate(model, [tokens[:8]], out=tmp_path / "other.safetensors")
    against = ["verify", str(artifact), "--against", str(checkpoint), "--plan", str(plan)]

    def verified(*more: str) -> Result:
        return CliRunner().invoke(main, [*against, *more], catch_exceptions=False)

    assert verified("--curvature", str(tmp_path / "c.safetensors")).exit_code == 0
    assert verified().exit_code == 0
    refused = verified("--curvature", str(tmp_path / "other.safetensors"))
    assert refused.exit_code == 1
    assert "was made with curvature" in refused.stderr
    alone = ["verify", str(artifact), "--curvature", str(tmp_path / "c.safetensors")]
    assert CliRunner().invoke(main, alone).exit_code == 2
