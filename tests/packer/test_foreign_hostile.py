"""Files that lie about themselves: refused in words, within bounds, nothing in them run."""

from __future__ import annotations

import io
import lzma
import os
import pickle
import random
import struct
import sys
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import brotli
import numpy as np
import pytest
import torch
import zstandard
from click.testing import Result

from packer.checkpoint.checkpoint import read_checkpoint
from packer.errors import CheckpointError, PackerError
from packer.foreign.codecs import SMALL_EXPANDED, output_limit
from packer.foreign.frames import read_pgrp
from packer.foreign.numpy_pickle import read_numpy_pickle

Run = Callable[..., Result]
ZEROS = bytes(200_000_000)
BOMBS: dict[str, Callable[[], bytes]] = {
    "zlib": lambda: zlib.compress(ZEROS, 9),
    "xz": lambda: lzma.compress(ZEROS, preset=1),
    "zstd": lambda: zstandard.ZstdCompressor(level=3).compress(ZEROS),
    "brotli": lambda: bytes(brotli.compress(ZEROS, quality=3)),
}


def torch_bytes(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def small_int8() -> dict[str, Any]:
    return {
        "__quant_format__": "int8_clean_per_row_v1",
        "quantized": {"w": torch.arange(-16, 16, dtype=torch.int8).reshape(4, 8)},
        "scales": {"w": torch.tensor([0.5, 0.25, 1, 2]).half()},
        "dtypes": {"w": "float32"},
        "passthrough": {"norm": torch.ones(8)},
    }


def small_mixed() -> dict[str, Any]:
    return {
        "w": {
            "w.q": torch.arange(-16, 16, dtype=torch.int8).reshape(4, 8),
            "w.scale": torch.tensor([0.5, 0.25, 1, 2]).half(),
            "norm": torch.ones(8).half(),
        },
        "m": {"w": {"type": "int6"}, "norm": "passthrough"},
    }


def refusal(tmp_path: Path, data: bytes) -> str:
    path = tmp_path / "artifact.ptz"
    path.write_bytes(data)
    with pytest.raises(PackerError) as caught:
        read_checkpoint(path)
    assert str(caught.value).startswith(str(path)) and "\n" not in str(caught.value)
    return str(caught.value)


# --- Bounds -------------------------------------------------------------------------------------


@pytest.mark.parametrize("codec", BOMBS)
def test_a_bomb_stops_at_the_limit(tmp_path: Path, codec: str) -> None:
    path = tmp_path / "bomb.ptz"
    path.write_bytes(BOMBS[codec]())
    tracemalloc.start()
    try:
        with pytest.raises(CheckpointError, match=rf"as {codec} its .* expand to more than .*67,1"):
            read_checkpoint(path)
        with pytest.raises(CheckpointError, match=r"the 1,000,000 allowed.*--max-memory"):
            read_checkpoint(path, max_memory=1_000_000)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 4 * SMALL_EXPANDED


def test_the_limit_grows_with_the_file_and_gives_way_to_the_user() -> None:
    assert output_limit(100, None) == SMALL_EXPANDED
    assert output_limit(16_000_000, None) == 256 * 16_000_000
    assert output_limit(10**9, None) == 1 << 33
    assert output_limit(100, 1 << 40) == 1 << 40


def test_max_memory_is_an_option(tmp_path: Path, run: Run) -> None:
    path = tmp_path / "a.ptz"
    path.write_bytes(zlib.compress(torch_bytes(small_int8())))
    for command in (
        ("report",),
        ("inspect",),
        ("unpack", "-o", "w.pt"),
        ("fix", "--lossless", "-o", "n.pack"),
        ("plan", "--cap", "1MB"),
        ("pack", "--cap", "1MB", "-o", "m.pack"),
    ):
        refused = run(command[0], path, *command[1:], "--max-memory", "1kB")
        assert refused.exit_code == 1 and "more than the 1,000 allowed" in refused.output
        accepted = run(command[0], path, *command[1:], "--max-memory", "1MB")
        assert accepted.exit_code == 0, accepted.output


def test_codecs_wrapped_in_each_other_without_end(tmp_path: Path) -> None:
    data = torch_bytes(small_int8())
    for _ in range(5):
        data = zlib.compress(data)
    assert "more than 4 times over" in refusal(tmp_path, data)


@pytest.mark.parametrize("codec", BOMBS)
def test_truncated_and_lengthened_streams(tmp_path: Path, codec: str) -> None:
    value = torch_bytes(small_mixed())
    whole = {
        "zlib": zlib.compress(value),
        "xz": lzma.compress(value),
        "zstd": zstandard.ZstdCompressor().compress(value),
        "brotli": bytes(brotli.compress(value)),
    }[codec]
    for cut in (len(whole) // 3, len(whole) - 1):
        refusal(tmp_path, whole[:cut])
    refusal(tmp_path, whole + b"more")


@pytest.mark.parametrize("make", [small_int8, small_mixed])
def test_flipped_bits_never_escape_as_anything_but_a_refusal(
    tmp_path: Path, make: Callable[[], dict[str, Any]]
) -> None:
    whole = torch_bytes(make())
    generator = random.Random(4)
    path = tmp_path / "flipped.ptz"
    for _ in range(60):
        flipped = bytearray(whole)
        for _ in range(generator.randint(1, 3)):
            flipped[generator.randrange(len(flipped))] ^= 1 << generator.randrange(8)
        path.write_bytes(zlib.compress(bytes(flipped)))
        try:
            read_checkpoint(path)
        except PackerError as error:
            assert str(path) in str(error)


# --- Layouts that do not add up -----------------------------------------------------------------


def without(value: dict[str, Any], table: str, name: str) -> dict[str, Any]:
    return {**value, table: {key: one for key, one in value[table].items() if key != name}}


def with_part(value: dict[str, Any], table: str, name: str, part: object) -> dict[str, Any]:
    return {**value, table: {**value[table], name: part}}


INT8, MIXED = small_int8(), small_mixed()
BROKEN: dict[str, tuple[dict[str, Any], str]] = {
    "another format": ({**INT8, "__quant_format__": "int9"}, "its format is 'int9'"),
    "no scale": (without(INT8, "scales", "w"), "name different tensors"),
    "both layouts": ({**INT8, "w": {}, "m": {}}, "int8_clean_per_row_v1 has no m, w"),
    "a scale too few": (with_part(INT8, "scales", "w", torch.ones(3)), "3 scales for codes"),
    "negative scale": (with_part(INT8, "scales", "w", -torch.ones(4)), "w: int8.row"),
    "scale not a number": (with_part(INT8, "scales", "w", torch.full((4,), torch.nan)), "scale"),
    "codes of floats": (with_part(INT8, "quantized", "w", torch.ones(4, 8)), "its codes are"),
    "unknown dtype": (with_part(INT8, "dtypes", "w", "float99"), "'float99'"),
    "not a dtype": (with_part(INT8, "dtypes", "w", "load"), "'load'"),
    "text for codes": (with_part(INT8, "quantized", "w", "x"), "the codes of w is a str"),
    "table is a list": ({**INT8, "scales": []}, "its scales is a list"),
    "another scheme": ({**INT8, "qmeta": {"w": {"scheme": "per_group"}}}, "per_group"),
    "claimed elements": (
        with_part(INT8, "quantized", "w", torch.ones(1, dtype=torch.int8).expand(1 << 20, 1 << 20)),
        "dense tensor",
    ),
    "nothing": ({**INT8, "quantized": {}, "scales": {}, "passthrough": {}}, "no tensors"),
    "unknown part": (with_part(MIXED, "w", "w.lqA", torch.ones(4, 2)), "no known meaning"),
    "codes alone": (without(MIXED, "w", "w.scale"), "only the parts q"),
    "described and absent": (with_part(MIXED, "m", "gone", "passthrough"), "gone, of which w has"),
    "more than w and m": ({**MIXED, "perm": torch.ones(3)}, "beside w and m it has perm"),
    "a wrong meaning": (with_part(MIXED, "m", "w", "passthrough"), "tensor with codes"),
    "codes that are kept": (with_part(MIXED, "m", "norm", {"type": "int6"}), "as it is"),
    "factors of other sizes": (
        {
            "w": {
                **MIXED["w"],
                "w.lqA": torch.ones(4, 2, dtype=torch.int8),
                "w.lqAs": torch.ones(4),
                "w.lqB": torch.ones(2, 5, dtype=torch.int8),
                "w.lqBs": torch.ones(2),
            },
            "m": {**MIXED["m"], "w": "gptq (int6)+lqer"},
        },
        "does not fit",
    ),
    "too few trits": (
        {
            "w": {
                "type": "ternary",
                "packed": torch.zeros(2, dtype=torch.uint8),
                "scale": torch.ones(4),
                "shape": [4, 8],
                "group_size": 8,
                "n_trits": 32,
            }
        },
        "2 bytes of packed codes where 7 belong",
    ),
    "trits that no five make": (
        {
            "w": {
                "type": "ternary",
                "packed": torch.full((1,), 243, dtype=torch.uint8),
                "scale": torch.ones(1),
                "shape": [1, 5],
                "group_size": 5,
                "n_trits": 5,
            }
        },
        "243, above 242",
    ),
    "sizes beyond the file": (
        {
            "w": {
                "type": "binary",
                "packed": torch.zeros(1, dtype=torch.uint8),
                "scale": torch.ones(1),
                "shape": [1 << 40, 1 << 40],
                "group_size": 8,
                "n_bits": 1 << 40,
            }
        },
        "do not fill",
    ),
}


@pytest.mark.parametrize("name", BROKEN)
def test_parts_that_do_not_fit_together(tmp_path: Path, name: str) -> None:
    value, word = BROKEN[name]
    assert word in refusal(tmp_path, zlib.compress(torch_bytes(value)))


def test_a_template_of_another_model(tmp_path: Path, run: Run) -> None:
    (tmp_path / "a.ptz").write_bytes(zlib.compress(torch_bytes(small_mixed())))
    for weights, word in (
        ({"w": torch.ones(4, 9), "norm": torch.ones(8)}, "w has the shape [4, 8]"),
        ({"w": torch.ones(4, 8)}, "norm is in the file alone"),
        (
            {"w": torch.ones(4, 8), "norm": torch.ones(8), "x": torch.ones(1)},
            "x is in the template",
        ),
    ):
        torch.save(weights, tmp_path / "t.pt")
        result = run("unpack", "a.ptz", "--template", "t.pt", "-o", "w.pt")
        assert result.exit_code == 1 and word in result.output, result.output
    torch.save({"w": torch.ones(4, 8).bfloat16(), "norm": torch.ones(8)}, tmp_path / "t.pt")
    assert run("unpack", "a.ptz", "--template", "t.pt", "-o", "w.pt").exit_code == 0
    assert torch.load("w.pt", weights_only=True)["w"].dtype == torch.bfloat16


def test_sections_of_qgv3_that_lie(tmp_path: Path) -> None:
    meta = b'{"quantized": {"w": {"offset": 0, "nbytes": 9, "dtype": "int8", "shape": [9]}}}'

    def frame(meta: bytes, codes: int, body: bytes = b"12345678") -> bytes:
        return b"QGv3" + struct.pack("<4I", len(meta), codes, 0, 0) + meta + body

    assert "9 at 0 of 8 are declared" in refusal(tmp_path, frame(meta, 8))
    assert "truncated or damaged" in refusal(tmp_path, frame(meta, 7))
    assert "truncated or damaged" in refusal(tmp_path, b"QGv3" + b"\xff" * 16)
    assert "truncated or damaged" in refusal(tmp_path, b"QGv3")
    assert "table is damaged" in refusal(tmp_path, frame(b"[1", 8))
    assert "table is damaged" in refusal(tmp_path, frame(b'{"quantized": 7}', 8))
    assert "offset, length or shape" in refusal(tmp_path, frame(meta.replace(b"[9]", b"[-9]"), 8))


def test_frames_of_pgrp_that_lie(tmp_path: Path) -> None:
    def frame(count: int, *lengths: int, body: bytes = b"") -> bytes:
        return b"PGRP" + struct.pack(f"<I{len(lengths)}I", count, *lengths) + body

    empty = bytes(brotli.compress(torch_bytes({"r": {}, "m": {}, "s": {}})))
    lying = bytes(
        brotli.compress(
            torch_bytes(
                {
                    "r": {},
                    "m": {"tok_emb.weight": "gptq (int8)"},
                    "s": {"tok_emb.weight.q": [[1 << 20, 1 << 20]]},
                }
            )
        )
    )
    for data, word in (
        (b"PGRP", "streams"),
        (frame(0xFFFFFFFF), "4294967295 streams"),
        (frame(9, *[1 << 31] * 9), "truncated or damaged"),
        (frame(9, *[0] * 9, body=b"more"), "truncated or damaged"),
        (frame(9, *[0] * 7, len(empty), 0, body=empty), "no tensors"),
        (frame(9, 0, *[0] * 6, len(lying), 0, body=lying), "no lrzip stream"),
        (
            frame(9, 14, *[0] * 6, len(lying), 0, body=b"LRZI\0\6" + bytes(8) + lying),
            "expand to 0 bytes where",
        ),
    ):
        assert word in refusal(tmp_path, data), word


def test_lrzip_streams_may_not_exceed_the_limit() -> None:
    size = (1 << 10) * (1 << 10)
    rest = brotli.compress(b"")
    stream = b"LRZI\0\6" + size.to_bytes(8, "little")
    data = b"PGRP" + struct.pack("<10I", 9, len(stream), *[0] * 6, len(rest), 0) + stream + rest
    value = {"r": {}, "m": {"tok_emb.weight": 8}, "s": {"tok_emb.weight.q": [[1 << 10, 1 << 10]]}}

    def load(_data: bytes, _source: str, _limit: int) -> tuple[object, dict[str, str]]:
        return value, {}

    with pytest.raises(CheckpointError, match=r"1,048,576 bytes where 1,048,576 .* 1,000 are"):
        read_pgrp(data, "f", 1_000, load)


# --- Pickles ------------------------------------------------------------------------------------


class Calls:
    """Pickles as a call of `function`."""

    def __init__(self, function: object, *arguments: object) -> None:
        self.call = function, arguments

    def __reduce__(self) -> Any:
        return self.call


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_that_calls_is_refused_by_name(tmp_path: Path, zipped: bool) -> None:
    witness = tmp_path / "witness"
    call = Calls(os.mkdir, str(witness))
    value = {**small_int8(), "extra": call}
    data = torch_bytes(value) if zipped else pickle.dumps(value["extra"])
    message = refusal(tmp_path, zlib.compress(data))
    assert "posix.mkdir" in message and not witness.exists()


@pytest.mark.parametrize(
    ("value", "word"),
    [
        (Calls(eval, "1"), "builtins.eval"),
        (Calls(getattr, "a", "upper"), "builtins.getattr"),
        (Calls(bytes, 1 << 40), "damaged"),
        (Calls(np.dtype, "O"), "a Dtype"),
        (np.array([{}, None]), "values are a list"),
        (np.zeros(2, "U3"), "dtype 'U3'"),
        (np.zeros(2, [("a", "i4")]), "dtype 'V4'"),
        ({1, 2}, "EMPTY_SET"),
        (complex(1), "builtins.complex"),
        (sys, ""),
    ],
)
def test_pickles_of_other_things(value: Any, word: str) -> None:
    if value is sys:  # a container that holds itself
        value = []
        value.append(value)
        word = "holds itself"
    with pytest.raises(CheckpointError, match=word):
        read_numpy_pickle(pickle.dumps(value, protocol=4), "f")


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\x80\x04",
        b"\x80\x04N",
        b"\x80\x04N.more",
        b"\x80\x04r\xff\xff\xff\x7f.",  # stores under number 2^31
        b"\x80\x05\x96" + (1 << 50).to_bytes(8, "little") + b"x.",  # a bytearray of 2^50 bytes
        b"\x80\x04\x8e" + (1 << 50).to_bytes(8, "little") + b"x.",
        b"\x80\x04\x82\x01.",  # the registry of extensions
        b"\x80\x04Pid\n.",  # a persistent id
        b"\x80\x04" + b"]" * 100 + b"a" * 200 + b".",
    ],
)
def test_damaged_pickles(data: bytes) -> None:
    with pytest.raises(CheckpointError):
        read_numpy_pickle(data, "f")


def test_references_within_a_pickle_do_not_multiply() -> None:
    value: object = np.zeros(1000)
    for _ in range(60):
        value = [value, value]
    found = read_numpy_pickle(pickle.dumps(value), "f")
    assert isinstance(found, list) and found[0] is found[1]


def test_arrays_that_claim_more_than_they_hold() -> None:
    array = pickle.dumps(np.zeros((2, 3), "f4"), protocol=2)
    assert b"K\x02K\x03\x86" in array  # the shape
    with pytest.raises(CheckpointError, match=r"shape \(2, 9\) with 6 values"):
        read_numpy_pickle(array.replace(b"K\x02K\x03\x86", b"K\x02K\x09\x86"), "f")
