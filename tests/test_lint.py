"""The code is clean under ruff, under mypy's strict mode as it is installed, and not too long."""

import ast
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ("packer", "quantizers", "budget", "eval", "train")
MOST_LINES = {"a file": 400, "a function": 60}


def run(*command: str, cwd: Path, env: dict[str, str] | None = None) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=cwd, env=env, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_ruff_finds_nothing():
    run("ruff", "check", "--no-cache", ".", cwd=ROOT)


def test_every_file_is_formatted():
    run("ruff", "format", "--no-cache", "--check", ".", cwd=ROOT)


def test_types_of_the_installed_package(tmp_path):
    """Checked as users get it: the folders under one import name; that a wheel lays them out so,
    with py.typed, tests/packer/test_processes.py shows.
    """
    for name in PACKAGES:
        inside = "packer" if name == "packer" else f"packer/{name}"
        shutil.copytree(ROOT / name, tmp_path / inside, dirs_exist_ok=True)
    config = ("--config-file", str(ROOT / "pyproject.toml"), "--cache-dir", str(tmp_path / "c"))
    run("mypy", *config, "-p", "packer", cwd=tmp_path, env={"MYPYPATH": str(tmp_path), "PATH": ""})


def too_long(path: Path) -> list[str]:
    """The file and its functions that have more lines than are read at one go."""
    text = path.read_text("utf-8")
    lengths = [("a file", path.name, len(text.splitlines()))]
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            lengths.append(("a function", node.name, node.end_lineno - node.lineno + 1))
    return [
        f"{path}: {name} has {lines} lines, {kind} at most {MOST_LINES[kind]}"
        for kind, name, lines in lengths
        if lines > MOST_LINES[kind]
    ]


def test_no_file_and_no_function_is_too_long(tmp_path):
    files = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py"))]
    assert [said for path in files for said in too_long(path)] == [] and len(files) > 150
    long = tmp_path / "long.py"
    long.write_text("def f():\n" + "    x = 1\n" * 60 + "y = 1\n" * 340)
    assert [said.split(" has ")[1] for said in too_long(long)] == [
        "401 lines, a file at most 400",
        "61 lines, a function at most 60",
    ]
