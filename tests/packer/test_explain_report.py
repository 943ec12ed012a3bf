"""Reports add up to the byte, explanations name the plan's reasons, pictures show something."""

from __future__ import annotations

import math
import struct
import xml.etree.ElementTree as ElementTree
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from packer import api
from packer.errors import OutputError, PackerError, SelectorError
from packer.planning.account import Limits
from packer.planning.plan import PackPlan
from packer.reports.difference import compare
from packer.reports.explain import explain
from packer.reports.page import pictures_of
from packer.reports.pictures import plot_pictures
from packer.reports.report import (
    Report,
    by_layer,
    by_role,
    report_checkpoint,
    report_packed,
    report_plan,
)
from packer.reports.report_data import report_data
from packer.reports.sources import load_report

CAP = 12_000
Weights = dict[str, torch.Tensor]


@pytest.fixture
def plan(made: Path) -> PackPlan:
    return api.load_plan(made / "plan.json")


def reports(made: Path, weights: Weights) -> list[Report]:
    """One of every kind: checkpoint, plan, file, and a file just packed."""
    found = [load_report(made / name)[0] for name in ("model.pt", "plan.json", "model.pack")]
    packed = api.pack(weights, made / "plan.json")
    return [*found, report_packed(packed, "model.pack")]


def test_every_report_adds_up(made: Path, weights: Weights) -> None:
    for report in reports(made, weights):
        rows = sum(row.size_bytes for row in report.rows)
        assert report.header_bytes + rows == report.artifact_bytes
        assert report.total_bytes == report.artifact_bytes + report.code_bytes
        assert report.unused_bytes == report.cap_bytes - report.total_bytes
        for shares in (by_role(report), by_layer(report)):
            assert sum(share.size_bytes for share in shares) == rows
            assert sum(share.tensors for share in shares) == len(report.rows)
            assert sum(share.elements for share in shares) == sum(r.elements for r in report.rows)


def test_the_account_of_a_file_is_the_file(made: Path, weights: Weights) -> None:
    size = (made / "model.pack").stat().st_size
    *_, read, packed = reports(made, weights)
    assert read.artifact_bytes == packed.artifact_bytes == size
    assert read.account == packed.account
    assert str(read.account).endswith(f"= {size:,} of 12,000, {CAP - size:,} left")
    assert [(r.name, r.size_bytes) for r in read.rows] == [
        (r.name, r.size_bytes) for r in packed.rows
    ]


def test_what_each_source_knows_of_damage(made: Path, weights: Weights, plan: PackPlan) -> None:
    checkpoint, planned, read, packed = reports(made, weights)
    for report in (checkpoint, read):
        assert (report.damage_kind, report.damage, report.price) == (None, None, None)
        assert all(row.weight_error is None for row in report.rows)
    for report in (planned, packed):
        assert report.damage == pytest.approx(plan.plan.damage)
        assert sum(row.weight_error or 0 for row in report.rows) == pytest.approx(plan.plan.damage)
        assert all(row.damage_bpb is None for row in report.rows)


def test_roles_and_layers(made: Path) -> None:
    report, _ = load_report(made / "model.pack")
    roles = {share.name: share for share in by_role(report)}
    assert roles["mlp-in"].tensors == 2
    assert roles["token-embedding"].elements == 64 * 32
    sizes = [share.size_bytes for share in by_role(report)]
    assert sizes == sorted(sizes, reverse=True)
    assert [share.name for share in by_layer(report)] == ["no layer", "0", "1"]


def test_bits_per_weight(made: Path) -> None:
    report, _ = load_report(made / "model.pack")
    rows = {row.name: row for row in report.rows}
    row = rows["tok_emb.weight"]
    assert row.bits_per_weight == pytest.approx(8 * row.size_bytes / (64 * 32))
    assert rows["empty"].bits_per_weight is None
    assert rows["step"].bits_per_weight == 8 * rows["step"].size_bytes


def test_a_checkpoint_weighs_what_its_tensors_weigh(weights: Weights) -> None:
    report = report_checkpoint(api.load(weights), Limits(1_000))
    whole = sum(weight.nbytes for name, weight in weights.items() if name != "lm_head.weight")
    assert report.artifact_bytes == whole
    assert report.unused_bytes == 1_000 - whole
    assert any("tied" in note for note in report.notes)


def test_caps_of_their_own(made: Path) -> None:
    for name in ("plan.json", "model.pack"):
        with pytest.raises(PackerError, match=f"{name} was made for its own cap"):
            load_report(made / name, cap=5)
    assert load_report(made / "model.pt", cap=5)[0].cap_bytes == 5


def test_two_equal_reports_do_not_differ(made: Path, weights: Weights) -> None:
    _, planned, read, packed = reports(made, weights)
    assert compare(planned, planned) == compare(planned, read) == compare(read, packed) == ()


def test_what_differs_between_a_plan_and_its_artifact_is_the_format(plan: PackPlan) -> None:
    """A plan leaves the coder open, an artifact forgets how codes were chosen."""
    row = replace(report_plan(plan, "plan").rows[0], choice="int6.row+percentile")
    planned = replace(report_plan(plan, "plan"), rows=(row,))

    def other(kind: str, choice: str, added: int = 0) -> Report:
        changed = replace(row, choice=choice, size_bytes=row.size_bytes + added)
        return replace(planned, kind=kind, rows=(changed,))

    assert compare(planned, other("artifact", "int6.row~brotli")) == ()
    assert len(compare(planned, other("artifact", "int6.row~brotli", added=1))) == 1
    assert len(compare(planned, other("artifact", "int5.row~brotli"))) == 1
    assert len(compare(planned, other("plan", "int6.row"))) == 1


def test_differences_are_largest_first_and_name_what_is_missing(made: Path) -> None:
    before, _ = load_report(made / "plan.json")
    after = report_plan(api.plan(made / "candidates.json", 9_000), "smaller")
    shorter = replace(after, rows=tuple(row for row in after.rows if row.name != "step"))
    differences = compare(before, shorter)
    changes = [abs(one.size_change) for one in differences]
    assert changes == sorted(changes, reverse=True)
    step = next(one for one in differences if one.name == "step")
    assert step.after is None and step.before is not None
    assert step.size_change == -step.before.size_bytes
    rows = {row.name: row.size_bytes for row in shorter.rows}
    moved = sum(rows.get(row.name, 0) - row.size_bytes for row in before.rows)
    assert sum(one.size_change for one in differences) == moved


def test_every_tensor_has_one_choice_with_reasons(plan: PackPlan) -> None:
    for name, choice in plan.choices.items():
        lines = explain(plan, name)
        assert [line.choice for line in lines if line.chosen] == [choice]
        assert {line.choice for line in lines} == {
            candidate.choice for candidate in plan.measurement.by_tensor[name]
        }
        sizes = [line.size_bytes for line in lines]
        assert sizes == sorted(sizes)
        for line in lines:
            expected = line.damage + plan.plan.price * line.size_bytes
            assert line.cost == pytest.approx(expected)
            assert line.verdict


def test_reasons_are_true(plan: PackPlan) -> None:
    for name in plan.choices:
        lines = explain(plan, name)
        chosen = next(line for line in lines if line.chosen)
        least = min(line.cost for line in lines)
        assert chosen.verdict in ("chosen", "chosen to fill the last bytes")
        assert chosen.verdict != "chosen" or chosen.cost == least
        for line in lines:
            if line.verdict.endswith("is no larger and better"):
                better = next(o for o in lines if o.choice == line.verdict.partition(" is ")[0])
                assert better.size_bytes <= line.size_bytes and better.damage < line.damage
            elif line.verdict.startswith("costs "):
                said = float(line.verdict.removeprefix("costs "))
                assert said == pytest.approx(line.cost - chosen.cost, rel=1e-2, abs=1e-9)


def test_pins_are_named_as_the_reason(made: Path) -> None:
    pinned = api.plan(made / "candidates.json", CAP, api.MeasureOptions(pins={"late-k": "fp16"}))
    lines = explain(pinned, "blocks.1.attn.c_k.weight")
    assert [(line.choice, line.verdict) for line in lines if line.chosen] == [("fp16", "pinned")]
    with pytest.raises(SelectorError, match=r"no tensor 'tok'; the nearest is 'tok_emb\.weight'"):
        explain(pinned, "tok")


@pytest.mark.parametrize("source", ["model.pt", "model.pack", "plan.json"])
def test_a_png_has_something_on_it(made: Path, tmp_path: Path, source: str) -> None:
    report, plan = load_report(made / source)
    pictures = pictures_of(report_data(report, plan))
    plot_pictures(str(tmp_path / "bytes.png"), pictures)
    data = (tmp_path / "bytes.png").read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n")
    width, height = struct.unpack(">II", data[16:24])
    assert width >= 1_000 * (2 if len(pictures) > 2 else 1) and height >= 600
    assert len(data) > 10_000


def test_an_svg_has_every_large_role_and_the_plan(made: Path, tmp_path: Path) -> None:
    report, plan = load_report(made / "plan.json")
    pictures = pictures_of(report_data(report, plan))
    plot_pictures(str(tmp_path / "bytes.SVG"), pictures)
    root = ElementTree.parse(tmp_path / "bytes.SVG").getroot()
    assert root.tag.endswith("svg")
    text = (tmp_path / "bytes.SVG").read_text()
    for words in ("Where the bytes go", "mlp-in", "this plan", "cap", "layer 0"):
        assert f">{words}" in text
    plot_pictures(str(tmp_path / "again.svg"), pictures)
    assert (tmp_path / "again.svg").read_text() == text


def test_pictures_of_small_and_odd_models(tmp_path: Path) -> None:
    for index, weights in enumerate(
        ({"a": torch.ones(3)}, {"a": torch.zeros(0)}, {"layers.7.$b_{": torch.ones(2, 2)})
    ):
        plan = api.plan(weights, 5_000)
        pictures = pictures_of(report_data(report_plan(plan, "plan"), plan))
        plot_pictures(str(tmp_path / f"{index}.png"), pictures)
        assert (tmp_path / f"{index}.png").stat().st_size > 1_000


def test_other_endings_are_refused_before_any_work(made: Path, tmp_path: Path) -> None:
    report, _ = load_report(made / "model.pack")
    with pytest.raises(OutputError, match=r"bytes\.txt: pictures are written as \.png, \.svg"):
        plot_pictures(str(tmp_path / "bytes.txt"), pictures_of(report_data(report)))
    assert list(tmp_path.iterdir()) == []


def test_the_damage_of_a_plan_is_the_sum_of_its_rows(plan: PackPlan) -> None:
    rows = report_plan(plan, "plan").rows
    assert math.fsum(row.weight_error or 0 for row in rows) == plan.plan.damage
