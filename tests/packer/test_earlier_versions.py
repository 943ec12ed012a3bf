"""Files of versions that permuted the hidden units of MLPs: they decode, and are not compared."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from click.testing import CliRunner, Result
from packer.quantizers.choice import parse_choice
from packer.quantizers.quantize import quantize
from torch import Tensor

import packer
from packer.artifact.decoder import parse
from packer.artifact.encoder import Artifact
from packer.checkpoint.checkpoint import from_state_dict, read_checkpoint
from packer.cli import main
from packer.curvature.file import read_curvature, write_curvature
from packer.errors import PlanError

GOLDEN = Path(__file__).parents[1] / "golden" / "permuted_units_v1.pack"
WIDTH, UNITS = 12, 40
UP, BIAS, DOWN = (
    f"blocks.0.mlp.{n}" for n in ("up_proj.weight", "up_proj.bias", "down_proj.weight")
)
NOT_COMPARED = "an earlier version wrote it with the hidden units of MLPs in another order"


def wave(step: float, *shape: int) -> Tensor:
    values = [math.sin(step * (place + 1) ** 2) for place in range(math.prod(shape))]
    return torch.tensor(values, dtype=torch.float64).reshape(shape).float()


@pytest.fixture
def weights() -> dict[str, Tensor]:
    """What the golden file was packed from."""
    return {
        UP: wave(0.7, UNITS, WIDTH),
        BIAS: wave(1.3, UNITS),
        DOWN: wave(0.9, WIDTH, UNITS),
    }


def mlp(weights: dict[str, Tensor]) -> Tensor:
    return F.silu(F.linear(wave(0.37, 16, WIDTH), weights[UP], weights[BIAS])) @ weights[DOWN].mT


def distance(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


def run(*words: object) -> Result:
    return CliRunner().invoke(main, [str(word) for word in words], catch_exceptions=False)


def test_a_permuted_file_decodes_to_the_same_function(weights: dict[str, Tensor]) -> None:
    decoded = packer.unpack(GOLDEN)
    assert parse(GOLDEN.read_bytes()).metadata == {"units": "sorted"}
    assert all(distance(decoded[name], weights[name]) > 1 for name in weights)
    assert distance(mlp(decoded), mlp(weights)) < 0.02
    order = [int((weights[BIAS] - value).abs().argmin()) for value in decoded[BIAS]]
    assert sorted(order) == list(range(UNITS))
    assert distance(decoded[UP], weights[UP][order]) < 0.02
    assert distance(decoded[DOWN], weights[DOWN][:, order]) < 0.02


def test_it_is_whole_and_not_compared(weights: dict[str, Tensor]) -> None:
    assert packer.verify(GOLDEN).problems == ()
    found = packer.verify(GOLDEN, weights)
    (problem,) = found.problems
    assert problem.startswith(NOT_COMPARED)
    assert [check.name for check in found.tensors] == sorted(weights)
    assert all(check.max_error is check.exact is None for check in found.tensors)


def test_structure_and_decoding_are_checked_all_the_same(weights: dict[str, Tensor]) -> None:
    other = {**weights, BIAS: weights[BIAS][1:], "more": torch.ones(3)}
    shape, more, last = packer.verify(GOLDEN, other).problems
    assert BIAS in shape and "more: in " in more and last.startswith(NOT_COMPARED)
    whole = Artifact.from_bytes(GOLDEN.read_bytes())
    broken = quantize(torch.full((UNITS,), torch.nan), parse_choice("fp32"))
    data = replace(whole, tensors={**whole.tensors, BIAS: broken}).to_bytes()
    first, second = packer.verify(data, weights).problems
    assert first.startswith(NOT_COMPARED)
    assert second == f"{BIAS}: some decoded weights are not finite"


def test_the_command_refuses_to_compare(weights: dict[str, Tensor], tmp_path: Path) -> None:
    torch.save(weights, tmp_path / "model.pt")
    alone = run("verify", GOLDEN)
    assert alone.exit_code == 0 and "3 tensors decode" in alone.stdout
    compared = run("verify", GOLDEN, "--against", tmp_path / "model.pt", "--json")
    assert compared.exit_code == 1
    message = " ".join(compared.stderr.split())
    assert NOT_COMPARED in message and "packer eval" in message
    assert not json.loads(compared.stdout)["passed"]


def test_what_is_packed_from_it_is_in_its_order(weights: dict[str, Tensor], tmp_path: Path) -> None:
    packer.unpack(GOLDEN, tmp_path / "w.safetensors")
    unpacked = read_checkpoint(tmp_path / "w.safetensors")
    assert unpacked.metadata["units"] == "sorted"
    plan = packer.plan(unpacked, 5_000)
    data = packer.pack(unpacked, plan).data
    assert "units" not in parse(data).metadata
    assert packer.verify(data, unpacked, plan).problems == ()
    again = packer.measure(
        weights, packer.MeasureOptions(metadata={"units": "sorted", "author": "a"})
    )
    assert again.metadata == {"author": "a"}


def test_measurements_and_plans_in_another_order_are_refused(
    weights: dict[str, Tensor], tmp_path: Path
) -> None:
    torch.save(weights, tmp_path / "model.pt")
    plan, candidates = tmp_path / "p.json", tmp_path / "c.json"
    packer.plan(tmp_path / "model.pt", 5_000, out=plan)
    packer.measure(tmp_path / "model.pt", out=candidates)
    for path in (plan, candidates):
        found = json.loads(path.read_text())
        found.get("measurement", found)["metadata"]["units"] = "sorted"
        path.write_text(json.dumps(found))
        with pytest.raises(PlanError, match="by an earlier version, with the hidden units"):
            packer.plan(path, 5_000)
    with pytest.raises(PlanError, match="Measure again"):
        packer.pack(tmp_path / "model.pt", plan)


def test_a_curvature_that_says_whether_units_may_be_permuted_keeps_its_name(
    tmp_path: Path,
) -> None:
    """Plans made with it name its sha256."""
    model = torch.nn.Sequential(torch.nn.Embedding(16, 8), torch.nn.Linear(8, 16))
    found = packer.calibrate(model, [torch.arange(64).reshape(4, 16) % 16])
    earlier = replace(found, earlier_notes=("free_order",))
    assert earlier.sha256 != found.sha256
    write_curvature(tmp_path / "c.safetensors", earlier)
    read = read_curvature(tmp_path / "c.safetensors", from_state_dict(model.state_dict()))
    assert read.sha256 == earlier.sha256
    assert "free_order" not in found.provenance()
