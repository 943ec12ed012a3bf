"""Every command as a process, in a folder whose files have the names of our packages."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from packer.errors import STOPPED

Start = Callable[..., subprocess.Popen[str]]

CAP = 12_000
ROOT = Path(__file__).resolve().parents[2]
LEAVES = ("quantizers", "budget", "eval", "train")
PACKAGES = (
    ("packer", ROOT / "packer"),
    *(
        (one.parent.relative_to(ROOT).as_posix(), one.parent)
        for one in ROOT.glob("packer/*/**/__init__.py")
    ),
    *((f"packer/{name}", ROOT / name) for name in LEAVES),
)
HOSTILE = (*LEAVES, "tests", "benchmarks", "errors", "files")
TWO_LINES = """
from packer import plan, pack
packed = pack("model.pt", plan("model.pt", {cap}), out="script.pack")
print(packed.account)
"""


class Shell:
    """Runs commands in a folder with a given way to start `packer`."""

    def __init__(self, folder: Path, start: list[str], paths: list[Path]) -> None:
        self.folder, self.start = folder, start
        self.environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}
        self.environment["OMP_NUM_THREADS"] = "1"

    def run(self, command: list[str], code: int = 0) -> str:
        ended = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True
        )
        assert ended.returncode == code, ended.stderr
        assert "Traceback" not in ended.stderr
        return ended.stderr if code else ended.stdout

    def packer(self, *arguments: object, code: int = 0) -> str:
        return self.run([*self.start, *map(str, arguments)], code)

    def python(self, *arguments: str) -> str:
        return self.run([sys.executable, *arguments])


@pytest.fixture
def hostile(tmp_path: Path, made: Path) -> Path:
    """A user's folder: a checkpoint, and modules that must not be ours."""
    folder = tmp_path / "work"
    folder.mkdir()
    for name in HOSTILE:
        (folder / f"{name}.py").write_text(f"raise RuntimeError('{name}.py was imported')\n")
    shutil.copy(made / "model.pt", folder)
    return folder


EVERY_COMMAND = """
import sys
from packer.cli import main
for command in sys.argv[1:]:
    print(command, flush=True)
    try:
        main(command.split(), prog_name="packer")
    except SystemExit as ended:
        assert not ended.code, command
"""


def check_every_command(shell: Shell) -> None:
    """From checkpoint to artifact and back: where torch is needed in one process, for its import
    takes longer than the work; plans and refusals in one each.
    """
    packer, folder = shell.packer, shell.folder
    assert "attention-k" in packer("inspect", "model.pt")
    packer("measure", "model.pt", "-o", "candidates.json")
    plan = ("plan", "candidates.json", "--cap", CAP, "--code", "train.py")
    value = json.loads(packer(*plan, "-o", "plan.json", "--json"))
    assert value["unused_bytes"] >= 0 and value["code_bytes"] > 0
    commands = (
        "pack model.pt --plan plan.json -o model.pack",
        "verify model.pack --against model.pt",
        "report model.pack --json",
        "unpack model.pack -o weights.safetensors",
        "diff plan.json model.pack",
    )
    said = shell.python("-c", EVERY_COMMAND, *commands)
    at = [said.index(f"{command}\n") for command in commands]
    _, verified, reported, _, compared = map(said.__getitem__, map(slice, at, [*at[1:], None]))
    size = (folder / "model.pack").stat().st_size
    assert size + value["code_bytes"] == value["total_bytes"] <= CAP
    assert "checksum right" in verified
    assert json.loads(reported.partition("\n")[2])["artifact_bytes"] == size
    assert "0 tensors differ" in compared
    assert "1,000 bytes" in packer("plan", "candidates.json", "--cap", "1KB", code=1)
    assert "Usage: " in packer("plan", "candidates.json", code=2)


def check_scripts(shell: Shell, package: Path) -> None:
    (shell.folder / "script.py").write_text(TWO_LINES.format(cap=CAP))
    assert f"of {CAP:,}, " in shell.python("script.py")
    assert (shell.folder / "script.pack").stat().st_size <= CAP
    where = "import packer, packer.budget.plan as p; print(packer.__file__); print(p.__file__)"
    for file in shell.python("-c", where).splitlines():
        assert Path(file).is_relative_to(package)


def test_every_command_as_installed(hostile: Path) -> None:
    script = Path(sys.executable).with_name("packer")
    if not script.is_file():
        pytest.skip("the package is not installed in this environment")
    shell = Shell(hostile, [str(script)], [])
    check_every_command(shell)
    check_scripts(shell, ROOT)


def test_a_wheel_of_the_source_distribution_holds_everything(hostile: Path, tmp_path: Path) -> None:
    target = install_wheel(tmp_path)
    assert {path.name for path in (target / "bin").iterdir()} == {"packer", "bytecap"}
    installed = [path.relative_to(target) for path in target.rglob("*.py")]
    ours = [Path(name) / path.name for name, folder in PACKAGES for path in folder.glob("*.py")]
    assert sorted(installed) == sorted(ours)
    assert (target / "packer" / "py.typed").is_file()
    shell = Shell(hostile, [sys.executable, "-m", "packer"], [target])
    shell.packer("plan", "model.pt", "--cap", CAP, "-o", "plan.json")
    shell.packer("pack", "model.pt", "--plan", "plan.json", "-o", "model.pack")
    assert (hostile / "model.pack").stat().st_size <= CAP
    check_scripts(shell, target)
    for script in ("packer", "bytecap"):
        assert "A checkpoint to an artifact" in shell.run([str(target / "bin" / script), "--help"])


def install_wheel(folder: Path) -> Path:
    """A folder with the package: a wheel, built from a source distribution, which is built from a
    copy, for a build leaves traces beside its sources.
    """
    pytest.importorskip("setuptools")
    source, target = folder / "source", folder / "target"
    source.mkdir()
    (source / "README.md").write_text("what a package index would show")
    for name in ("pyproject.toml", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, source)
    for _, origin in PACKAGES:
        shutil.copytree(origin, source / origin.relative_to(ROOT), dirs_exist_ok=True)
    shell = Shell(folder, [], [])
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    offline = ["--no-deps", "--no-index"]
    build = "from setuptools import build_meta; print(build_meta.build_sdist('..'))"
    named = Shell(source, [], []).python("-c", build).splitlines()[-1]
    assert named.startswith("bytecap-") and named.endswith(".tar.gz")
    wheel_of = [*pip, "wheel", *offline, "--no-build-isolation", "-w", "wheels"]
    shell.run([*wheel_of, f"./{named}"])
    (wheel,) = (folder / "wheels").iterdir()
    assert wheel.name.startswith("bytecap-")
    shell.run([*pip, "install", *offline, "--target", str(target), str(wheel)])
    return target


def test_replanning_needs_no_torch(made: Path, tmp_path: Path) -> None:
    """So that another cap takes well under a second."""
    program = (
        "import sys; from packer.cli import main\n"
        f"main(['plan', {str(made / 'candidates.json')!r}, '--cap', '{CAP}', '-o', 'plan.json'],"
        " standalone_mode=False)\n"
        "print(sorted({'torch', 'matplotlib', 'scipy', 'safetensors'} & set(sys.modules)))"
    )
    assert Shell(tmp_path, [], []).python("-c", program).splitlines()[-1] == "[]"
    assert (tmp_path / "plan.json").read_bytes() == (made / "plan.json").read_bytes()


@pytest.mark.parametrize("options", ["", "--json"])
def test_a_reader_that_stops_early_gets_no_traceback(made: Path, options: str) -> None:
    command = f"{sys.executable} -m packer plan candidates.json --cap {CAP} {options} | true"
    ended = subprocess.run(command, shell=True, cwd=made, capture_output=True, text=True)
    assert ended.stderr == ""


def test_stopped_in_the_middle(tmp_path: Path, start_process: Start) -> None:
    """Ctrl-C while it measures: the old output is as it was, and nothing else appears."""
    shared = torch.randn(3_000, 600)  # seconds of measuring, however late the signal comes
    torch.save({"a.weight": shared, "b.weight": shared, "c.weight": shared * 2}, tmp_path / "m.pt")
    (tmp_path / "out.pack").write_bytes(b"what stood there")
    pack = ("pack", "m.pt", "--cap", "1MB", "-o", "out.pack")
    process = start_process([sys.executable, "-m", "packer", *pack], cwd=tmp_path)
    assert process.stderr is not None
    first = process.stderr.readline()  # said once the checkpoint is read
    assert first.startswith("note: tied")
    process.send_signal(signal.SIGINT)
    _, rest = process.communicate(timeout=120)
    assert process.returncode == 1
    assert rest.strip() == f"Error: {STOPPED}"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.pt", "out.pack"]
    assert (tmp_path / "out.pack").read_bytes() == b"what stood there"
