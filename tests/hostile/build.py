"""Writes the hostile files beside this script, and manifest.json: what each must answer.

    python tests/hostile/build.py

Every file is a lie of one kind. The manifest names the reader that meets it, the error that it must
raise, and words of the refusal, which are written here by hand. No random generator is involved.
"""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import struct
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

HERE = Path(__file__).resolve().parent
MAGIC = b"\x93BYTECAP"
FIXED = MAGIC + b"\x01" + bytes(16)
MATRIX = ["w", "float32", [4, 8]]
HALF_ONE = b"\x00\x3c"
Case = tuple[str, str, str, str, bytes]  # file, reader, error, words, contents


def varint(value: int) -> bytes:
    out = bytearray()
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def stream(data: bytes, coder: int = 0) -> bytes:
    return bytes([coder]) + varint(len(data)) + data


def signed(body: bytes) -> bytes:
    return body + hashlib.blake2b(body, digest_size=8).digest()


def header(tensors: Any, ties: Any = None, metadata: Any = None) -> bytes:
    value = {"metadata": metadata or {}, "tensors": tensors, "ties": ties or {}}
    text = json.dumps(value).encode()
    return varint(len(text)) + stream(text)


def artifact(*blocks: bytes, tensors: Any = None, **rest: Any) -> bytes:
    return signed(
        FIXED + header([MATRIX] if tensors is None else tensors, **rest) + b"".join(blocks)
    )


def int8(scale: bytes = HALF_ONE, codes: bytes = bytes(32)) -> bytes:
    """A block of int8.tensor for a matrix [4, 8]."""
    planes = scale[::2] + scale[1::2]
    return b"\xb8" + stream(planes) + stream(codes)


def raw_header(packed: bytes, length: int, coder: int = 0) -> bytes:
    return signed(FIXED + varint(length) + stream(packed, coder))


def stepped(shrink: int, base: int, codes: bytes, coder: int = 1) -> bytes:
    return b"\x60" + bytes([shrink]) + struct.pack("<h", base) + stream(codes, coder)


def artifacts() -> list[Case]:
    whole = artifact(int8())
    ones = [["w", "float32", []]]
    said: list[tuple[str, str, bytes]] = [
        ("magic_alone", "the file ends early", MAGIC),
        ("other_magic", "not an artifact", b"\x93BYTECAQ" + whole[8:]),
        ("version_2", "format version 2", MAGIC + b"\x02" + whole[9:]),
        ("cut", "checksum is wrong", whole[:-20]),
        ("one_bit", "checksum is wrong", whole[:40] + bytes([whole[40] ^ 1]) + whole[41:]),
        ("bytes_after", "follow the last tensor", signed(whole[:-8] + b"more")),
        ("header_too_long", "a header of", raw_header(b"{}", 1 << 30)),
        ("header_lies", "holds 2 bytes where 9 belong", raw_header(b"{}", 9)),
        ("header_deep", "not as specified", raw_header(b"[" * 9000, 9000)),
        (
            "header_bomb",
            "does not end where it should",
            raw_header(zlib.compress(bytes(5 << 20)), 20, 5),
        ),
        ("header_no_object", "not as specified", raw_header(b"[]", 2)),
        ("varint_endless", "more than nine bytes", signed(FIXED + b"\xff" * 12)),
        ("shape_negative", "not as specified", artifact(tensors=[["w", "float32", [-1]]])),
        ("shape_of_text", "not as specified", artifact(tensors=[["w", "float32", ["4"]]])),
        ("shape_true", "not as specified", artifact(tensors=[["w", "float32", [True]]])),
        ("shape_huge", "are allowed", artifact(tensors=[["w", "int8", [1 << 40, 1 << 40]]])),
        ("dtype_unknown", "not as specified", artifact(tensors=[["w", "device", [1]]])),
        ("names_twice", "not sorted, unique", artifact(tensors=[MATRIX, MATRIX])),
        ("name_number", "not as specified", artifact(tensors=[[1, "float32", [1]]])),
        ("tie_to_nothing", "a tie names", artifact(int8(), ties={"head": "v"})),
        ("tie_number", "not sorted, unique texts", artifact(int8(), metadata={"a": 1})),
        ("format_unknown", "format byte 0x41", artifact(b"\x41" + stream(b""))),
        ("rank_0", "correction of rank 0", artifact(b"\xc0\x00" + int8())),
        ("rank_too_large", "correction of rank 9", artifact(b"\xc0\x09" + int8())),
        ("block_missing", "ends early", artifact()),
        ("stream_too_long", "ends early", artifact(b"\xb8\x00" + varint(1 << 40))),
        ("coder_9", "coder 9 is unknown", artifact(b"\x00" + stream(b"", 9))),
        ("scale_nan", "negative or too large", artifact(int8(b"\x00\x7e"))),
        ("scale_negative", "negative or too large", artifact(int8(b"\x00\xbc"))),
        ("codes_too_few", "holds 31 bytes where 32", artifact(int8(codes=bytes(31)))),
        (
            "ans_alone",
            "an ANS stream of 1 bytes",
            artifact(b"\xb8" + stream(HALF_ONE) + stream(b"\0", 1)),
        ),
        ("ans_left", "left after its last", artifact(_ans(b"\x00\x01" + b"\xff" * 64))),
        ("step_far", "a step has index", artifact(stepped(0, 900, b"\0\0"))),
        ("step_shrunk", "at most 127/256", artifact(stepped(200, 0, b"\0\0"))),
        ("step_raw", "not from ans", artifact(stepped(0, 0, bytes(64), 0))),
        (
            "stride_3",
            "steps are 3 grid points",
            artifact(b"\x61\x00\x00\x00\x00\x00\x03" + stream(b"")),
        ),
        (
            "zlib_bomb",
            "does not end where it should",
            artifact(b"\xb8" + stream(HALF_ONE) + stream(zlib.compress(bytes(5 << 20)), 5)),
        ),
        ("scalar_cut", "holds 3 bytes where 4", artifact(b"\x00" + stream(b"abc"), tensors=ones)),
    ]
    return [
        (f"{name}.pack", "artifact", "ArtifactError", words, data) for name, words, data in said
    ]


def _ans(data: bytes) -> bytes:
    return b"\xb8" + stream(HALF_ONE) + stream(data, 1)


def candidates(**changes: Any) -> dict[str, Any]:
    """A whole candidates.json of one tensor, with other values for some keys."""
    tensor = {
        "name": "w", "role": "other", "layer": None, "shape": [4, 8], "dtype": "float32",
        "candidates": [["fp16", 80, 0.1, None], ["int8.row", 50, 0.5, None]],
    }  # fmt: skip
    whole = {
        "kind": "bytecap candidates", "version": 1, "source": "m.pt", "structure": "s",
        "contents": "c", "header_bytes": 60, "damage_source": "weight error", "curvature": None,
        "damage_fit": None, "ties": {}, "metadata": {}, "tensors": [tensor],
    }  # fmt: skip
    tensor.update({key: value for key, value in changes.items() if key in tensor})
    return {**whole, **{key: value for key, value in changes.items() if key not in tensor}}


def plans() -> list[Case]:
    lies: list[tuple[str, str, Any]] = [
        ("kind_other", "is 'bytecap plans'", candidates(kind="bytecap plans")),
        ("version_7", "has version 7", candidates(version=7)),
        ("size_negative", "is damaged", candidates(candidates=[["fp16", -80, 0.1, None]])),
        ("size_enormous", "is damaged", candidates(candidates=[["fp16", 2**63, 0.1, None]])),
        ("error_nan", "fp16", candidates(candidates=[["fp16", 80, float("nan"), None]])),
        ("role_unknown", "is damaged", candidates(role="chief")),
        ("tensors_twice", "is damaged", candidates(tensors=candidates()["tensors"] * 2)),
        ("no_tensors", "no candidates to plan with", candidates(tensors=[])),
        ("no_object", "holds a list", [1]),
    ]
    made = [
        (f"{name}.json", "candidates", "PlanError", words, json.dumps(value).encode())
        for name, words, value in lies
    ]
    deep = b'{"kind": ' + b"[" * 20000
    return [*made, ("deep.json", "candidates", "PlanError", "is not a JSON file", deep)]


def torch_bytes(value: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


def zipped(records: Mapping[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in records.items():
            archive.writestr(zipfile.ZipInfo(name), content, method)
    return buffer.getvalue()


class Calls:
    """A pickle that runs a program when it is opened by who trusts it."""

    def __reduce__(self) -> Any:
        import os

        return os.system, ("echo a hostile file was run",)


def safetensors(head: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = json.dumps(head).encode()
    return (len(text) if length is None else length).to_bytes(8, "little") + text + data


def checkpoints() -> list[Case]:
    whole = torch_bytes({"w": torch.ones(2, 2)})
    pickled = pickle.dumps({"w": Calls()}, protocol=2)
    legacy = (
        bytes.fromhex("80028a0a6cfc9c46f9206aa850192e80024de9032e8002") + b"X\xf0\xff\xff\x7fab"
    )
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}
    said: list[tuple[str, str, bytes]] = [
        ("empty.pt", "the file is empty", b""),
        ("cut.pt", "truncated or damaged", whole[: len(whole) // 2]),
        ("calls.pt", "can run any code", zipped({"a/data.pkl": pickled, "a/version": b"3"})),
        ("script.pt", "TorchScript", zipped({"a/constants.pkl": b"", "a/data.pkl": b""})),
        ("no_torch.pt", "torch.save did not write it", zipped({"readme.txt": b"hello"})),
        ("deflated.pt", "compressed", zipped({"a/data.pkl": bytes(999)}, zipfile.ZIP_DEFLATED)),
        ("nan.pt", "NaN or infinity in w", torch_bytes({"w": torch.tensor([1.0, float("nan")])})),
        (
            "expanded.pt",
            "expanded tensors",
            torch_bytes({"w": torch.ones(1).expand(1 << 20, 1 << 12)}),
        ),
        ("no_names.pt", "holds a list", torch_bytes([torch.ones(2)])),
        ("endless_text.pt", "torch cannot read it", legacy),
        (
            "header_long.safetensors",
            "header would take",
            safetensors({"w": entry}, bytes(8), 1 << 40),
        ),
        (
            "header_none.safetensors",
            "truncated or damaged",
            safetensors([1], bytes(8)).replace(b"[", b"{"),
        ),
        ("data_short.safetensors", "truncated or damaged", safetensors({"w": entry}, bytes(4))),
        (
            "offsets_wild.safetensors",
            "truncated or damaged",
            safetensors({"w": {**entry, "data_offsets": [8, 0]}}, bytes(8)),
        ),
        (
            "shape_lies.safetensors",
            "truncated or damaged",
            safetensors({"w": {**entry, "shape": [1 << 60]}}, bytes(8)),
        ),
    ]
    return [(name, "checkpoint", "CheckpointError", words, data) for name, words, data in said]


def foreign() -> list[Case]:
    codes = torch.ones(2, 2, dtype=torch.int8)
    value = {"quantized": {"w": codes}, "scales": {}, "dtypes": {}, "passthrough": {}}
    table = b'{"quantized": {"w": {"offset": 0, "nbytes": 9, "dtype": "int8", "shape": [9]}}}'
    layers = torch_bytes(value)
    for _ in range(5):
        layers = zlib.compress(layers)
    frame = b"PGRP" + struct.pack("<10I", 9, *[1 << 31] * 9)
    said = [
        ("layers.ptz", "more than 4 times over", layers),
        ("bomb.ptz", "expand to more than", zlib.compress(bytes(1 << 21), 9)),
        ("cut.ptz", "truncated or damaged", zlib.compress(layers)[:-9]),
        ("no_scales.ptz", "name different tensors", zlib.compress(torch_bytes(value))),
        ("calls.pickle", "refused", pickle.dumps({"w": Calls()}, protocol=4)),
        ("lengths.pgrp", "truncated or damaged", frame),
        (
            "table.qgv3",
            "are declared",
            b"QGv3" + struct.pack("<4I", len(table), 8, 0, 0) + table + bytes(8),
        ),
        ("noise.bin", "neither a torch file nor safetensors", b"\xff" * 100),
    ]
    return [(name, "checkpoint", "CheckpointError", words, data) for name, words, data in said]


def tokens_and_settings() -> list[Case]:
    def shard(magic: int = 20240520, count: int = 4, tokens: bytes = bytes(8)) -> bytes:
        return struct.pack("<3i", magic, 1, count) + bytes(4 * 253) + tokens

    def piece(text: bytes) -> bytes:
        return b"\x0a" + bytes([len(text) + 2]) + b"\x0a" + bytes([len(text)]) + text

    config = {"vocab_size": 64, "num_layers": 2, "model_dim": 32, "num_heads": 4, "num_kv_heads": 2}
    index = {"weight_map": {"w": "../../secret.safetensors"}}
    return [
        ("magic.bin", "shard", "DataError", "its magic is 7", shard(7)),
        ("count.bin", "shard", "DataError", "promises 99 tokens", shard(count=99)),
        ("below_0.bin", "shard", "DataError", "promises -1 tokens", shard(count=-1)),
        (
            "vocabulary.bin",
            "shard",
            "DataError",
            "outside the vocabulary",
            shard(tokens=b"\xff" * 8),
        ),
        ("short.bin", "shard", "DataError", "of header", b"\x18\xda"),
        ("table.json", "table", "TokenBytesError", "whole numbers", b'{"bytes": [1, -2]}'),
        (
            "table_flag.json",
            "table",
            "TokenBytesError",
            "from 0 to 1",
            b'{"bytes": [1, 2], "unknown": [2]}',
        ),
        ("noise.model", "tokenizer", "TokenBytesError", "not a sentencepiece model", b"\xff" * 40),
        (
            "mlp_inf.json",
            "settings",
            "ConfigError",
            "finite",
            json.dumps({**config, "mlp_mult": float("inf")}).encode(),
        ),
        (
            "mlp_1e308.json",
            "settings",
            "ConfigError",
            "up to 1,000",
            json.dumps({**config, "mlp_mult": 1e308}).encode(),
        ),
        (
            "heads_0.json",
            "settings",
            "ConfigError",
            "a positive number",
            json.dumps({**config, "num_heads": 0}).encode(),
        ),
        (
            "index_outside.json",
            "index",
            "CheckpointError",
            "not a *.safetensors file of this folder",
            json.dumps(index).encode(),
        ),
    ]


def main() -> None:
    cases = [*artifacts(), *plans(), *checkpoints(), *foreign(), *tokens_and_settings()]
    for old in (*HERE.glob("*"),):
        if old.is_file() and old.suffix != ".py":
            old.unlink()
    manifest = {}
    for name, reader, error, words, data in cases:
        (HERE / name).write_bytes(data)
        manifest[name] = {"reader": reader, "error": error, "says": words}
    text = json.dumps(manifest, indent=1, sort_keys=True)
    (HERE / "manifest.json").write_text(text + "\n")


if __name__ == "__main__":
    main()
