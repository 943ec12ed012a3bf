"""Imports obey the layers: train above packer, packer above three leaves that know nothing of ours.

Every file is parsed, never imported. The one table of what may import what is `MAY_IMPORT`.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {
    "packer": "packer",
    **{
        ".".join(one.parent.relative_to(ROOT).parts): one.parent.relative_to(ROOT).as_posix()
        for one in sorted(ROOT.glob("packer/**/__init__.py"))
        if one.parent != ROOT / "packer"
    },
    "packer.quantizers": "quantizers",
    "packer.budget": "budget",
    "packer.eval": "eval",
    "packer.train": "train",
}
# Rooms of packer/, lower ones knowing nothing of higher ones. What stands in no room is for all
# (errors, files, progress, ...), or above all of them.
ROOMS = (
    "packer.artifact",
    "packer.foreign",
    "packer.code",
    "packer.checkpoint",
    "packer.huggingface",
    "packer.evaluation",
    "packer.curvature",
    "packer.submission",
    "packer.shipping",
    "packer.rules",
    "packer.planning",
    "packer.size",
    "packer.tuning",
    "packer.packing",
    "packer.fix",
    "packer.reports",
    "packer.api",
    "packer.commands",
)
FOR_ALL = {"errors", "files", "printable", "progress", "threads", "devices"}
ABOVE_ALL = {"__init__", "__main__", "cli"}
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
    "packer.artifact.decoder": "decoder",
    "packer.artifact.rans_decoder": "decoder",
    "packer.artifact.reader": "decoder",
    "packer.artifact.step_decoder": "decoder",
    "packer.artifact.trellis_decoder": "decoder",
    "packer.artifact.stream_decoder": "decoder",
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
    "packer.artifact.rans_decoder",
    "packer.artifact.reader",
    "packer.quantizers.dequantize",
    "packer.quantizers.step_grid",
    "packer.quantizers.trellis_path",
    "packer.artifact.step_decoder",
    "packer.artifact.stream_decoder",
    "packer.artifact.trellis_decoder",
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


def room_of(module: str) -> str | None:
    """None for what stands beside the rooms."""
    rooms = (room for room in ROOMS if f"{module}.".startswith(f"{room}."))
    return next(rooms, None)


def upward(module: str, source: str, *, is_package: bool = False) -> list[str]:
    """Imports of higher rooms, or of what stands above them all; in functions and for types too."""
    own, found = room_of(module), []
    height = -1 if own is None else ROOMS.index(own)
    for one in imports_of(module, source, is_package=is_package):
        room = room_of(one.module)
        above = one.module.split(".")[1:2] and one.module.split(".")[1] in ABOVE_ALL
        if (room is not None and ROOMS.index(room) > height) or above:
            found.append(f"{module}, line {one.line}: {one.module} is higher")
    return found


def test_rooms_know_nothing_of_higher_ones() -> None:
    checked = 0
    for module, path in modules():
        stands = "__init__" if module == "packer" else module.split(".")[1]
        if path.is_relative_to(ROOT / "packer") and stands not in ABOVE_ALL:
            is_package = path.stem == "__init__"
            assert upward(module, path.read_text("utf-8"), is_package=is_package) == []
            checked += 1
    assert checked > 200


def test_what_stands_in_no_room_is_known() -> None:
    loose = {path.stem for path in (ROOT / "packer").glob("*.py")}
    assert loose == FOR_ALL | ABOVE_ALL | {"evaluation", "api"}
    assert len(loose) <= 11


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("packer.foreign.int8", "from packer.checkpoint.roles import Role"),
        ("packer.planning.plan", "def f():\n    from packer.packing.pack import Packed"),
        (
            "packer.curvature.file",
            "if TYPE_CHECKING:\n    from packer.planning.plan import PackPlan",
        ),
        ("packer.commands.plan", "from packer import cli"),
        ("packer.errors", "from packer.artifact.reader import Reader"),
    ],
)
def test_an_upward_import_is_found(module: str, source: str) -> None:
    assert upward(module, source)


def test_no_circle_of_imports() -> None:
    """Of all there is, benchmarks too, wherever in a file an import stands."""
    files = dict(modules())
    for path in (ROOT / "benchmarks").rglob("*.py"):
        parts = path.relative_to(ROOT).with_suffix("").parts
        files[".".join(parts).removesuffix(".__init__")] = path
    graph: dict[str, set[str]] = {}
    for module, path in files.items():
        is_package = path.stem == "__init__"
        named = imports_of(module, path.read_text("utf-8"), is_package=is_package)
        targets = {
            one.module if one.module in files else one.module.rpartition(".")[0] for one in named
        }
        graph[module] = (targets & files.keys()) - {module, "packer"}
    assert len(list(TopologicalSorter(graph).static_order())) == len(files)


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
        ("packer.packing.pack", "from packer.train import loop"),
        ("packer.packing.pack", "from packer import cli"),
        ("packer.packing.pack", "from packer.commands.pack import pack"),
        ("packer.commands.eval", "from packer.train.model import GPT"),
        ("packer.commands.eval", "if torch:\n    from packer.train.model import GPT"),
        ("packer.packing.pack", "if TYPE_CHECKING:\n    from packer.train.model import GPT"),
        ("packer.artifact.decoder", "from packer.artifact.ans_encoder import varint"),
        ("packer.artifact.decoder", "from packer.quantizers.quantize import quantize"),
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
        (
            "packer.packing.pack",
            "from packer.budget.plan import Plan\nfrom packer import measuring",
        ),
        ("packer.commands.eval", "def f():\n    from packer.train.model import GPT"),
        ("packer.commands.eval", "if TYPE_CHECKING:\n    from packer.train.model import GPT"),
        ("packer.cli", "from packer.commands.pack import pack"),
        ("packer.train.loop", "from packer.quantizers.choice import parse_choice"),
        ("packer.train.model", "from .layers import Block"),
        ("packer.artifact.decoder", "from packer.quantizers.dequantize import dequantize_scaled"),
    ],
)
def test_an_allowed_import_is_not(module: str, source: str) -> None:
    assert violations(module, source, is_package=module == "packer.budget") == []
