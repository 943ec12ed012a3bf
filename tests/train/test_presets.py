"""The contest presets hold, value by value, what the scripts of their pull requests set."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest
import torch
from packer.quantizers.choice import parse_choice
from packer.train.model import GPT
from packer.train.presets import PRESETS
from packer.train.qat import FakeQuantization, selected
from packer.train.trained_plan import with_pruned_codes

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def parity() -> ModuleType:
    """A module of benchmarks/, which are never installed."""
    place = ROOT / "benchmarks" / "parity.py"
    spec = importlib.util.spec_from_file_location("parity", place)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_every_value_is_that_of_the_cited_line(parity: ModuleType) -> None:
    rows = parity.read_rows()
    assert len(rows) > 190 and {row["preset"] for row in rows} == set(parity.SCRIPTS)
    for row in rows:
        assert row["line"], row
        found = parity.value_of(row["preset"], row["setting"])
        assert found == json.loads(row["value"]), row


def test_every_format_of_a_preset_is_cited(parity: ModuleType) -> None:
    cited = {(row["preset"], row["setting"]) for row in parity.read_rows()}
    for preset in parity.SCRIPTS:
        for section in ("qat", "pack"):
            for selector in getattr(PRESETS[preset], section).formats:
                assert (preset, f"{section}.formats {selector}") in cited


def test_the_page_is_what_the_command_writes(parity: ModuleType) -> None:
    assert parity.OUTPUT.read_text("utf-8") == parity.page(), "run python -m benchmarks.parity"


@pytest.mark.parametrize("name", PRESETS)
def test_formats_of_a_preset_name_its_tensors(name: str) -> None:
    config = PRESETS[name]
    with torch.device("meta"):
        model = GPT(config.model)
    weights = dict(model.named_parameters())
    packed = selected(config.pack.formats, weights)
    assert not packed or {n for n, w in weights.items() if w.numel() > 65_536} <= set(packed)
    assert FakeQuantization.attached(model, config.qat).choices.keys() <= weights.keys()
    for choice in config.pack.formats.values():
        assert str(parse_choice(choice)) == choice


def test_the_smallest_codes_of_all_tensors_go_together() -> None:
    weights = {
        "blocks.0.mlp.fc.weight": torch.linspace(-1, 1, 63).repeat(4, 1),  # each code once a row
        "blocks.0.mlp.proj.weight": torch.linspace(-1, 1, 63).repeat(2, 1),
        "tok_emb.weight": torch.linspace(-1, 1, 63).repeat(2, 1),
    }
    pins = {"blocks.*.weight": "int6.row", "tok_emb.weight": "int8.row"}
    # 6 codes of 378 are 0 and 12 of each magnitude from 1 on: 2 % is in the second.
    found = with_pruned_codes(pins, weights, None, 0.02)
    assert {found[name] for name in list(weights)[:2]} == {"int6.row+zero@1"}
    assert found["tok_emb.weight"] == "int8.row"
    assert with_pruned_codes(pins, weights, None, 0.01) == pins, "they are 0 already"
    assert with_pruned_codes(pins, weights, None, 0.0) == pins
