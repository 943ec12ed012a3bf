"""Imports obey the layers: train above packer, packer above three leaves that know nothing of ours.

Every file is parsed, never imported. The one table of what may import what is `MAY_IMPORT`.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {
    "packer": "packer",
    **{
        f"packer.{one.parent.name}": f"packer/{one.parent.name}"
        for one in sorted(ROOT.glob("packer/*/__init__.py"))
    },
    "packer.quantizers": "quantizers",
    "packer.budget": "budget",
    "packer.eval": "eval",
    "packer.train": "train",
}
# The first line that a module's name starts with says its layer.
LAYERS = {
    "packer.quantizers": "quantizers",
    "packer.budget": "budget",
    "packer.eval": "eval",
    "packer.train.model": "model",
    "packer.train.attention": "model",
    "packer.train.layers": "model",
    "packer.train.past": "model",
    "packer.train": "train",
    "packer.commands": "commands",
    "packer.cli": "commands",
    "packer.__main__": "commands",
    "packer.artifact_error": "decoder",
    "packer.decoder": "decoder",
    "packer.lane_decoder": "decoder",
    "packer.reader": "decoder",
    "packer.step_decoder": "decoder",
    "packer.trellis_decoder": "decoder",
    "packer.stream_decoder": "decoder",
    "packer": "packer",
}
LEAVES = ("quantizers", "budget", "eval")
MAY_IMPORT = {
    "quantizers": {"quantizers"},
    "budget": {"budget"},
    "eval": {"eval"},
    "model": {"model"},
    "decoder": {"decoder", "quantizers"},
    "packer": {"packer", "decoder", *LEAVES},
    "commands": {"commands", "packer", "decoder", "train", "model", *LEAVES},
    "train": {"train", "model", "packer", "decoder", *LEAVES},
}
NOT_FOR = {"budget": {"torch"}}
# What the shipped loader is made of, beside decoder.py itself.
DECODER_NEEDS = {
    "packer.artifact_error",
    "packer.lane_decoder",
    "packer.reader",
    "packer.quantizers.dequantize",
    "packer.quantizers.step_grid",
    "packer.quantizers.trellis_path",
    "packer.step_decoder",
    "packer.stream_decoder",
    "packer.trellis_decoder",
}


@dataclass(frozen=True)
class Import:
    """A module that a file imports. relative: written with dots.

    nested: not when the file is imported, that is inside a function or for type checkers alone.
    """

    module: str
    line: int
    relative: bool
    nested: bool


def modules() -> Iterator[tuple[str, Path]]:
    """(import name, file) of every module that is installed."""
    for package, folder in FOLDERS.items():
        for path in sorted((ROOT / folder).glob("*.py")):
            yield (package if path.stem == "__init__" else f"{package}.{path.stem}"), path


def imports_of(module: str, source: str, *, is_package: bool) -> Iterator[Import]:
    """Everything imported anywhere in a file, relative names resolved."""
    tree = ast.parse(source)
    later = [node for node in ast.walk(tree) if _runs_later(node)]
    nested = {id(inner) for node in later for inner in ast.walk(node)}
    here = module.split(".") if is_package else module.split(".")[:-1]
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, node.lineno, False, id(node) in nested)
        elif isinstance(node, ast.ImportFrom):
            base = here[: len(here) - node.level + 1] if node.level else []
            origin = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            for alias in node.names:
                target = f"{origin}.{alias.name}" if is_ours(origin) else origin
                yield Import(target, node.lineno, node.level > 0, id(node) in nested)


def _runs_later(node: ast.AST) -> bool:
    if isinstance(node, ast.If):
        return isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING"
    return isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)


def is_ours(module: str) -> bool:
    return module == "packer" or module.startswith("packer.")


def layer_of(module: str) -> str:
    starts = (start for start in LAYERS if f"{module}.".startswith(f"{start}."))
    return LAYERS[next(starts)]


def violations(module: str, source: str, *, is_package: bool = False) -> list[str]:
    """What a file imports and may not, in words."""
    layer = layer_of(module)
    found = []
    for one in imports_of(module, source, is_package=is_package):
        where = f"{module}, line {one.line}: {one.module}"
        if not is_ours(one.module):
            if one.module.partition(".")[0] in NOT_FOR.get(layer, set()):
                found.append(f"{where} is not for {layer}")
            if one.module.partition(".")[0] in (*LEAVES, "train", "tests", "benchmarks"):
                found.append(f"{where} is nobody's top-level name once installed")
            continue
        target = layer_of(one.module)
        if target not in MAY_IMPORT[layer]:
            found.append(f"{where}: {layer} may not import {target}")
        if layer in (*LEAVES, "model") and not one.relative:
            found.append(f"{where}: inside {layer}, imports are relative")
        if target in ("train", "model") and layer == "commands" and not one.nested:
            found.append(f"{where}: train is imported inside the command that needs it")
        if layer == "decoder" and one.module.rpartition(".")[0] not in DECODER_NEEDS:
            found.append(f"{where}: the loader is made of the decoders and dequantize alone")
    return found


@pytest.mark.parametrize("package", FOLDERS)
def test_every_import_is_allowed(package: str) -> None:
    checked = 0
    for module, path in modules():
        if path.parent == ROOT / FOLDERS[package]:
            source = path.read_text("utf-8")
            assert violations(module, source, is_package=path.stem == "__init__") == []
            checked += 1
    assert checked > 0


def test_every_python_file_of_the_project_has_a_layer() -> None:
    """A new folder needs a line in FOLDERS, and in pyproject.toml, or it is not installed."""
    known = {ROOT / folder for folder in FOLDERS.values()} | {ROOT / "benchmarks"}
    top = [path for path in ROOT.iterdir() if path.is_dir() and (path / "__init__.py").exists()]
    assert set(top) <= known
    assert {path.parent for path in (ROOT / "packer").rglob("*.py")} <= known
    declared = (ROOT / "pyproject.toml").read_text("utf-8")
    assert all(f'"{package}" = "{folder}"' in declared for package, folder in FOLDERS.items())


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("packer.quantizers.clip", "from packer.budget import plan"),
        ("packer.quantizers.clip", "from packer.quantizers.formats import row_shape"),
        ("packer.quantizers.clip", "from ..budget.plan import Plan"),
        ("packer.quantizers.clip", "import packer"),
        ("packer.budget.plan", "import torch.nn"),
        ("packer.budget.plan", "def f():\n    from torch import Tensor"),
        ("packer.budget.plan", "from ..errors import PackerError"),
        ("packer.eval.score", "from packer.train.model import GPT"),
        ("packer.eval.score", "from eval import windows"),
        ("packer.train.model", "from .config import GPTConfig"),
        ("packer.train.layers", "from ..quantizers.quantize import quantize"),
        ("packer.fit", "from packer.train import loop"),
        ("packer.fit", "from packer import cli"),
        ("packer.fit", "from packer.commands.pack import pack"),
        ("packer.commands.eval", "from packer.train.model import GPT"),
        ("packer.commands.eval", "if torch:\n    from packer.train.model import GPT"),
        ("packer.fit", "if TYPE_CHECKING:\n    from packer.train.model import GPT"),
        ("packer.decoder", "from packer.entropy import varint"),
        ("packer.decoder", "from packer.quantizers.quantize import quantize"),
        ("packer.train.loop", "import tests"),
    ],
)
def test_a_forbidden_import_is_found(module: str, source: str) -> None:
    assert len(violations(module, source)) >= 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("packer.quantizers.clip", "import torch\nfrom .formats import row_shape"),
        ("packer.budget", "from .plan import Plan"),
        ("packer.fit", "from packer.budget.plan import Plan\nfrom packer import measuring"),
        ("packer.commands.eval", "def f():\n    from packer.train.model import GPT"),
        ("packer.commands.eval", "if TYPE_CHECKING:\n    from packer.train.model import GPT"),
        ("packer.cli", "from packer.commands.pack import pack"),
        ("packer.train.loop", "from packer.quantizers.choice import parse_choice"),
        ("packer.train.model", "from .layers import Block"),
        ("packer.decoder", "from packer.quantizers.dequantize import dequantize_scaled"),
    ],
)
def test_an_allowed_import_is_not(module: str, source: str) -> None:
    assert violations(module, source, is_package=module == "packer.budget") == []
