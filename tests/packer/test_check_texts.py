"""`packer check` on texts as other systems write them, and on folders that hold odd files."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from packer.code import texts
from packer.code.texts import decode_text, read_text
from packer.rules import Finding, check
from packer.submission import files
from packer.submission.folder import Submission, read_submission

Run = Callable[..., Result]
CODE = "import torch\n" + "#" * 30_000 + "\n"
LOG = f"""seed:7
step:5000/20000 val_loss:2.0100 val_bpb:1.1880 train_time:598000ms step_avg:119.6ms
Code size: {len(CODE)} bytes
Serialized model int6+lzma: 16000100 bytes
Total submission size int6+lzma: {16_000_100 + len(CODE)} bytes
final_int6_roundtrip_exact val_loss:2.01000000 val_bpb:1.18750000 eval_time:61000ms
"""
ENCODINGS = ("utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-be", "latin-1")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    inside = tmp_path / "submission"
    inside.mkdir()
    (inside / "train_gpt.py").write_text(CODE)
    (inside / "submission.json").write_text(json.dumps({"val_bpb": 1.1875}))
    (inside / "README.md").write_text("1.1875 bpb")
    return inside


def findings(submission: Submission) -> dict[str, Finding]:
    return {finding.rule: finding for finding in check(submission)}


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_log_is_read_in_every_encoding(folder: Path, encoding: str) -> None:
    text = LOG.replace("\n", "\r\n") + "caf\xe9\r\n"
    (folder / "run.out").write_bytes(text.encode(encoding))
    submission = read_submission(folder)
    cap = findings(submission)["cap"]
    assert cap.status.value == "fail" and f"OVER by {100 + len(CODE):,}" in cap.verdict
    noted = any(note.startswith("run.out: is read as ") for note in submission.notes)
    assert noted is (encoding != "utf-8-sig")


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_claims_and_readme_are_read_in_every_encoding(folder: Path, encoding: str) -> None:
    claims = json.dumps({"val_bpb": 1.1875, "author": "Jos\xe9"}, ensure_ascii=False)
    (folder / "submission.json").write_bytes(claims.encode(encoding))
    (folder / "README.md").write_bytes("caf\xe9 of 1.1875 bpb".encode(encoding))
    submission = read_submission(folder)
    assert submission.claims is not None and submission.claims.bpb == 1.1875
    assert findings(submission)["json"].status.value == "pass"
    assert submission.readme is not None and "1.1875" in submission.readme


def test_a_log_with_holes_of_nul_bytes_is_read(folder: Path) -> None:
    first, last = LOG.encode().split(b"Code size")
    (folder / "train.log").write_bytes(first + bytes(9000) + b"\nCode size" + last)
    assert findings(read_submission(folder))["cap"].status.value == "fail"


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (bytes(range(256)) * 20, "is no text in UTF-8, UTF-16, UTF-32 or Latin-1"),
        (bytes(5000), "is empty"),
        (b"hello\n", "has no line of a training log"),
    ],
)
def test_a_log_that_says_nothing_is_named(folder: Path, content: bytes, why: str) -> None:
    (folder / "train_seed3.log").write_bytes(content)
    seeds = findings(read_submission(folder))["seeds"]
    assert seeds.status.value == "unknown" and f"train_seed3.log {why}" in seeds.verdict


def test_what_is_no_plain_file_is_named_and_not_followed(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "outside.log").write_text(LOG)
    (folder / "a.log").symlink_to(tmp_path / "outside.log")
    (folder / "b.log").mkdir()
    (folder / "c.log.gz").write_bytes(b"\x1f\x8b\x08")
    submission = read_submission(folder)
    assert submission.logs == ()
    said = "\n".join(submission.notes)
    assert all(part in said for part in ("a.log: a link", "b.log: a folder", "c.log.gz is compr"))


def test_of_a_long_log_both_ends_are_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    start, end = LOG.split("Code size")
    middle = "step:1/20000 train_loss:3.0 train_time:5ms step_avg:1.0ms\n" * 60
    for encoding in ("utf-8", "utf-16", "utf-32-be"):
        (folder / "train.log").write_bytes(f"{start}{middle}Code size{end}".encode(encoding))
        whole = (folder / "train.log").stat().st_size
        monkeypatch.setattr(files, "read_text", lambda path: read_text(path, 1024, 2048))
        monkeypatch.setattr(files, "HEAD_BYTES", 1024)
        monkeypatch.setattr(files, "TAIL_BYTES", 2048)
        submission = read_submission(folder)
        assert submission.logs[0].seed == 7 and submission.logs[0].model_bytes == 16_000_100
        assert any(f"is {whole:,} bytes; only the first 1,024" in n for n in submission.notes)
    assert texts.HEAD_BYTES + texts.TAIL_BYTES <= 2**24


def test_of_very_many_logs_the_first_are_read(folder: Path) -> None:
    for number in range(files.MAX_LOGS + 50):
        (folder / f"log{number:04}.txt").write_text("step:1/2 train_time:5ms\n")
    submission = read_submission(folder)
    assert len(submission.logs) == files.MAX_LOGS
    assert any(f"the first {files.MAX_LOGS} are read" in note for note in submission.notes)


@pytest.mark.skipif(os.name == "nt", reason="such names are not allowed there")
def test_names_do_not_move_the_cursor(folder: Path, run: Run) -> None:
    (folder / "a\x1b[2J\nb.log").write_text(LOG)
    (folder / "c\x07.log").write_bytes(b"\0")
    result = run("check", folder)
    assert "a\\x1b[2J\\nb.log" in result.output and "\x1b" not in result.output
    assert "c\\x07.log is empty" in result.stderr and "\x07" not in result.output


def test_code_that_python_cannot_decode_is_named(folder: Path) -> None:
    (folder / "train_gpt.py").write_bytes(CODE.encode("utf-16"))
    finding = findings(read_submission(folder))["code-files"]
    assert finding.status.value == "fail" and "utf-16" in finding.verdict
    (folder / "train_gpt.py").write_bytes(b"# -*- coding: latin-1 -*-\nx = '\xe9'\n")
    assert findings(read_submission(folder))["code-files"].status.value == "pass"


def test_bytes_that_are_no_text_at_all_are_told() -> None:
    assert decode_text(b"\x01\x02\x03\x04" * 99).is_binary
    assert not decode_text(b"\x1b[1mbold\x1b[0m\n").is_binary
