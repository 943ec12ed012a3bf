"""What README and docs name exists: commands and their options, files, modules, names to import."""

from __future__ import annotations

import ast
import importlib
import re
import textwrap
from pathlib import Path

import pytest
import torch

from packer.cli import main

ROOT = Path(__file__).resolve().parents[1]
TOP = ("README.md", "ARCHITECTURE.md", "CONTRIBUTING.md")
PAGES = (*TOP, *(f"docs/{page.name}" for page in sorted((ROOT / "docs").glob("*.md"))))
FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```$", flags=re.MULTILINE | re.DOTALL)
OPTION = re.compile(r"(?<![\w-])--[a-z][\w-]*")
OURS = "packer|quantizers|budget|eval|train|tests|benchmarks|docs"
USERS_FILES = {
    "train_gpt.py",
    "train_gpt_mlx.py",
    "train.py",
    "loader.py",
    "bundle.py",
    "packed.py",
    "train_packed.py",
    "calibrating.py",
}
OTHER_TOOLS = {"--cov"}  # of pytest


def code_of(text: str) -> list[str]:
    """Every line of shell or output, and every code span, of a page of Markdown."""
    blocks = [body for language, body in FENCE.findall(text) if language in ("", "sh")]
    prose = FENCE.sub("", text)
    blocks += re.findall(r"(?:^    .*\n)+", prose, flags=re.MULTILINE)
    lines = [line for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    return lines + [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]


def missing(text: str) -> list[str]:
    """What the code in a page names and this checkout does not have."""
    code = code_of(text)
    return [
        fault for piece in code for fault in (*_commands(piece), *_modules(piece), *_files(piece))
    ]


def _commands(piece: str) -> list[str]:
    calls = re.findall(r"(?<![\w./])packer ([a-z]+)\b([^|;&>]*)", piece)
    faults = [f"packer {name}" for name, _ in calls if name not in main.commands]
    for name, rest in calls:
        if name in main.commands:
            known = _options(name)
            faults += [
                f"packer {name} {word}" for word in OPTION.findall(rest) if word not in known
            ]
    if piece.startswith("--"):
        known = {word for name in main.commands for word in _options(name)} | OTHER_TOOLS
        known |= _options_in(ROOT / "benchmarks")
        faults += [word for word in OPTION.findall(piece) if word not in known]
    return faults


def _options(command: str) -> set[str]:
    parameters = main.commands[command].params
    return {name for one in parameters for name in (*one.opts, *one.secondary_opts)} | {"--help"}


def _modules(piece: str) -> list[str]:
    faults = []
    for name, rest in re.findall(r"python -m (benchmarks[\w.]*)([^|;&>]*)", piece):
        path = ROOT / name.replace(".", "/")
        source = path if path.is_dir() else path.with_suffix(".py")
        if not source.exists():
            faults.append(f"python -m {name}")
            continue
        known = _options_in(source)
        faults += [f"{name} {word}" for word in OPTION.findall(rest) if word not in known]
    return faults


def _options_in(source: Path) -> set[str]:
    """Options spelled as strings in a file, or in all files of a folder."""
    files = sorted(source.rglob("*.py")) if source.is_dir() else [source]
    return {word for file in files for word in re.findall(r'"(--[\w-]+)"', file.read_text("utf-8"))}


def _files(piece: str) -> list[str]:
    paths = re.findall(rf"(?<![\w/.-])(?:{OURS})/[\w./-]*", piece)
    faults = [path for path in paths if not (ROOT / path).exists()]
    names = set(re.findall(r"(?<![\w/.-])\w+\.py\b(?!:)", piece)) - USERS_FILES
    sources = [folder for folder in OURS.split("|") if folder != "docs"]
    return faults + [
        name
        for name in sorted(names)
        if not any(next((ROOT / folder).rglob(name), None) for folder in sources)
    ]


@pytest.mark.parametrize("page", PAGES)
def test_every_command_option_file_and_module_named_exists(page: str) -> None:
    text = (ROOT / page).read_text("utf-8")
    assert code_of(text)
    assert missing(text) == []


def test_what_does_not_exist_is_found() -> None:
    text = (
        "`packer plan --cap 1 --nonsense` and `packer pock` but `packer pack --cap 1`, `--lossy`\n"
        "`packer/none.py`, `nowhere.py`, `python -m benchmarks.none`,\n"
        "`python -m benchmarks.account --cases 3 --casts 1`\n\n"
        "```sh\npacker demo \\\n  --no-such\n```\n\n    packer eval m.pt --bits\n"
    )
    assert sorted(missing(text)) == [
        "--lossy",
        "benchmarks.account --casts",
        "nowhere.py",
        "packer demo --no-such",
        "packer eval --bits",
        "packer plan --nonsense",
        "packer pock",
        "packer/none.py",
        "python -m benchmarks.none",
    ]


@pytest.mark.parametrize("page", PAGES)
def test_python_shown_parses_and_imports_names_that_exist(page: str) -> None:
    for language, body in FENCE.findall((ROOT / page).read_text("utf-8")):
        tree = ast.parse(textwrap.dedent(body)) if language == "python" else ast.Module([], [])
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("packer"):
                module = importlib.import_module(node.module or "")
                assert all(hasattr(module, alias.name) for alias in node.names)


def test_the_blocks_of_the_api_page_run_in_their_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = ROOT / "docs" / "api.md"
    script = [body for language, body in FENCE.findall(page.read_text("utf-8")) if language]
    assert len(script) > 5
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {"__name__": "api_page"}
    with torch.random.fork_rng():
        for block in script:
            exec(compile(block, str(page), "exec"), names)
    assert (tmp_path / "model.pack").stat().st_size <= 12_000
