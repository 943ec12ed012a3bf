"""The file: round trip, golden bytes, hostile bytes, additive sizes, and the shipped loader."""

import hashlib
import json
import math
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packer.quantizers.choice import parse_choice
from packer.quantizers.formats import Passthrough, QuantizedTensor, Ternary, Uniform
from packer.quantizers.quantize import dequantize, quantize

from packer.artifact import decoder
from packer.artifact.ans_encoder import CODER_IDS, compress
from packer.artifact.decoder import ArtifactError, read_weights
from packer.artifact.encoder import (
    Artifact,
    assemble,
    encode_header,
    encode_tensor,
    format_byte,
    format_of,
    header_bytes,
)
from packer.artifact.rans_decoder import MOST_LANES, check_lanes
from packer.artifact.reader import Reader
from packer.artifact.stream_decoder import decompress
from packer.shipping.loader import loader_source

GOLDEN = Path(__file__).parents[1] / "golden" / "artifact_v1.pack"
GOLDEN_LOW_RANK = GOLDEN.with_name("low_rank_v1.pack")
CHOICES = [
    *("fp32", "fp16", "bf16", "raw", "int8.row", "int6.row+kstd@12.85", "int5.row.wide"),
    *("int4.tensor", "int2.row", "int3.row.scale32", "ternary.row"),
    *("int6.row~zstd", "int6.row~brotli", "int8.row~lzma", "fp16~zlib", "int4.row~raw"),
]


def sample(seed: int = 0) -> Artifact:
    """Every format and coder, odd shapes, ties and metadata. No random generator is involved."""
    tensors = {}
    for index, text in enumerate(CHOICES):
        rows, columns = 3 + index % 5 * 4, 2 + index % 7 * 3
        line = torch.arange(rows * columns, dtype=torch.float32) + seed
        weight = ((line * 37 % 101) - 50).reshape(rows, columns) / 64
        tensors[f"blocks.{index}.w"] = quantize(weight, parse_choice(text))
    tensors["empty"] = quantize(torch.zeros(0, 4), parse_choice("raw"))
    tensors["steps"] = quantize(torch.tensor(7), parse_choice("raw"))
    tensors["scalar"] = quantize(torch.tensor(0.05), parse_choice("fp16"))
    tensors["half"] = quantize(torch.arange(6).bfloat16().reshape(2, 3), parse_choice("int8.row"))
    tensors["bank"] = quantize(torch.linspace(-1, 1, 24).reshape(2, 3, 4), parse_choice("int6.row"))
    coders = {f"blocks.{i}.w": parse_choice(text).coder for i, text in enumerate(CHOICES)}
    return Artifact(tensors, {"head": "half"}, {"config": '{"layers":2}'}, coders, 16_000_000, 123)


def low_rank_sample() -> Artifact:
    """Corrections of every factor width beside every kind of base. No generator is involved, and no
    decomposition either: their last bits are the machine's.
    """
    tensors = {}
    for index, text in enumerate(
        ("int4.row.rank2x2", "int2.tensor.rank5x4", "ternary.row.rank9x8")
    ):
        format = parse_choice(text).format
        rows, columns, rank, reach = 9 + index, 12, format.rank, format.factor_max

        def pattern(*shape: int, reach: int, step: int) -> torch.Tensor:
            line = torch.arange(math.prod(shape)) * step % (2 * reach + 1) - reach
            return line.reshape(shape).to(torch.int8)

        side = {
            "scale": torch.linspace(0.01, 0.5, rows if format.axis == "row" else 1).half(),
            "left": pattern(rank, rows, reach=reach, step=5),
            "right": pattern(rank, columns, reach=reach, step=7),
            "rank_scale": torch.linspace(1e-5, 0.3, rank),
        }
        codes = pattern(rows, columns, reach=format.code_max, step=3)
        tensors[f"w{index}"] = QuantizedTensor(format, (rows, columns), torch.float32, codes, side)
    return Artifact(tensors)


def same(a: Artifact, b: Artifact) -> bool:
    return (
        sorted(a.tensors) == sorted(b.tensors)
        and all(
            (p.format, p.shape, p.dtype) == (q.format, q.shape, q.dtype)
            and torch.equal(p.codes, q.codes)
            and all(torch.equal(p.side[key], q.side[key]) for key in {*p.side, *q.side})
            for p, q in ((a.tensors[name], b.tensors[name]) for name in a.tensors)
        )
        and (dict(a.ties), dict(a.metadata)) == (dict(b.ties), dict(b.metadata))
        and (a.cap_bytes, a.code_bytes) == (b.cap_bytes, b.code_bytes)
    )


def test_round_trip_and_repeatable_bytes():
    artifact = sample()
    data = artifact.to_bytes()
    again = Artifact.from_bytes(data)
    assert same(artifact, again)
    assert again.to_bytes() == data
    assert sample().to_bytes() == data


def test_insertion_order_does_not_change_bytes():
    artifact = sample()
    backwards = dict(reversed(artifact.tensors.items()))
    other = Artifact(backwards, artifact.ties, artifact.metadata, artifact.coders, 16_000_000, 123)
    assert other.to_bytes() == artifact.to_bytes()


def test_sizes_add_up_to_the_byte():
    artifact = sample()
    shapes = {n: (str(q.dtype).split(".")[1], q.shape) for n, q in artifact.tensors.items()}
    header = encode_header(shapes, artifact.ties, artifact.metadata)
    blocks = [encode_tensor(q, artifact.coders.get(n)) for n, q in artifact.tensors.items()]
    total = header_bytes(header) + sum(block.size_bytes for block in blocks)
    data = artifact.to_bytes()
    assert len(data) == total
    stored = decoder.parse(data)
    assert stored.header_bytes == header_bytes(header)
    assert {t.name: t.size_bytes for t in stored.tensors} == {
        name: encode_tensor(q, artifact.coders.get(name)).size_bytes
        for name, q in artifact.tensors.items()
    }


def test_weights_are_those_of_dequantize():
    artifact = sample()
    weights = read_weights(artifact.to_bytes())
    assert weights["head"] is weights["half"]
    for name, quantized in artifact.tensors.items():
        expected = dequantize(quantized)
        assert weights[name].dtype == expected.dtype
        assert torch.equal(weights[name], expected)


def test_header_and_framing_of_100_tensors_take_under_2000_bytes():
    names = [
        f"blocks.{i // 9}.{part}{i % 9}.weight"
        for i, part in zip(range(100), ["attn.c_q", "mlp.fc"] * 50, strict=True)
    ]
    weight = torch.linspace(-1, 1, 64 * 48).reshape(64, 48)
    artifact = Artifact({name: quantize(weight, parse_choice("int6.row")) for name in names})
    stored = decoder.parse(artifact.to_bytes())
    streams = sum(len(t.codes[1]) + len(t.scale[1]) for t in stored.tensors)
    assert len(artifact.to_bytes()) - streams < 2000


@pytest.mark.parametrize("byte", range(256))
def test_format_bytes_are_spelled_both_ways(byte):
    known = byte <= 3 or byte == 0x40 or 0x88 <= byte < 0xC0
    block = bytes([byte]) + bytes([0, 2, 0, 60]) * (byte >= 4) + bytes([0, 1, 0])
    header = encode_header({"w": ("uint8" if byte <= 3 else "float32", (1,))}, {}, {})
    data = assemble(header, [block], 0, 0)
    if known:
        assert format_byte(format_of(decoder.parse(data).tensors[0].format)) == byte
    else:
        with pytest.raises(ArtifactError):
            decoder.parse(data)


@pytest.mark.parametrize(
    "format",
    [
        *(Passthrough(name) for name in ("raw", "fp32", "fp16", "bf16")),
        Ternary(),
        *(
            Uniform(b, a, w, s)
            for b in range(2, 9)
            for a in ("row", "tensor")
            for w in (0, 1)
            for s in (0, 1)
        ),
    ],
)
def test_format_of_byte_of_format(format):
    assert format_of(format_byte(format)) == format


@pytest.mark.parametrize(
    ("path", "contents"), [(GOLDEN, sample), (GOLDEN_LOW_RANK, low_rank_sample)]
)
def test_golden_file_still_holds_the_same(path, contents):
    """Bytes are a contract: if this fails, the format has changed and needs a new version."""
    golden = path.read_bytes()
    assert same(Artifact.from_bytes(golden), contents())


def test_corrections_of_low_rank_come_back():
    artifact = low_rank_sample()
    data = artifact.to_bytes()
    again = Artifact.from_bytes(data)
    assert same(artifact, again)
    assert again.to_bytes() == data
    for name, weight in read_weights(data).items():
        quantized = artifact.tensors[name]
        side = {key: values.double() for key, values in quantized.side.items()}
        exact = quantized.codes.double() * side["scale"][:, None]
        exact += side["left"].T * side["rank_scale"] @ side["right"]
        assert torch.equal(weight, dequantize(quantized))
        assert torch.allclose(weight.double(), exact, rtol=1e-5, atol=1e-3)


def low_rank_block(
    rank: int = 2,
    *,
    bits: int = 0xC1,
    base: int = 0x80 | 3 << 3 | 4,
    left: bytes = bytes(4),
    right: bytes = bytes(6),
    steps: bytes = np.full(2, 0.5, "<f4").view(np.uint8).reshape(2, 4).T.tobytes(),
) -> bytes:
    """A block of a weight [2, 3], int4.row.rank2x4, every stream raw."""
    from packer.artifact.ans_encoder import varint

    scales = np.ones(2, dtype=np.float16).view(np.uint8).reshape(2, 2).T.tobytes()
    streams = (scales, bytes(6), steps, left, right)
    return bytes([bits, rank, base]) + b"".join(b"\0" + varint(len(s)) + s for s in streams)


def test_a_correction_written_by_hand_is_read():
    block = low_rank_block(left=bytes([1, 0, 0, 2]), right=bytes([1, 2, 3, 0, 0, 7]))
    data = assemble(encode_header({"w": ("float32", (2, 3))}, {}, {}), [block], 0, 0)
    assert read_weights(data)["w"].tolist() == [[0.5, 1.0, 1.5], [0.0, 0.0, 7.0]]
    assert str(Artifact.from_bytes(data).tensors["w"].format) == "int4.row.rank2x4"


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"rank": 0}, "correction of rank 0"),
        ({"rank": 3}, r"correction of rank 3 to format byte 0x9c and shape \[2, 3\]"),
        ({"base": 2}, "format byte 0x02"),
        ({"base": 0xC1}, "format byte 0xc1 is unknown"),
        ({"base": 0x41}, "format byte 0x41 is unknown"),
        ({"bits": 0xC3}, "format byte 0xc3 is unknown"),
        ({"left": bytes(3)}, "holds 3 bytes where 4 belong"),
        ({"right": bytes(7)}, "holds 7 bytes where 6 belong"),
        ({"steps": bytes(4)}, "holds 4 bytes where 8 belong"),
        ({"steps": bytes(6) + b"\x80\x7f"}, "negative or too large"),
        ({"steps": bytes(6) + b"\x00\xbf"}, "negative or too large"),
        ({"left": bytes([8, 0, 0, 0])}, "beyond ±7"),
        ({"right": bytes([0x80, 0, 0, 0, 0, 0])}, "beyond ±7"),
    ],
)
def test_corrections_that_lie_are_refused(changed, says):
    header = encode_header({"w": ("float32", (2, 3))}, {}, {})
    with pytest.raises(ArtifactError, match=says):
        Artifact.from_bytes(assemble(header, [low_rank_block(**changed)], 0, 0))


def test_a_correction_takes_no_more_room_than_its_tensor():
    """A rank of 255 on one column would decode to 255 times what the header declares."""
    header = encode_header({"w": ("float32", (1 << 20, 1))}, {}, {})
    with pytest.raises(ArtifactError, match="correction of rank 255"):
        decoder.parse(assemble(header, [low_rank_block(255)], 0, 0))


def test_codes_of_other_peoples_wide_ranges_are_kept():
    codes = torch.tensor([[-32, 31, 0], [5, -1, -32]], dtype=torch.int8)
    scale = torch.tensor([0.5, 0.25], dtype=torch.float16)
    wide = QuantizedTensor(
        Uniform(6, "row", wide=True), (2, 3), torch.float32, codes, {"scale": scale}
    )
    weights = read_weights(Artifact({"w": wide}).to_bytes())
    assert torch.equal(weights["w"], codes.float() * scale.float()[:, None])


def reassemble(header: dict, blocks: bytes = b"") -> bytes:
    raw = json.dumps(header).encode()
    from packer.artifact.ans_encoder import varint

    stream = varint(len(raw)) + b"\x00" + varint(len(raw)) + raw
    return assemble(stream, [blocks], 0, 0)


@pytest.mark.parametrize(
    ("header", "says"),
    [
        ({}, "not as specified"),
        ({"tensors": [], "ties": {}, "metadata": []}, "not as specified"),
        ({"tensors": [["a", "float32"]], "ties": {}, "metadata": {}}, "not as specified"),
        ({"tensors": [["a", "quint8", [1]]], "ties": {}, "metadata": {}}, "quint8"),
        ({"tensors": [["a", "float32", [-1]]], "ties": {}, "metadata": {}}, "not as specified"),
        ({"tensors": [["a", "float32", [1.5]]], "ties": {}, "metadata": {}}, "not as specified"),
        ({"tensors": [["a", "float32", [True]]], "ties": {}, "metadata": {}}, "not as specified"),
        (
            {"tensors": [["b", "bool", [1]], ["a", "bool", [1]]], "ties": {}, "metadata": {}},
            "sorted",
        ),
        (
            {"tensors": [["a", "bool", [1]], ["a", "bool", [1]]], "ties": {}, "metadata": {}},
            "sorted",
        ),
        ({"tensors": [], "ties": {"x": "y"}, "metadata": {}}, "tie"),
        ({"tensors": [], "ties": {}, "metadata": {"x": 1}}, "texts"),
        ({"tensors": [["a", "float32", [1 << 40]]], "ties": {}, "metadata": {}}, "allow more"),
        ({"tensors": [["a", "float32", [1 << 47, 0]]], "ties": {}, "metadata": {}}, "ends early"),
        ({"tensors": [["a", "float32", [4]]], "ties": {}, "metadata": {}}, "ends early"),
        ({"tensors": [["a", "float32", [1] * 32]], "ties": {}, "metadata": {}}, "ends early"),
        ({"tensors": [["a", "float32", [1] * 33]], "ties": {}, "metadata": {}}, "has shape"),
        (
            {"tensors": [["a", "int8", [0, (1 << 48) - 1]]], "ties": {}, "metadata": {}},
            "ends early",
        ),
        ({"tensors": [["a", "int8", [0, 1 << 48]]], "ties": {}, "metadata": {}}, "has shape"),
    ],
)
def test_headers_that_lie_are_refused(header, says):
    with pytest.raises(ArtifactError, match=says):
        read_weights(reassemble(header))


def test_decoded_size_is_checked_before_anything_is_allocated():
    data = sample().to_bytes()
    with pytest.raises(ArtifactError, match="100 are allowed"):
        read_weights(data, max_bytes=100)
    weights = read_weights(data)
    total = sum(weights[one.name].nbytes for one in decoder.parse(data).tensors)
    assert read_weights(data, max_bytes=total).keys() == weights.keys()
    with pytest.raises(ArtifactError, match=f"takes {total:,} bytes and {total - 1:,} are allowed"):
        read_weights(data, max_bytes=total - 1)


def test_a_header_may_be_as_long_as_the_limit_and_no_longer(monkeypatch: pytest.MonkeyPatch):
    data = sample().to_bytes()
    length = Reader(data[len(decoder.MAGIC) + 1 + 16 :]).varint()
    monkeypatch.setattr(decoder, "MAX_HEADER_BYTES", length)
    assert read_weights(data)
    monkeypatch.setattr(decoder, "MAX_HEADER_BYTES", length - 1)
    with pytest.raises(ArtifactError, match=f"header of {length} bytes; at most {length - 1} are"):
        read_weights(data)


def test_as_many_lanes_as_the_limit_and_no_more():
    check_lanes(bytes([MOST_LANES]) + b"\xff" * (4 << MOST_LANES))
    with pytest.raises(ArtifactError, match=rf"2\^{MOST_LANES + 1} states"):
        check_lanes(bytes([MOST_LANES + 1]) + b"\xff" * (8 << MOST_LANES))


@pytest.mark.parametrize("coder", ["zstd", "brotli", "lzma", "zlib"])
def test_a_stream_holds_what_it_should_and_not_a_byte_more(coder: str):
    raw = bytes(range(200)) * 50
    number, packed = CODER_IDS[coder], compress(raw, coder)
    assert bytes(decompress(number, packed, len(raw))) == raw
    for length in (len(raw) - 1, len(raw) + 1):
        with pytest.raises(ArtifactError):
            decompress(number, packed, length)


@pytest.mark.parametrize("cut", [0, 1, 7, 8, 9, 24, 25, 40, -1, -8, -9])
def test_truncated_files_are_refused(cut):
    data = sample().to_bytes()
    with pytest.raises(ArtifactError):
        read_weights(data[:cut])


def test_other_magic_version_and_trailing_bytes_are_refused_by_name():
    data = sample().to_bytes()
    with pytest.raises(ArtifactError, match="starts with 50 4b"):
        read_weights(b"PK\x03\x04" + data)
    with pytest.raises(ArtifactError, match="version 9"):
        read_weights(data[:8] + b"\x09" + data[9:])
    with pytest.raises(ArtifactError, match="checksum"):
        read_weights(data + b"\x00")
    body = data[:-8] + b"\x00"
    with pytest.raises(ArtifactError, match="1 bytes follow the last tensor"):
        read_weights(body + hashlib.blake2b(body, digest_size=8).digest())


@settings(max_examples=300, deadline=None)
@given(
    position=st.integers(0, 10**6),
    flip=st.integers(1, 255),
    fix=st.booleans(),
    low_rank=st.booleans(),
)
def test_flipped_bytes_are_refused_or_decode(position, flip, fix, low_rank):
    """Without a new checksum every flip is caught; with one, the worst is a refusal."""
    data = bytearray((low_rank_sample if low_rank else sample)().to_bytes())
    data[position % len(data)] ^= flip
    if fix:
        data[-8:] = hashlib.blake2b(bytes(data[:-8]), digest_size=8).digest()
    try:
        weights = read_weights(bytes(data), max_bytes=1 << 20)
    except ArtifactError:
        return
    assert fix
    assert sum(weight.nbytes for weight in weights.values()) <= 2 << 20


@settings(max_examples=100, deadline=None)
@given(st.binary(max_size=200))
def test_no_bytes_crash_the_reader(junk):
    body = decoder.MAGIC + b"\x01" + junk
    with pytest.raises(ArtifactError):
        read_weights(body + hashlib.blake2b(body, digest_size=8).digest())


def test_shipped_loader_alone_gives_the_same_bits(tmp_path):
    """In an isolated interpreter where our packages cannot be imported."""
    plain = sample()
    tensors = {**plain.tensors, **low_rank_sample().tensors}
    artifact = replace(plain, tensors=tensors)
    (tmp_path / "model.pack").write_bytes(artifact.to_bytes())
    (tmp_path / "loader.py").write_text(loader_source())
    script = """
import hashlib, sys
class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "packer":
            raise ImportError("blocked: " + name)
sys.meta_path.insert(0, Blocked())
sys.path.insert(0, sys.argv[1])
import torch
from loader import read_weights
weights = read_weights(open(sys.argv[1] + "/model.pack", "rb").read())
for name in sorted(weights):
    w = weights[name].contiguous()
    bits = w.reshape(-1).view(torch.uint8).numpy().tobytes()
    print(name, w.dtype, tuple(w.shape), hashlib.sha256(bits).hexdigest())
assert not any(name.split(".")[0] == "packer" for name in sys.modules)
"""
    done = subprocess.run(
        [sys.executable, "-I", "-c", script, str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    expected = [
        f"{name} {w.dtype} {tuple(w.shape)} "
        + hashlib.sha256(w.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()
        for name, w in sorted(read_weights(artifact.to_bytes()).items())
    ]
    assert done.stdout.splitlines() == expected


def test_codes_outside_their_format_are_refused():
    codes = np.full((2, 2), 9, dtype=np.int8).tobytes()
    scales = np.ones(2, dtype=np.float16).view(np.uint8).reshape(2, 2).T.tobytes()
    block = bytes([0x80 | 3 << 3 | 4, 0, 4]) + scales + bytes([0, 4]) + codes
    data = assemble(encode_header({"w": ("float32", (2, 2))}, {}, {}), [block], 0, 0)
    with pytest.raises(ArtifactError, match=r"w: int4\.row has codes -7 to 7, found 9 to 9"):
        Artifact.from_bytes(data)
