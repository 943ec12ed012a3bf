"""Version 2 of the PGRP frame, written here from its description, and frames that lie."""

from __future__ import annotations

import io
import shutil
import struct
import subprocess
import tracemalloc
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import brotli
import numpy as np
import pytest
import torch
from click.testing import Result
from safetensors.torch import load_file

from packer.checkpoint.checkpoint import read_checkpoint
from packer.errors import CheckpointError

Run = Callable[..., Result]
Array = np.ndarray[Any, Any]
SIZES = {"blocks.0.attn.c_k.weight": (1, 40), "lm_head.weight": (17, 8), "tok_emb.weight": (48, 16)}


def codes_of(sizes: Mapping[str, tuple[int, int]]) -> dict[str, Array]:
    rng = np.random.default_rng(11)
    return {name: rng.integers(-31, 32, size).astype(np.int8) for name, size in sizes.items()}


def scales_of(codes: Mapping[str, Array]) -> dict[str, Array]:
    rng = np.random.default_rng(12)
    return {k: rng.uniform(0.001, 0.1, len(one)).astype(np.float16) for k, one in codes.items()}


def shuffled(data: bytes) -> bytes:
    return b"BSHF\2" + data[::2] + data[1::2]


def torch_bytes(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def table(codes: Mapping[str, Array], orders: Mapping[str, Array]) -> bytes:
    found = struct.pack("<I", len(codes))
    for name, one in sorted(codes.items()):
        key = f"{name}.q".encode()
        found += struct.pack("<H", len(key)) + key + struct.pack("<II", *one.shape)
        found += orders[name].astype("<u2").tobytes()
    return found


def packed(data: bytes) -> bytes:
    return bytes(brotli.compress(data, quality=5))


def frame(
    codes: Mapping[str, Array],
    method: int = 0,
    compress: Callable[[bytes], bytes] = packed,
    rest: Mapping[str, object] | None = None,
    shuffle: Callable[[bytes], bytes] = shuffled,
) -> bytes:
    rng = np.random.default_rng(13)
    orders = {name: rng.permutation(len(one)) for name, one in codes.items()}
    stream = b"".join(one[orders[name]].T.tobytes() for name, one in sorted(codes.items()))
    small = compress(stream)
    if rest is None:
        scales = {f"{n}.scale": torch.from_numpy(s) for n, s in scales_of(codes).items()}
        rest = {
            "w": {**scales, "norm": torch.linspace(0, 1, 5).half()},
            "m": {**dict.fromkeys(codes, "gptq (int6)"), "norm": "passthrough (float16)"},
        }
    other = packed(shuffle(torch_bytes(rest)))
    ends = struct.pack("<BI", method, len(small)) + small + struct.pack("<I", len(other)) + other
    return b"PGRP" + struct.pack("<I", 2) + table(codes, orders) + ends


def expected(codes: Mapping[str, Array]) -> dict[str, Array]:
    """Codes × the step of the row, in the order that the rows had."""
    scales = scales_of(codes)
    return {
        name: one.astype(np.float32) * scales[name].astype(np.float32)[:, None]
        for name, one in codes.items()
    }


def assert_read(found: Mapping[str, torch.Tensor], codes: Mapping[str, Array]) -> None:
    assert set(found) == {*codes, "norm"}
    for name, weight in expected(codes).items():
        assert np.array_equal(found[name].numpy().view(np.uint32), weight.view(np.uint32)), name
    assert torch.equal(found["norm"], torch.linspace(0, 1, 5).half().float())


@pytest.mark.parametrize("shuffle", [shuffled, bytes], ids=["shuffled", "plain"])
def test_rows_come_back_where_they_were(
    tmp_path: Path, run: Run, shuffle: Callable[[bytes], bytes]
) -> None:
    codes = codes_of(SIZES)
    (tmp_path / "a.ptz").write_bytes(frame(codes, shuffle=shuffle))
    result = run("unpack", tmp_path / "a.ptz", "-o", "w.safetensors")
    assert result.exit_code == 0, result.output
    assert_read(load_file("w.safetensors"), codes)


@pytest.mark.parametrize("compress", [packed, lambda _: b""], ids=["of nothing", "left out"])
def test_no_matrices(tmp_path: Path, compress: Callable[[bytes], bytes]) -> None:
    (tmp_path / "a.ptz").write_bytes(frame({}, compress=compress))
    assert_read(read_checkpoint(tmp_path / "a.ptz").tensors, {})


@pytest.mark.skipif(shutil.which("lrzip") is None, reason="the program lrzip is not installed")
def test_one_lrzip_stream(tmp_path: Path) -> None:
    def lrzip(data: bytes) -> bytes:
        (tmp_path / "c").write_bytes(data)
        command = ["lrzip", "-z", "-L", "9", "-q", "-f", "-o", "c.lrz", "c"]
        subprocess.run(command, check=True, capture_output=True, cwd=tmp_path)
        return (tmp_path / "c.lrz").read_bytes()

    codes = codes_of(SIZES)
    (tmp_path / "a.ptz").write_bytes(frame(codes, 1, lrzip))
    assert_read(read_checkpoint(tmp_path / "a.ptz").tensors, codes)


def test_without_lrzip_the_package_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    path = tmp_path / "a.ptz"
    path.write_bytes(
        frame(codes_of(SIZES), 1, lambda data: b"LRZI\0\6" + struct.pack("<Q", len(data)) + data)
    )
    with pytest.raises(CheckpointError, match="install the package lrzip"):
        read_checkpoint(path)


def head(*numbers: int, key: bytes = b"w.q", body: bytes = b"") -> bytes:
    """A frame that says one matrix of numbers[0] × numbers[1], and goes on with `body`."""
    return b"PGRP" + struct.pack("<IIH", 2, 1, len(key)) + key + struct.pack("<II", *numbers) + body


def with_order(order: Sequence[int]) -> bytes:
    whole = frame(codes_of({"w": (3, 4)}))
    at = len(b"PGRP") + 8 + 2 + len("w.q") + 8
    return whole[:at] + struct.pack("<3H", *order) + whole[at + 6 :]


def resized(rows: int, columns: int) -> bytes:
    whole = frame(codes_of({"w": (3, 4)}))
    at = len(b"PGRP") + 8 + 2 + len("w.q")
    return whole[:at] + struct.pack("<II", rows, columns) + whole[at + 8 :]


WHOLE = frame(codes_of(SIZES))
KEPT = {"norm": torch.ones(2)}
LIES: dict[str, tuple[Callable[[], bytes], str]] = {
    "ends after its version": (lambda: WHOLE[:8], "0 are left"),
    "ends in its codes": (lambda: WHOLE[:-400], "are left"),
    "ends one byte early": (lambda: WHOLE[:-1], "are left"),
    "goes on": (lambda: WHOLE + b"more", "4 bytes follow"),
    "2^32 - 1 matrices": (lambda: b"PGRP" + struct.pack("<II", 2, 2**32 - 1), "0 are left"),
    "2^32 - 1 rows": (lambda: head(2**32 - 1, 1), "4,294,967,295"),
    "2^32 - 1 columns": (lambda: head(1, 2**32 - 1, body=bytes(2)), "4,294,967,295"),
    "both": (lambda: head(2**32 - 1, 2**32 - 1), "--max-memory"),
    "more rows than row numbers": (lambda: head(9, 1, body=bytes(4)), "row numbers of w.q of 18"),
    "a key beyond the end": (lambda: head(1, 1)[:12] + b"\xff\xff", "a key of 65,535 bytes"),
    "a key that is no text": (lambda: head(1, 1, key=b"\xff\xfe.q"), "ff fe"),
    "a key without codes": (lambda: head(1, 1, key=b"w.scale", body=bytes(2)), "w.scale"),
    "a row twice": (lambda: with_order([0, 1, 1]), "3 row numbers of w.q"),
    "a row out of range": (lambda: with_order([0, 1, 3]), "3 row numbers of w.q"),
    "a row of 65,535": (lambda: with_order([0, 65535, 2]), "3 row numbers of w.q"),
    "fewer codes than said": (lambda: resized(3, 5), "12 bytes where its matrices have 15"),
    "more codes than said": (lambda: resized(3, 3), "12 bytes where its matrices have 9"),
    "another method": (lambda: frame(codes_of(SIZES), 2), "method 2"),
    "no lrzip stream": (lambda: frame(codes_of(SIZES), 1), "no lrzip stream"),
    "the rest is no torch file": (lambda: frame({}, shuffle=lambda _: b"no"), "torch.save"),
    "a frame in the frame": (lambda: frame({}, shuffle=lambda _: WHOLE), "torch.save"),
    "the rest is a list": (lambda: frame({}, rest={"w": [], "m": {}}), "no {w, m}"),
    "codes there twice": (
        lambda: frame(
            codes_of({"w": (2, 2)}),
            rest={"w": {"w.q": torch.ones(2, 2).char()}, "m": {"w": "gptq (int6)"}},
        ),
        "w.q twice",
    ),
    "a key beside w and m": (
        lambda: frame({}, rest={"w": KEPT, "m": {"norm": "passthrough"}, "perm": 1}),
        "it has perm",
    ),
}


@pytest.mark.parametrize("name", LIES)
def test_frames_that_lie(tmp_path: Path, name: str) -> None:
    make, words = LIES[name]
    path = tmp_path / "a.ptz"
    path.write_bytes(make())
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError) as caught:
            read_checkpoint(path)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert words in str(caught.value) and str(path) in str(caught.value)
    assert "\n" not in str(caught.value) and peak < 1 << 24
