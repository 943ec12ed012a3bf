"""Examples in docstrings are run, so that none shows what is no longer so."""

from __future__ import annotations

import doctest
import importlib
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = {
    "packer": "packer",
    "quantizers": "packer.quantizers",
    "budget": "packer.budget",
    "eval": "packer.eval",
    "train": "packer.train",
}


def modules_with_examples() -> list[str]:
    found = []
    for folder, package in PACKAGES.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            if ">>> " in path.read_text("utf-8"):
                parts = path.relative_to(ROOT / folder).with_suffix("").parts
                found.append(".".join([package, *(part for part in parts if part != "__init__")]))
    return found


@pytest.mark.parametrize("name", modules_with_examples())
def test_examples_say_what_happens(name: str) -> None:
    module = importlib.import_module(name)
    failed, tried = doctest.testmod(module, report=True)
    assert tried > 0 and failed == 0


def test_examples_are_found() -> None:
    """By the search above, in every place where somebody would look for one."""
    found = set(modules_with_examples())
    assert {"packer", "packer.quantizers.choice", "packer.budget.frontier"} <= found
