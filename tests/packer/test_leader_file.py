"""The last leader's recipe as a file of its own layout, read back as anybody's."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import brotli
import numpy as np
import pytest
import torch
from packer.quantizers.choice import parse_choice
from packer.quantizers.curvature import Curvature
from packer.quantizers.grouped_low_rank import fits, grouped_correction
from packer.quantizers.quantize import dequantize, quantize

from packer.checkpoint.checkpoint import Checkpoint, from_state_dict, read_checkpoint
from packer.curvature.curvature_set import CurvatureSet
from packer.curvature.given import resolve_curvature
from packer.errors import PlanError
from packer.packing import leader_file as leader
from packer.packing.comparison import Comparison
from packer.packing.sorted_frame_writer import row_order, sorted_frame
from packer.planning.account import Limits
from packer.planning.damage_trials import Calibration
from packer.planning.options import MeasureOptions
from packer.planning.recipes import Position, Recipe, find_recipe

LRZIP = find_recipe("leader-lqer-lrzip")
BROTLI = replace(LRZIP, name="leader-lqer-brotli", coder="brotli")
installed = pytest.mark.skipif(shutil.which("lrzip") is None, reason="lrzip is not installed")
Weights = dict[str, torch.Tensor]


@pytest.fixture(scope="module")
def weights() -> Weights:
    generator = torch.Generator().manual_seed(1)

    def normal(*shape: int) -> torch.Tensor:
        return 0.1 * torch.randn(*shape, generator=generator)

    return {
        "tok_emb.weight": normal(128, 96),
        "blocks.0.attn.c_q.weight": normal(96, 96),
        "blocks.0.mlp.fc.weight": normal(192, 96),
        "blocks.0.mlp.proj.weight": normal(96, 192) * 3,
        "blocks.0.resid_mix": normal(2, 96),
        "blocks.0.attn_scale": 1 + normal(96),
        "gain": torch.tensor([1e5]),
        "few": normal(8),
        "step": torch.tensor(7),
    }


@pytest.fixture(scope="module")
def curvature(weights: Weights) -> CurvatureSet:
    found = {}
    for name, weight in weights.items():
        if weight.dim() == 2 and name != "blocks.0.attn.c_q.weight":
            inputs = torch.randn(300, weight.shape[1], generator=torch.Generator().manual_seed(2))
            found[name] = Curvature(inputs.T @ inputs / 300, None, 300)
    resolved = resolve_curvature(from_state_dict(weights), found)
    assert resolved is not None
    return resolved


def written(
    weights: Mapping[str, torch.Tensor],
    curvature: CurvatureSet,
    recipe: Recipe = BROTLI,
    pins: Mapping[str, str] | None = None,
) -> leader.LeaderFile:
    position, options = Position("k", 12.85), MeasureOptions(pins=pins or {})
    return leader.leader_file(from_state_dict(weights), recipe, position, options, curvature)


def read(file: leader.LeaderFile, folder: Path) -> Checkpoint:
    (folder / "leader.ptz").write_bytes(file.data)
    return read_checkpoint(folder / "leader.ptz")


def test_what_is_read_back_is_what_was_rounded(
    weights: Weights, curvature: CurvatureSet, tmp_path: Path
) -> None:
    file = written(weights, curvature)
    assert list(file.problems) == ["blocks.0.attn.c_q.weight"]
    checkpoint = read(file, tmp_path)
    assert checkpoint.foreign is not None
    found = checkpoint.tensors
    assert {name: one.shape for name, one in found.items()} == {
        name: one.shape for name, one in weights.items()
    }
    choices = {
        "tok_emb.weight": "int7.row+kstd@14+gptq",
        "blocks.0.attn.c_q.weight": "int6.row+kstd@13",
        "blocks.0.mlp.fc.weight": "int6.row+kstd@11.5+gptq",
        "blocks.0.mlp.proj.weight": "int6.row+kstd@11.5+gptq",
    }
    curved, corrected = curvature.by_tensor, 0
    for name, text in choices.items():
        rounded = dequantize(quantize(weights[name], parse_choice(text), curved.get(name)))
        before = (weights[name] - rounded).norm()
        if "+lqer_asym" in checkpoint.foreign.tensors[name].stored:
            corrected += 1
            assert 0.5 * before < (weights[name] - found[name]).norm() < before
        else:
            assert torch.equal(found[name], rounded)
            assert name == "tok_emb.weight"  # the finest, with the smallest error
    assert corrected == 3
    for name in ("blocks.0.resid_mix", "blocks.0.attn_scale"):
        error = (found[name] - weights[name]).abs().max()
        assert 0 < error <= weights[name].abs().max() / 253
    assert torch.equal(found["few"], weights["few"].half().float())
    assert torch.equal(found["gain"], weights["gain"]) and found["step"] == 7


@installed
def test_lrzip_holds_the_same_weights_in_the_same_bytes_each_time(
    weights: Weights, curvature: CurvatureSet, tmp_path: Path
) -> None:
    one, other = written(weights, curvature, LRZIP), written(weights, curvature, LRZIP)
    assert one.data == other.data
    expected = read(written(weights, curvature), tmp_path).tensors
    for name, tensor in read(one, tmp_path).tensors.items():
        assert torch.equal(tensor, expected[name]), name


def test_brotli_stands_in_by_name_where_lrzip_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leader, "lrzip_program", lambda: None)
    assert leader.with_coder_here(LRZIP) == BROTLI
    monkeypatch.setattr(leader, "lrzip_program", lambda: "/bin/lrzip")
    assert leader.with_coder_here(LRZIP) is LRZIP
    zstd = find_recipe("gptq-lite-int6")
    assert leader.with_coder_here(zstd) is zstd


def test_pins_are_kept_and_those_without_a_place_refused(
    weights: Weights, curvature: CurvatureSet, tmp_path: Path
) -> None:
    pins = {"mlp-in": "int8.row", "attention-q": "fp16"}
    file = written(weights, curvature, pins=pins)
    assert file.problems == {}
    found = read(file, tmp_path)
    assert found.foreign is not None
    assert found.foreign.tensors["blocks.0.mlp.fc.weight"].stored.startswith("int8.row")
    with pytest.raises(leader.LayoutError, match=r"tok_emb.weight is .* as step.row"):
        written(weights, curvature, pins={"tok_emb.weight": "step.row+nearest@0.3"})


def test_banks_have_no_place_in_the_layout(weights: Weights, curvature: CurvatureSet) -> None:
    bank = {**weights, "mlp_up_bank": torch.ones(2, 96, 96)}
    with pytest.raises(leader.LayoutError, match=r"mlp_up_bank is \[2, 96, 96\]"):
        written(bank, curvature)
    comparison = Comparison(
        from_state_dict(bank), Limits(1), Calibration(curvature), MeasureOptions()
    )
    assert list(comparison.recipe_curve(LRZIP)) == []


def test_gptq_without_curvature_is_refused(weights: Weights) -> None:
    checkpoint = from_state_dict(weights)
    with pytest.raises(PlanError, match="needs curvature"):
        leader.leader_file(checkpoint, BROTLI, BROTLI.original, MeasureOptions(), None)


def test_rows_are_walked_to_the_nearest_neighbour() -> None:
    codes = np.array([[0, 0], [9, 9], [1, 0], [8, 9], [-100, 127]], np.int8)
    assert row_order(codes).tolist() == [0, 2, 3, 1, 4]
    assert row_order(codes[:1]).tolist() == [0]
    assert row_order(codes[:0]).tolist() == []
    extremes = np.array([[-128] * 600, [127] * 600, [-127] * 600], np.int8)  # 153,000 apart
    assert row_order(extremes).tolist() == [0, 2, 1]


def test_row_numbers_are_compressed_like_all_else() -> None:
    """In one brotli block with codes that cannot be compressed they would take two bytes each."""
    numbers = torch.Generator().manual_seed(3)
    matrices = {
        f"{n}.q": torch.randint(-127, 128, (200, 500), generator=numbers, dtype=torch.int8)
        for n in range(5)
    }
    frame = sorted_frame(matrices, {"w": {}, "m": {}}, "brotli")
    raw = len(brotli.decompress(frame))
    assert raw - len(frame) > 0.3 * 2 * 200 * 5


def test_a_correction_is_of_the_largest_singular_values() -> None:
    numbers = torch.Generator().manual_seed(4)
    left, right = (torch.randn(*s, generator=numbers) for s in ((64, 4), (4, 96)))
    factors = grouped_correction(left @ right, 4, 32)
    assert factors["A"].unique().tolist() == [-2, -1, 0, 1]
    assert factors["B"].min() >= -8 and factors["B"].max() <= 7
    assert factors["B_scale"].shape == (12,) and factors["A_scale"].shape == ()
    zero = grouped_correction(torch.zeros(8, 8), 4, 32)
    assert not zero["A"].any() and not zero["B"].isnan().any()
    assert fits(8, 8, 4, 32) and not fits(8, 9, 4, 32) and not fits(3, 8, 4, 32)
