"""A cap far below every plan is refused from a bound that is quick to compute."""

from __future__ import annotations

import re

import pytest
import torch

from packer.checkpoint.checkpoint import from_state_dict
from packer.errors import CapError
from packer.planning.account import Limits
from packer.planning.measure import measure
from packer.planning.options import MeasureOptions
from packer.planning.pipeline import plan_checkpoint
from packer.planning.reachable import check_reachable


@pytest.fixture
def checkpoint(monkeypatch):
    monkeypatch.setattr("packer.planning.reachable.MANY", 1)
    generator = torch.Generator().manual_seed(4)
    weights = {
        f"blocks.{layer}.mlp.fc.weight": torch.randn(96, 128, generator=generator)
        for layer in range(4)
    }
    return from_state_dict(weights | {"norm.weight": torch.ones(128)})


def test_a_hopeless_cap_is_refused_before_anything_is_measured(checkpoint, monkeypatch):
    measurement = measure(checkpoint)
    smallest = sum(
        min(one.size_bytes for one in candidates) for candidates in measurement.by_tensor.values()
    )
    monkeypatch.setattr("packer.planning.pipeline.measure", None)
    with pytest.raises(CapError, match="no plan fits under the cap of 600 bytes") as refused:
        plan_checkpoint(checkpoint, Limits(600), MeasureOptions())
    coarsest = int(re.search(r"take about ([\d,]+)", str(refused.value))[1].replace(",", ""))
    assert coarsest <= smallest < 1.2 * coarsest


def test_caps_that_may_be_reached_pinned_tensors_and_small_models_are_let_through(
    checkpoint, monkeypatch
):
    options = MeasureOptions()
    check_reachable(checkpoint, Limits(50_000), options, curved=True)
    pinned = MeasureOptions(pins={"*": "fp32"})
    check_reachable(checkpoint, Limits(600), pinned, curved=True)
    monkeypatch.setattr("packer.planning.reachable.MANY", 1 << 24)
    check_reachable(checkpoint, Limits(600), options, curved=True)
