"""Stepped formats in a file: round trip, golden and hostile bytes, what steps and codes weigh."""

import hashlib
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packer.quantizers.choice import parse_choice
from packer.quantizers.formats import STEPPED, QuantizedTensor, Stepped
from packer.quantizers.quantize import dequantize
from packer.quantizers.step_grid import steps_of

from packer.artifact import decoder
from packer.artifact.ans_encoder import encode_ans, varint
from packer.artifact.decoder import ArtifactError, read_weights
from packer.artifact.encoder import Artifact, assemble, encode_header, encode_tensor
from packer.artifact.stream_decoder import ANS, NUMPY, decode_ans
from packer.shipping.loader import loader_source

GOLDEN = Path(__file__).parents[1] / "golden" / "stepped_v1.pack"
SPELLED = sorted(STEPPED)


def patterned(rows: int, columns: int, text: str, *, reach: int, shrink: int) -> QuantizedTensor:
    """Codes of about ±reach, thinning out away from zero, without any random generator."""
    format = parse_choice(f"{text}+nearest@1").format
    assert isinstance(format, Stepped)
    line = torch.arange(rows * columns, dtype=torch.int64)
    codes = ((line * 37 % 101) * (line * 53 % 97) * reach // 9600 * (1 - 2 * (line % 2))).to(
        torch.int16
    )
    side = {
        "row": steps_of(np.arange(rows if format.rows else 1) * 7 % 41 - 60),
        "shrink": torch.tensor([shrink], dtype=torch.uint8),
    }
    if format.columns:
        side["column"] = steps_of(np.arange(columns) * 4 % 24 - 12)
    return QuantizedTensor(
        format, (rows, columns), torch.float32, codes.reshape(rows, columns), side
    )


def sample() -> Artifact:
    tensors = {
        f"w{at}": patterned(17 + at, 12 + 9 * at, text, reach=3 * 10**at, shrink=25 * at)
        for at, text in enumerate(SPELLED)
    }
    tensors["column"] = patterned(40, 1, "step.row.col", reach=4, shrink=127)
    tensors["row"] = patterned(1, 40, "step.row.col", reach=4, shrink=0)
    tensors["zeros"] = patterned(3, 3, "step.col", reach=0, shrink=0)
    return Artifact(tensors)


def test_files_come_back_with_the_same_bytes_and_weights():
    artifact = sample()
    data = artifact.to_bytes()
    again = Artifact.from_bytes(data)
    assert again.to_bytes() == data
    for name, weight in read_weights(data).items():
        quantized, found = artifact.tensors[name], again.tensors[name]
        assert found.format == quantized.format and torch.equal(found.codes, quantized.codes)
        assert sorted(found.side) == sorted(quantized.side)
        assert all(torch.equal(found.side[key], quantized.side[key]) for key in found.side)
        assert torch.equal(weight, dequantize(quantized))


def test_golden_file_is_still_written():
    """What it decodes to, tests/test_same_bytes.py holds, of every golden file."""
    assert sample().to_bytes() == GOLDEN.read_bytes()


@settings(max_examples=120)
@given(
    seed=st.integers(0, 10_000),
    rows=st.integers(0, 40),
    columns=st.integers(0, 40),
    sigma=st.sampled_from([0.0, 0.3, 2.0, 40.0, 3000.0]),
    heavy=st.booleans(),
    scaled=st.booleans(),
    numpy=st.booleans(),
)
def test_codes_of_any_size_come_back(seed, rows, columns, sigma, heavy, scaled, numpy):
    rng = np.random.default_rng(seed)
    drawn = rng.standard_t(1, size=(rows, columns)) if heavy else rng.normal(size=(rows, columns))
    codes = np.clip(np.round(drawn * sigma), -32767, 32767).astype(np.int16)
    scales = (rng.random(rows), rng.random(columns)) if scaled else (None, None)
    data = encode_ans(codes, *scales, coder="numpy" if numpy else "ans")
    coder = NUMPY if numpy else ANS
    assert np.array_equal(decode_ans(data, rows, columns, *scales, wide=True, coder=coder), codes)


def test_an_outlier_costs_bytes_not_a_table():
    codes = np.random.default_rng(0).normal(size=(64, 64)).round().astype(np.int16)
    plain = len(encode_ans(codes))
    codes[5, 7] = -32767
    assert len(encode_ans(codes)) <= plain + 16


def test_columns_are_classed_by_their_steps_for_free():
    rng = np.random.default_rng(2)
    scale = np.exp(rng.normal(size=64))
    codes = np.round(rng.normal(size=(64, 64)) * 3 * scale).astype(np.int16)
    with_scale, without = encode_ans(codes, None, scale), encode_ans(codes)
    assert with_scale[0] & 128 and not without[0] & 128
    assert len(with_scale) < len(without)


@pytest.mark.parametrize("spread", [0.0, 0.5])
def test_coded_size_is_within_half_a_percent_of_order0_entropy(spread):
    rng = np.random.default_rng(1)
    factors = np.exp(spread * rng.normal(size=(256, 1))) * np.exp(spread * rng.normal(size=256))
    codes = np.round(rng.normal(size=(256, 256)) * 1.1 * factors).astype(np.int16)
    counts = np.unique(codes, return_counts=True)[1]
    order0 = float((counts * np.log2(codes.size / counts)).sum() / 8)
    assert len(encode_ans(codes)) <= order0 * (0.98 if spread else 1.005)


def block(
    *,
    format: int = 0x63,
    shrink: int = 64,
    row: bytes = (-16).to_bytes(2, "little", signed=True) + bytes([8, 0, 2, 0, 1]),
    column: bytes = bytes([0, 0, 4, 0, 3, 0, 2, 1]),
    codes: tuple[int, bytes] | None = None,
) -> bytes:
    """A block of a weight [2, 3]: row steps 1/4 and 1/2, column steps 1, 2 and √2."""
    coder, data = codes or (1, encode_ans(np.array([[1, 0, -2], [3, -1, 0]], dtype=np.int16)))
    steps = row + (column if format & 1 else b"")
    return bytes([format, shrink]) + steps + bytes([coder]) + varint(len(data)) + data


def file_of(raw: bytes) -> bytes:
    return assemble(encode_header({"w": ("float32", (2, 3))}, {}, {}), [raw], 0, 0)


def test_a_block_written_by_hand_is_read():
    third = float(np.float32(11863283 / 2**23))
    weights = read_weights(file_of(block()))["w"]
    expected = [[0.75 / 4, 0.0, -(2 - 32 / 256) / 4 * third], [(3 - 16 / 256) / 2, -0.75, 0.0]]
    assert weights.tolist() == torch.tensor(expected).tolist()
    stored = decoder.parse(file_of(block())).tensors[0]
    assert stored.steps_bytes == 1 + 7 + 8


@pytest.mark.parametrize(
    ("changed", "says"),
    [
        ({"format": 0x68}, "format byte 0x68 is unknown"),
        ({"shrink": 128}, "shrunk by 128/256"),
        ({"row": bytes([0, 0, 3, 0, 2, 0, 1])}, "3 grid points apart"),
        ({"row": bytes([0, 0, 0, 0, 2, 0, 1])}, "0 grid points apart"),
        ({"row": bytes([0xFF, 0x7F, 1, 0, 2, 0, 1])}, "index 32767 or 32768; -384 to 383"),
        ({"row": bytes([0, 0x80, 1, 0, 2, 0, 1])}, "index -32768"),
        ({"row": bytes([0x7F, 1, 1, 0, 2, 0, 1])}, "index 383 or 384"),
        ({"row": bytes([0, 0, 1, 0, 3, 0, 1, 1])}, "holds 3 bytes where 2 belong"),
        ({"column": bytes([0, 0, 1, 0, 2, 0, 1])}, "holds 2 bytes where 3 belong"),
        ({"codes": (0, bytes(12))}, "coder 0, not from ans"),
        ({"codes": (1, b"")}, "ANS stream of 0 bytes"),
        ({"codes": (1, bytes([0, 129]))}, "starts with 0081"),
        ({"codes": (1, bytes([0, 5]))}, "damaged|table|left"),
    ],
)
def test_blocks_that_lie_are_refused(changed, says):
    data = file_of(block(**changed))
    with pytest.raises(ArtifactError, match=says):
        read_weights(data)
    with pytest.raises(ArtifactError, match=says):
        Artifact.from_bytes(data)


def test_columns_cannot_be_classed_by_steps_that_are_not_there():
    codes = np.array([[1, 0, -2], [3, -1, 0]], dtype=np.int16)
    data = bytearray(encode_ans(codes))
    data[0] |= 128
    with pytest.raises(ArtifactError, match="classed by their steps"):
        read_weights(file_of(block(format=0x62, codes=(1, bytes(data)))))


def test_an_excess_that_overflows_is_refused():
    """A stream made for a smaller reach than the one its second byte then claims."""
    codes = np.zeros((2, 3), dtype=np.int16)
    codes[0, 0] = 32767
    data = bytearray(encode_ans(codes))
    assert data[0] & 64
    data[1] += 1
    with pytest.raises(ArtifactError):
        read_weights(file_of(block(codes=(1, bytes(data)))))


@settings(max_examples=300, deadline=None)
@given(position=st.integers(0, 10**6), flip=st.integers(1, 255))
def test_flipped_bytes_are_refused_or_decode(position, flip):
    data = bytearray(sample().to_bytes())
    data[position % (len(data) - 8)] ^= flip
    data[-8:] = hashlib.blake2b(bytes(data[:-8]), digest_size=8).digest()
    try:
        weights = read_weights(bytes(data), max_bytes=1 << 20)
    except ArtifactError:
        return
    for weight in weights.values():
        assert bool(torch.isfinite(weight).all())


def test_shipped_loader_alone_gives_the_same_bits(tmp_path):
    """In an isolated interpreter, which does not see our packages."""
    (tmp_path / "model.pack").write_bytes(sample().to_bytes())
    (tmp_path / "loader.py").write_text(loader_source())
    script = """
import hashlib, sys
sys.path.insert(0, sys.argv[1])
sys.modules["packer"] = None
from loader import read_weights
weights = read_weights(open(sys.argv[1] + "/model.pack", "rb").read())
for name in sorted(weights):
    print(name, hashlib.sha256(weights[name].contiguous().numpy().tobytes()).hexdigest())
"""
    done = subprocess.run(
        [sys.executable, "-I", "-c", script, str(tmp_path)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        f"{name} {hashlib.sha256(weight.contiguous().numpy().tobytes()).hexdigest()}"
        for name, weight in sorted(read_weights(sample().to_bytes()).items())
    ]


def test_steps_take_at_most_three_hundredths_of_a_bit(shared):
    """Per weight, of matrices 256 wide, row and column steps drawn as widely as real ones are."""
    weights = torch.load(shared / "checkpoints" / "ref6x256.pt", weights_only=True)
    rng = np.random.default_rng(3)
    taken = total = 0
    for name in ("blocks.1.attn.c_q.weight", "blocks.2.mlp.fc.weight"):
        rows, columns = weights[name].shape
        side = {
            "row": steps_of(np.round(rng.normal(size=rows) * 4).astype(np.int64) * 2),
            "column": steps_of(np.round(rng.normal(size=columns) * 3).astype(np.int64)),
            "shrink": torch.zeros(1, dtype=torch.uint8),
        }
        codes = (weights[name] / 0.05).round().to(torch.int16)
        stepped = QuantizedTensor(Stepped(True, True), (rows, columns), torch.float32, codes, side)
        taken += 8 * encode_tensor(stepped).side_bytes
        total += rows * columns
    assert taken / total <= 0.03
    assert math.isclose(total, 65536 + 196608)
