"""Plans without data: what is far from typical, repeats itself, or cannot be held by a format."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from packer.quantizers.choice import parse_choice
from packer.quantizers.formats import FormatError
from packer.quantizers.quantize import quantize

from packer import api
from packer.artifact.decoder import parse, read_weights
from packer.checkpoint.checkpoint import from_state_dict
from packer.errors import CheckpointError, PlanError
from packer.planning.measure import measure, tensor_infos
from packer.planning.options import MeasureOptions
from packer.planning.weight_errors import block_weights
from packer.reports.describe import describe_quality
from packer.reports.report import report_plan

Weights = dict[str, torch.Tensor]


def test_errors_of_the_first_and_last_block_cost_more() -> None:
    names = [f"blocks.{block}.mlp.{part}.weight" for block in range(5) for part in ("fc", "proj")]
    infos = tensor_infos(from_state_dict({name: torch.randn(64, 64) for name in names}))
    weights = block_weights(infos)
    assert [weights[name] for name in names[::2]] == pytest.approx([8, 8**0.25, 1, 1, 2])
    assert [weights[name] for name in names[1::2]] == pytest.approx([12, 12**0.25, 1, 1, 2])
    assert block_weights([info for info in infos if info.layer in (0, 1, 2)]) == {}


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(3)


def packed(weights: Weights, cap: int, out: Path, **options: object) -> tuple[Weights, object]:
    checkpoint = from_state_dict(weights)
    plan = api.plan(checkpoint, cap, MeasureOptions(**options))  # type: ignore[arg-type]
    found = api.pack(checkpoint, plan, out=out)
    return read_weights(out.read_bytes()), found


@pytest.mark.parametrize("coder", [None, "numpy"])
def test_long_tensors_that_repeat_themselves_take_a_few_bytes(
    tmp_path: Path, coder: str | None
) -> None:
    weights = {
        "blocks": torch.block_diag(torch.ones(20, 20), torch.ones(30, 30)),
        "offsets": (torch.arange(300)[:, None] - torch.arange(300)).clamp(-16, 16),
        "rows": torch.randn(1, 300).expand(16, 300).contiguous(),
        "soft": torch.full((60, 60), -1e4).triu(1),
        "w": torch.randn(16, 16) * 0.05,
    }
    back, _ = packed(weights, 30_000, tmp_path / "m.pack", coder=coder)
    sizes = {t.name: t.size_bytes for t in parse((tmp_path / "m.pack").read_bytes()).tensors}
    for name, most in {"blocks": 300, "offsets": 1500, "rows": 2000, "soft": 1500}.items():
        assert torch.equal(back[name], weights[name]) and sizes[name] < most, (name, sizes[name])


def test_infinities_of_a_mask_come_back_and_are_named(tmp_path: Path) -> None:
    slopes = torch.tensor([0.5, 0.25])[:, None, None] * torch.arange(48.0)
    alibi = slopes + torch.full((48, 48), -torch.inf).triu(1)
    banned = torch.zeros(500)
    banned[[7, 99]] = -torch.inf
    weights = {"alibi": alibi, "banned": banned.half(), "w": torch.randn(64, 64)}
    back, _ = packed(weights, 30_000, tmp_path / "m.pack")
    assert all(torch.equal(back[name], weights[name]) for name in ("alibi", "banned"))
    assert "alibi, banned" in from_state_dict(weights).notes[-1]
    checked = api.verify(tmp_path / "m.pack", against=from_state_dict(weights))
    assert checked.problems == ()


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_broke_in_training_are_refused(value: float) -> None:
    weight = torch.randn(32, 32)
    weight[3, 4] = value
    with pytest.raises(CheckpointError, match=r"fc.weight \(1 of 1,024 values\)"):
        from_state_dict({"fc.weight": weight})
    nan_in_mask = torch.full((16, 16), -torch.inf).triu(1)
    nan_in_mask[0, 0] = torch.nan
    with pytest.raises(CheckpointError, match="mask"):
        from_state_dict({"mask": nan_in_mask})


def test_a_choice_that_cannot_hold_a_tensor_is_left_out_and_refused_when_pinned() -> None:
    wide = torch.tensor([1e300, -3e301, 2.0, 1e-300], dtype=torch.float64).repeat(2000)
    checkpoint = from_state_dict({"wide": wide.reshape(80, 100), "w": torch.randn(64, 64)})
    measured = measure(checkpoint)
    assert min(c.weight_error for c in measured.by_tensor["wide"]) == 0
    with pytest.raises(PlanError, match="wide: "):
        measure(checkpoint, MeasureOptions(pins={"wide": "int8.row"}))


@pytest.mark.parametrize(
    ("name", "table"),
    [
        ("rope.freqs", 500_000.0 ** (-torch.arange(0, 96, 2) / 96)),
        ("slopes", 2.0 ** (-8 * torch.arange(1, 17) / 16).reshape(16, 1, 1)),
        ("log_decay", torch.linspace(-9, -0.01, 40).exp()),
    ],
)
@pytest.mark.parametrize("cap", [9_000, 14_000])
def test_tables_of_formulas_keep_every_element(
    tmp_path: Path, name: str, table: torch.Tensor, cap: int
) -> None:
    weights = {name: table, "mlp.fc.weight": torch.randn(256, 128) * 0.05}
    back, _ = packed(weights, cap, tmp_path / "m.pack")
    assert float(((back[name] - table) / table).abs().max()) < 0.005


@pytest.mark.parametrize("halves", [False, True])
def test_sinusoidal_positions_do_not_outweigh_the_weights(tmp_path: Path, halves: bool) -> None:
    angles = torch.arange(1024)[:, None] * 10_000.0 ** (-torch.arange(64) / 64)
    pair = (angles.sin(), angles.cos())
    table = torch.cat(pair, 1) if halves else torch.stack(pair, 2).flatten(1)
    weights = {"pos.pe": table[None], "mlp.fc.weight": torch.randn(256, 128) * 0.02}
    back, _ = packed(weights, 45_000, tmp_path / "m.pack")
    for name, most in {"pos.pe": 0.15, "mlp.fc.weight": 0.4}.items():
        before, after = weights[name], back[name]
        assert float((before - after).norm() / before.norm()) < most, name


def test_a_tiny_matrix_is_not_erased(tmp_path: Path) -> None:
    weights = {"attn.proj.weight": torch.randn(64, 96) * 3e-10, "fc": torch.randn(256, 64) * 0.1}
    back, found = packed(weights, 12_000, tmp_path / "m.pack")
    before, after = weights["attn.proj.weight"], back["attn.proj.weight"]
    assert float((before - after).norm() / before.norm()) < 0.5
    assert found.lost == {}  # type: ignore[attr-defined]


def test_what_is_erased_all_the_same_is_named(tmp_path: Path) -> None:
    weights = {"tiny": torch.randn(64, 64) * 3e-10, "fc": torch.randn(64, 64)}
    _, found = packed(weights, 30_000, tmp_path / "m.pack", pins={"tiny": "fp16"})
    assert found.lost == {  # type: ignore[attr-defined]
        "tiny": "4,096 of 4,096 weights that are not zero came back as zero"
    }


@pytest.mark.parametrize("axis", [0, 1])
def test_one_row_or_column_far_out_leaves_the_others(tmp_path: Path, axis: int) -> None:
    weight = torch.randn(800, 64) * 0.03
    weight.select(axis, 11).mul_(400)
    weights = {"tok_emb.weight": weight, "w": torch.randn(64, 64) * 0.03}
    back, _ = packed(weights, 25_000, tmp_path / "m.pack")
    others = [i for i in range(weight.shape[axis]) if i != 11]
    before, after = (
        w.index_select(axis, torch.tensor(others)) for w in (weight, back["tok_emb.weight"])
    )
    assert bool((after != 0).any(1).all())
    assert float((before - after).norm() / before.norm()) < 0.5


@pytest.mark.parametrize("place", [(9, 9), (9, slice(None))])
def test_weights_a_million_times_the_others_do_not_outweigh_another_matrix(
    tmp_path: Path, place: tuple[int | slice, ...]
) -> None:
    far = torch.randn(256, 256) * 0.02
    far[place] *= 1e6
    others = torch.ones_like(far, dtype=torch.bool)
    others[place] = False
    weights = {"far": far, "near": torch.randn(256, 256) * 0.02}
    back, _ = packed(weights, 65_000, tmp_path / "m.pack")
    lost = (back["far"] - far)[others].norm() / far[others].norm()
    assert float(lost) < 0.25
    assert float((back["near"] - weights["near"]).norm() / weights["near"].norm()) < 0.25


def test_steps_whose_codes_do_not_reach_a_weight_are_left_out() -> None:
    weight = torch.randn(64, 64)
    weight[5, 5] = 1e6
    with pytest.raises(FormatError, match="32,767 steps"):
        quantize(weight, parse_choice("step+nearest@0.001"))


def test_a_price_is_said_only_where_room_is_short() -> None:
    measured = measure(from_state_dict({"emb": torch.randn(900, 32), "w": torch.randn(40, 40)}))
    best = sum(min(c.size_bytes for c in g if c.damage == 0) for g in measured.by_tensor.values())
    for cap, short in ((best * 3, False), (40_000, True)):
        plan = api.plan(measured, cap)
        said = "more bytes would save" in describe_quality(plan)
        room = plan.plan.unused_bytes < 1000
        assert said == (report_plan(plan, "p").price is not None)
        assert not said or room
        assert room == short


def test_norms_give_up_their_floats_last() -> None:
    """No error of theirs tells what it does; under the least cap they are integers all the same."""
    layers = [f"layers.{number}" for number in range(4)]
    weights = {f"{layer}.up_proj.weight": torch.randn(128, 128) for layer in layers}
    weights |= {f"{layer}.norm.weight": torch.rand(128) + 0.05 for layer in layers}
    measured = measure(from_state_dict(weights))
    norms = {name for name in weights if "norm" in name}
    for cap in (16_000, 24_000, 40_000):
        choices = api.plan(measured, cap).choices
        assert {choices[name] for name in norms} <= {"fp32", "fp16", "bf16"}
        assert any("int" in choices[name] for name in set(weights) - norms)
    least = sum(
        min(one.size_bytes for one in measured.candidates if one.tensor == name) for name in weights
    )
    tight = api.plan(measured, least + measured.header_bytes + 40).choices
    assert any(tight[name].startswith("int") for name in norms)
