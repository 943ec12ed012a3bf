"""Layers in the order of their numbers."""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from click.testing import Result
from safetensors.torch import save_file

from packer.checkpoint.natural_order import natural_key, natural_order
from packer.progress import ignore_progress

LAYERS = [f"layers.{number}.weight" for number in range(12)]


def test_numbers_in_names_are_sorted_by_size() -> None:
    assert sorted(sorted(LAYERS), key=natural_key) == LAYERS
    assert natural_order(sorted(LAYERS)) == LAYERS
    assert natural_order(["b", "layers.2", "layers.1"]) == ["b", "layers.2", "layers.1"]
    names = ["", "10", "9a", "9", "a", "a1b2", "a1b10"]
    assert sorted(names, key=natural_key) == ["", "9", "9a", "10", "a", "a1b2", "a1b10"]


def test_inspect_and_report_list_layers_so(tmp_path: Path, run: Callable[..., Result]) -> None:
    save_file({name: torch.randn(8, 8) for name in LAYERS}, tmp_path / "m.safetensors")
    shown = json.loads(run("inspect", "m.safetensors", "--json").stdout)
    assert [one["name"] for one in shown["tensors"]] == LAYERS
    table = run("report", "m.safetensors").stdout.splitlines()
    assert [line.split()[0] for line in table if line.startswith("layers")] == LAYERS


def test_progress_of_inspect_and_measure_counts_weights() -> None:
    from packer import inspect, measure

    weights = {"a": torch.randn(3, 4), "b": torch.randn(40)}
    reports: list[tuple[str, int, int]] = []
    inspect(weights, lambda *what: reports.append(what))
    assert reports == [("a", 0, 52), ("b", 12, 52)]
    reports.clear()
    measured = measure(weights, progress=lambda *what: reports.append(what))
    assert reports == [("a", 12, 52), ("b", 52, 52)]
    assert measured.candidates == measure(weights, progress=ignore_progress).candidates
