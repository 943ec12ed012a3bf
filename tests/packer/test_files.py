"""Replacing files: all or nothing, whatever goes wrong in between."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from packer.errors import OutputError, PlanError
from packer.files import describe_json, is_json, read_json, replacing, write_bytes, write_json


@pytest.mark.parametrize("failure", [ValueError, KeyboardInterrupt, SystemExit, MemoryError])
@pytest.mark.parametrize("before", [b"what stood there", None])
def test_a_failure_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, failure: type[BaseException], before: bytes | None
) -> None:
    target = tmp_path / "out"
    if before is not None:
        target.write_bytes(before)
    with pytest.raises(failure), replacing(target) as temporary:
        temporary.write_bytes(b"half of the new")
        raise failure
    assert list(tmp_path.iterdir()) == ([] if before is None else [target])
    assert before is None or target.read_bytes() == before


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_a_disk_that_is_full_at_the_last_moment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def full(_: int) -> None:
        raise OSError(number, os.strerror(number))

    target = tmp_path / "out"
    target.write_bytes(b"what stood there")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputError, match="the disk is full; what stood there is untouched"):
        write_bytes(target, b"new")
    assert target.read_bytes() == b"what stood there"
    assert list(tmp_path.iterdir()) == [target]


def test_the_new_file_is_synced_before_it_takes_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[str] = []
    sync, replace = os.fsync, Path.replace

    def syncing(descriptor: int) -> None:
        order.append(f"fsync {os.fstat(descriptor).st_size}")
        sync(descriptor)

    def replacing_with(self: Path, target: Path) -> Path:
        order.append("replace")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", syncing)
    monkeypatch.setattr(Path, "replace", replacing_with)
    write_bytes(tmp_path / "out", b"twelve bytes")
    assert order == ["fsync 12", "replace"]


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o755])
def test_the_mode_of_a_replaced_file_is_kept(tmp_path: Path, mode: int) -> None:
    target = tmp_path / "out"
    target.write_bytes(b"old")
    target.chmod(mode)
    write_bytes(target, b"new")
    assert target.read_bytes() == b"new"
    assert stat.S_IMODE(target.stat().st_mode) == mode


def test_a_new_file_has_the_mode_of_any_new_file(tmp_path: Path) -> None:
    plain = tmp_path / "plain"
    plain.touch()
    write_bytes(tmp_path / "out", b"new")
    assert (tmp_path / "out").stat().st_mode == plain.stat().st_mode


def test_a_link_stays_and_the_file_behind_it_is_replaced(tmp_path: Path) -> None:
    real, link = tmp_path / "real", tmp_path / "link"
    real.write_bytes(b"old")
    link.symlink_to(real)
    write_bytes(link, b"new")
    assert link.is_symlink()
    assert real.read_bytes() == b"new"


@pytest.mark.parametrize("kind", ["folder", "pipe", "link to a pipe"])
def test_what_is_no_file_is_never_replaced(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "out"
    if kind == "folder":
        target.mkdir()
    elif kind == "pipe":
        os.mkfifo(target)
    else:
        os.mkfifo(tmp_path / "pipe")
        target.symlink_to("pipe")
    before = sorted(tmp_path.iterdir()), target.stat().st_mode
    with pytest.raises(OutputError, match=r"out is a (folder|device or a pipe)"):
        write_bytes(target, b"new")
    assert (sorted(tmp_path.iterdir()), target.stat().st_mode) == before


def test_each_place_that_cannot_be_written_has_its_own_words(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    cases = {
        tmp_path / "missing" / "out": f"the folder {tmp_path / 'missing'} does not exist",
        tmp_path / "file" / "out": f"{tmp_path / 'file'} is a file, not a folder",
        tmp_path / ("x" * 300): "the name is too long",
    }
    for target, words in cases.items():
        with pytest.raises(OutputError) as refusal:
            write_bytes(target, b"new")
        assert str(refusal.value).startswith(f"{target}: {words}; nothing was written.")


def test_a_folder_where_nobody_may_write() -> None:
    """Root may write where the mode forbids it, but not into the tables of the kernel."""
    if not Path("/proc/self").is_dir():
        pytest.skip("no folder here refuses root")
    with pytest.raises(OutputError, match="writing there is not allowed; nothing was written"):
        write_bytes("/proc/out", b"new")


def test_a_name_as_long_as_the_system_allows_can_be_written(tmp_path: Path) -> None:
    target = tmp_path / ("é" * 127)
    write_bytes(target, b"new")
    assert target.read_bytes() == b"new"


def test_json_comes_back_as_written(tmp_path: Path) -> None:
    value = {"kind": "x", "rows": [[1, "é", None], {"a": 0.1}], "none": [], "of": {"b": [1, 2]}}
    write_json(tmp_path / "v.json", value)
    assert read_json(tmp_path / "v.json") == value
    assert len(describe_json(value).splitlines()) == 9  # a line for every row of a list
    assert is_json(tmp_path / "v.json")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is not a JSON file"),
        (b"{", "is not a JSON file"),
        (b"\xff\xfe{", "is not a JSON file"),
        (b"[" * 100_000, "is not a JSON file"),
        (b'{"a": ' + b"9" * 5000 + b"}", "is not a JSON file"),
        (b"[1]", "holds a list where an object belongs"),
    ],
)
def test_other_content_is_refused_with_what_to_do(
    tmp_path: Path, content: bytes, words: str
) -> None:
    path = tmp_path / "v.json"
    path.write_bytes(content)
    with pytest.raises(PlanError) as refusal:
        read_json(path)
    assert str(refusal.value).startswith(f"{path} {words}")
    assert "packer plan or measure wrote" in str(refusal.value)


def test_pipes_are_not_asked_whether_they_hold_json(tmp_path: Path) -> None:
    """Reading one would wait for a writer that never comes."""
    os.mkfifo(tmp_path / "pipe")
    assert not is_json(tmp_path / "pipe")
    assert not is_json(tmp_path)
    assert not is_json(tmp_path / "missing")
