"""What somebody's file finds around it, while it is imported and when it is called."""

from __future__ import annotations

import statistics
import sys
from pathlib import Path

import pytest
import torch
from packer.eval.errors import ModelError
from packer.eval.foreign_model import load_foreign_model
from packer.eval.foreign_program import import_file, running_as
from torch import nn

TABLE = """
import torch
from torch import nn

class Table(nn.Module):
    def __init__(self):
        super().__init__()
        self.table = nn.Parameter(torch.zeros(9, 9))
    def forward(self, ids):
        return self.table[ids]
"""
LATE = """
import argparse
parser = argparse.ArgumentParser()
parser.add_argument("--rate", type=float, default=1.0)
assert parser.parse_args().rate == 1.0
import inner

def make():
    from inner import Table
    from statistics import OURS
    assert parser.parse_args().rate == OURS
    return Table()

class Later(inner.Table):
    def forward(self, ids):
        from late_part import SCALE
        return SCALE * super().forward(ids)
"""
WEIGHTS = {"table": torch.arange(81.0).view(9, 9).sin()}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "inner.py").write_text(TABLE)
    (tmp_path / "late_part.py").write_text("SCALE = 2\n")
    (tmp_path / "statistics.py").write_text("OURS = 1.0\n")  # as the standard library calls one
    (tmp_path / "late-2.0.py").write_text(LATE)
    monkeypatch.setattr(sys, "argv", ["packer", "eval", "--rate", "fast"])
    return tmp_path


@pytest.mark.parametrize(("name", "scale"), [("make", 1), ("Later", 2)])
def test_imports_and_arguments_are_the_files_own_when_called(
    folder: Path, name: str, scale: int
) -> None:
    file = folder / "late-2.0.py"
    with running_as(file):
        model = load_foreign_model(f"{file}:{name}", {}, WEIGHTS)
        found = model(torch.tensor([[3, 4]]))
    assert torch.equal(found[0], scale * WEIGHTS["table"][3:5])
    assert sys.argv == ["packer", "eval", "--rate", "fast"]
    assert sys.modules["statistics"] is statistics


def test_two_folders_have_neighbours_of_one_name(tmp_path: Path) -> None:
    made = []
    for name in ("one", "two"):
        other = tmp_path / name
        other.mkdir()
        (other / "neighbour_of_both.py").write_text(f"NAME = {name!r}\n")
        (other / "train.py").write_text("from neighbour_of_both import NAME\n")
        made.append(import_file(other / "train.py").NAME)
    assert made == ["one", "two"]


@pytest.mark.parametrize("marked", [True, False])
def test_relative_imports_work_in_a_package_and_beside_one(tmp_path: Path, marked: bool) -> None:
    part = tmp_path / "some-package" / "part"
    part.mkdir(parents=True)
    if marked:
        for package in (part, part.parent):
            (package / "__init__.py").write_text("")
        (part.parent / "above.py").write_text("WIDTH = 9\n")
    (part / "inner.py").write_text(TABLE)
    above = "from ..above import WIDTH\n" if marked else ""
    (part / "train.py").write_text(f"{above}from .inner import Table\n")
    model = load_foreign_model(f"{part / 'train.py'}:Table", {}, WEIGHTS)
    assert torch.equal(model(torch.tensor([[8]]))[0, 0], WEIGHTS["table"][8])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("import sys\n\nsys.exit(3)\n", r"SystemExit: 3.*__main__.*\(train.py, line 3\)"),
        ("import helper\n", r"AttributeError: .*nothing.*\(helper.py, line 2\)"),
        ("def f(:\n", r"SyntaxError.*train.py, line 1"),
        ("def GPT():\n    raise SystemExit('done')\n", r"SystemExit: done.*\(train.py, line 2\)"),
    ],
)
def test_what_ends_the_file_is_told_with_its_line(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "helper.py").write_text("import torch\ntorch.nothing\n")
    (tmp_path / "train.py").write_text(text)
    with pytest.raises(ModelError, match=words):
        load_foreign_model(f"{tmp_path / 'train.py'}:GPT", {}, {})


def test_classes_find_the_module_that_they_are_of(folder: Path) -> None:
    module = import_file(folder / "inner.py")
    assert issubclass(module.Table, nn.Module)
    assert sys.modules[module.Table.__module__] is module
