"""Commands where there is no room, no right to write, or not enough memory."""

from __future__ import annotations

import contextlib
import functools
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.faults.kills import start
from packer.cli import main

ROOM = 2048  # bytes that a file may have, of a disk that is full: nothing here fits in so few
# Beyond what is in use, where a tensor of 16 MB must be worked on.
MEMORY = tuple(size << 20 for size in (1, 24, 48, 96))
OUT = "{out}"
ALONE = "--no-calibration"
WRITERS: dict[str, tuple[str, ...]] = {
    "measure": ("measure", "model.pt", ALONE, "-o", "{out}/c.json"),
    "plan": ("plan", "model.pt", ALONE, "--cap", "14KB", "-o", "{out}/p.json"),
    "pack": ("pack", "model.pt", "--plan", "plan.json", "-o", "{out}/a.pack"),
    "loader": (
        *("pack", "model.pt", ALONE, "--cap", "40KB"),
        *("-o", "{out}/a.pack", "--loader", "{out}/l.py"),
    ),
    "unpack": ("unpack", "big.ptz", "-o", "{out}/w.safetensors"),
    "unpack to .pt": ("unpack", "big.ptz", "-o", "{out}/w.pt"),
    "fix": ("fix", "big.ptz", "--cap", "12KB", "-o", "{out}/f.pack"),
    "fix a folder": ("fix", "submission", "--cap", "20KB", "-o", "{out}/fixed"),
    "calibrate": (
        *("calibrate", "model.pt", "--data", "train.txt", "--tokenizer", "bpe.model"),
        *("--tokens", "512", "--window", "64", "-o", "{out}/curvature.safetensors"),
    ),
    "train": ("train", "run.json", "-o", "{out}/run"),
    "data": (
        "data",
        "train.txt",
        "--vocab-size",
        "300",
        "--valid-fraction",
        "0",
        "-o",
        "{out}/data",
    ),
    "plot": ("report", "plan.json", "--plot", "{out}/r.png"),
}
READERS: dict[str, tuple[str, ...]] = {
    "measure": ("measure", "large.pt", ALONE, "-o", "{out}/c.json"),
    "pack": ("pack", "large.pt", ALONE, "--cap", "10MB", "-o", "{out}/a.pack"),
    "inspect": ("inspect", "large.pt"),
    "unpack": ("unpack", "large.pack", "-o", "{out}/w.pt"),
    "verify": ("verify", "large.pack"),
}


@dataclass(frozen=True)
class Ended:
    """What a command did: its exit code, or the signal that killed it, negative; and said."""

    code: int
    stderr: str


@dataclass(frozen=True)
class Fault:
    """One command under one condition. problem: None where it ended as it must."""

    condition: str
    command: str
    message: str
    problem: str | None


def inputs(folder: Path) -> None:
    """What the commands need beyond the scene of the kills."""
    from packer.quantizers.choice import parse_choice
    from packer.quantizers.quantize import quantize

    from packer.artifact.encoder import Artifact

    submission = folder / "submission"
    submission.mkdir()
    shutil.copy(folder / "big.ptz", submission / "final_model.int8.ptz")
    (submission / "train_gpt.py").write_text("import torch\n")
    weight = torch.randn(2048, 2048, generator=torch.Generator().manual_seed(0))
    torch.save({"w": weight, "v": weight.clone()}, folder / "large.pt")
    packed = Artifact({"w": quantize(weight, parse_choice("int6.row"))})
    (folder / "large.pack").write_bytes(packed.to_bytes())


def little_memory(folder: Path) -> Iterator[Fault]:
    """The folder is the scene's; whatever a command leaves behind is removed."""
    for size in MEMORY:
        condition = f"{size >> 20} MB of memory more"
        yield from _many(condition, folder, READERS, functools.partial(_little_memory, size))


def every_other_condition(folder: Path) -> Iterator[Fault]:
    yield from _many("no room in a file", folder, WRITERS, _little_room)
    with small_disk(folder) as disk:
        if disk is not None:
            yield from _many("a full disk", folder, WRITERS, None, disk)
    with locked_folder(folder) as locked:
        if locked is not None:
            yield from _many("a folder where nobody may write", folder, WRITERS, None, locked)
    yield _changed(folder)
    yield two_at_once(folder)


def _many(
    condition: str,
    folder: Path,
    commands: dict[str, tuple[str, ...]],
    limit: Callable[[], None] | None,
    out: Path | None = None,
) -> Iterator[Fault]:
    for name, words in commands.items():
        place = out or folder / "out"
        place.mkdir(exist_ok=True)
        before = _listed(folder)
        ended = run(folder, tuple(word.replace(OUT, str(place)) for word in words), limit)
        left = _listed(folder) - before
        problem = _problem(ended, left, name, must_fail=commands is WRITERS)
        yield Fault(condition, name, ended.stderr.strip(), problem)
        if out is None:
            shutil.rmtree(place)


def _problem(ended: Ended, left: set[str], name: str, must_fail: bool = True) -> str | None:
    lines = ended.stderr.strip().splitlines()
    said = [line for line in lines if line.startswith("Error: ")]
    if ended.code == 0 and not must_fail:
        return None
    if ended.code != 1:
        return f"it ended with {ended.code}, not 1: {lines[-3:]}"
    if len(said) != 1 or lines[-1] != said[0] or "Traceback" in ended.stderr:
        return f"it should end in one line of error: {lines[-3:]}"
    # A run of training or of data that was begun keeps what it had finished.
    kept = {one for one in left if name not in ("train", "data") or one.endswith(".tmp")}
    return f"it left {sorted(kept)}" if kept else None


def run(folder: Path, arguments: tuple[str, ...], limit: Callable[[], None] | None = None) -> Ended:
    """The command in a copy of this process, under a limit."""
    said = folder.parent / f"{folder.name}.stderr"
    with said.open("w+b") as file:
        child = os.fork()
        if not child:
            _become(folder, arguments, limit, file.fileno())
        _, status = os.waitpid(child, 0)
        file.seek(0)
        text = file.read().decode(errors="replace")
    said.unlink()
    return Ended(os.waitstatus_to_exitcode(status), text)


def _become(
    folder: Path, arguments: tuple[str, ...], limit: Callable[[], None] | None, stderr: int
) -> None:
    """Never comes back."""
    os.chdir(folder)
    os.dup2(os.open(os.devnull, os.O_RDWR), 1)
    os.dup2(stderr, 2)
    sys.stderr = os.fdopen(2, "w", closefd=False)
    code = 1
    try:
        if limit is not None:
            limit()
        main(list(arguments), prog_name="packer")
    except SystemExit as ended:
        code = int(ended.code or 0)
    except BaseException:
        import traceback

        traceback.print_exc()
        code = 70
    sys.stderr.flush()
    os._exit(code)


def _little_room() -> None:
    resource.setrlimit(resource.RLIMIT_FSIZE, (ROOM, ROOM))


def _little_memory(size: int) -> None:
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + size
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


@contextlib.contextmanager
def small_disk(folder: Path) -> Iterator[Path | None]:
    """A file system of 8 KB, full but for one page; None where mounting is not permitted."""
    with _mounted(folder / "disk", "size=8k") as disk:
        if disk is not None:
            (disk / "ballast").write_bytes(bytes(4096))
        yield disk


@contextlib.contextmanager
def locked_folder(folder: Path) -> Iterator[Path | None]:
    """A folder that refuses every writer; root is refused by a file system alone."""
    if os.getuid() == 0:
        with _mounted(folder / "locked", "ro") as locked:
            yield locked
        return
    (folder / "locked").mkdir(mode=0o555)
    yield folder / "locked"


@contextlib.contextmanager
def _mounted(place: Path, options: str) -> Iterator[Path | None]:
    place.mkdir()
    mount = shutil.which("mount")
    command = [str(mount), "-t", "tmpfs", "-o", options, "tmpfs", str(place)]
    if mount is None or subprocess.run(command, capture_output=True, check=False).returncode:
        yield None
        return
    try:
        yield place
    finally:
        subprocess.run(["umount", str(place)], check=True)


def _changed(folder: Path) -> Fault:
    """A checkpoint that is another one when it is packed."""
    kept = (folder / "model.pt").read_bytes()
    weights = torch.load(folder / "model.pt", weights_only=True)
    weights["tok_emb.weight"][0, 0] += 1
    torch.save(weights, folder / "model.pt")
    before = _listed(folder)
    ended = run(folder, ("pack", "model.pt", "--plan", "plan.json", "-o", "changed.pack"))
    problem = _problem(ended, _listed(folder) - before, "pack")
    (folder / "model.pt").write_bytes(kept)
    return Fault("another checkpoint than the planned", "pack", ended.stderr.strip(), problem)


def two_at_once(folder: Path) -> Fault:
    """Both end well, and the file is whole: what either of them alone writes."""
    (folder / "out").mkdir(exist_ok=True)
    words = ("pack", "model.pt", "--plan", "plan.json", "-o", "out/a.pack")
    run(folder, words)
    alone = (folder / "out" / "a.pack").read_bytes()
    (folder / "out" / "a.pack").unlink()
    children = [start(folder, words) for _ in range(2)]
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    left = sorted(path.name for path in (folder / "out").iterdir())
    same = (folder / "out" / "a.pack").read_bytes() == alone
    good = codes == [0, 0] and left == ["a.pack"] and same
    problem = None if good else f"exit codes {codes}, files {left}, the same bytes: {same}"
    shutil.rmtree(folder / "out")
    return Fault("two at once", "pack", "", problem)


def _listed(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
