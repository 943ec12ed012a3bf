"""The code is clean under ruff, and under mypy's strict mode as it is installed."""

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
INSTALLED_FROM = ("packer", "quantizers", "budget", "eval", "train", "pyproject.toml", "README.md")


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
    """Checked as users get it: the folders under one import name, with py.typed."""
    source, installed = tmp_path / "source", tmp_path / "installed"
    source.mkdir()
    for name in INSTALLED_FROM:
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copy
        copy(ROOT / name, source / name)
    target = ("--target", str(installed), str(source))
    run("pip", "install", "-q", "--no-deps", "--no-build-isolation", *target, cwd=tmp_path)
    config = ("--config-file", str(source / "pyproject.toml"), "--cache-dir", str(tmp_path / "c"))
    run("mypy", *config, "-p", "packer", cwd=tmp_path, env={"MYPYPATH": str(installed), "PATH": ""})
