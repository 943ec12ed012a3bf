"""Coder 6: bit-exact both ways, as small as constriction's, and refused by name when damaged."""

import hashlib
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from packer.quantizers.choice import parse_choice
from packer.quantizers.quantize import dequantize, quantize

import packer
from packer.artifact.ans_encoder import CODER_IDS, encode_ans
from packer.artifact.decoder import ArtifactError, parse, read_weights
from packer.artifact.encoder import Artifact, encode_tensor
from packer.artifact.numpy_decoder import read_arrays
from packer.artifact.rans_decoder import LaneDecoder, lane_frequencies, lane_model
from packer.artifact.rans_encoder import LaneEncoder, lane_counts
from packer.artifact.stream_decoder import NUMPY, decode_ans
from packer.cli import main
from packer.planning.plan import read_plan
from packer.shipping.loader import gives_arrays, loader_source, minified_loader, parts_of

GOLDEN = Path(__file__).parents[1] / "golden" / "numpy_v1.pack"
CHOICES = {
    "stepped": "step.row.col~numpy+nearest@0.3",
    "rows": "int6.row~numpy",
    "corrected": "int4.row.rank2x4~numpy",
    "wide": "int8.tensor~numpy",
    "kept": "fp16~numpy",
    "exact": "fp32~numpy",
}


def patterned(rows: int, columns: int) -> torch.Tensor:
    """Sums of a few integer patterns over a power of two: the same floats anywhere."""
    i, j = torch.arange(rows)[:, None], torch.arange(columns)[None, :]
    return (((i * 37 + j * 91) % 113 - 56) * ((i * j) % 7 + 1)).float() / 1024


def sample() -> Artifact:
    weights = {name: patterned(24, 40) for name in CHOICES}
    weights["kept"] = patterned(1, 5)[0]
    tensors = {n: quantize(w, parse_choice(CHOICES[n])) for n, w in weights.items()}
    return Artifact(tensors, coders=dict.fromkeys(tensors, "numpy"))


def decoded(data: bytes, shape: tuple[int, int], *scales: np.ndarray | None) -> np.ndarray:
    both = scales or (None, None)
    return decode_ans(data, *shape, *both, wide=True, coder=NUMPY)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    lanes=st.sampled_from([1, 2, 8, 64, 1024]),
    lengths=st.lists(st.integers(0, 300), max_size=6),
    single=st.lists(st.integers(0, 3), max_size=5),
)
def test_symbols_of_any_model_come_back_in_order(seed, lanes, lengths, single):
    """Runs of symbols, then symbols one by one, over any number of lanes."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, 2, size=(len(lengths) + 1, 4)) * rng.integers(1, 2**33, size=4)
    counts[:, 3] += 1
    runs = [rng.choice(np.flatnonzero(c), size=n) for c, n in zip(counts, lengths, strict=False)]
    one = [symbol if counts[-1][symbol] else 3 for symbol in single]
    encoder = LaneEncoder(lanes)
    encoder.encode_each(one, [lane_counts(counts[-1])] * len(one))
    for run, count in zip(reversed(runs), reversed(counts[:-1]), strict=True):
        encoder.encode_reverse(run, lane_counts(count))
    decoder = LaneDecoder(encoder.data())
    for run, count in zip(runs, counts, strict=False):
        assert np.array_equal(decoder.decode(lane_model(count), len(run)), run)
    assert [int(decoder.decode(lane_model(counts[-1]), 1)[0]) for _ in one] == one
    assert decoder.is_empty()


def test_frequencies_are_as_specified_and_fill_all_slots():
    counts = np.array([0, 1, 0, 1 << 33, 5, 0])
    frequencies = lane_frequencies(counts)
    total, left = int(counts.sum()), 2**14 - 3
    begins = [0, left * 1 // total + 1, left * (total - 5) // total + 2]
    assert frequencies.tolist() == [0, begins[1], 0, begins[2] - begins[1], 2**14 - begins[2], 0]
    assert frequencies.sum() == 2**14


def test_three_symbols_decoded_by_hand():
    """Two lanes, a coin of slots 0 to 8191 and 8192 to 16383; lane 0 takes a word at the end."""
    states = np.array([65536 + 8192, 3 * 65536 + 5], "<u4").tobytes()
    decoder = LaneDecoder(b"\x01" + states + np.array([7], "<u2").tobytes())
    assert decoder.decode(lane_model(np.ones(2, int)), 3).tolist() == [1, 0, 0]
    first = 8192 * (73728 >> 14)  # 32768, below 2^16: the word goes in
    assert decoder.states.tolist() == [8192 * ((first << 16 | 7) >> 14) + 7, 8192 * 12 + 5]
    assert decoder.at == 1


def test_golden_file_is_still_written():
    """What it decodes to, tests/test_same_bytes.py holds, of every golden file."""
    assert sample().to_bytes() == GOLDEN.read_bytes()


def test_no_stream_needs_constriction_or_a_package():
    stored = parse(sample().to_bytes())
    for tensor in stored.tensors:
        streams = [tensor.codes, tensor.scale, *tensor.factors, *(s.stream for s in tensor.steps)]
        coders = {stream[0] for stream in streams if stream is not None}
        assert coders <= {CODER_IDS[name] for name in ("raw", "numpy", "lzma", "zlib")}


@pytest.mark.parametrize("spread", [0.0, 0.3])
@pytest.mark.parametrize(("size", "sigma"), [(256, 0.4), (256, 1.5), (512, 5.0)])
def test_it_takes_at_most_half_a_percent_more_than_constriction(size, sigma, spread):
    rng = np.random.default_rng(4)
    factors = np.exp(spread * rng.normal(size=(size, 1))) * np.exp(spread * rng.normal(size=size))
    codes = np.round(rng.normal(size=(size, size)) * sigma * factors).astype(np.int16)
    assert len(encode_ans(codes, coder="numpy")) <= 1.005 * len(encode_ans(codes))


def test_small_streams_have_one_lane():
    codes = np.round(np.random.default_rng(0).normal(size=(16, 16))).astype(np.int16)
    data = encode_ans(codes, coder="numpy")
    assert data[2] == 0 and len(data) <= len(encode_ans(codes))


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "2\\^\\? states"),
        (b"\x0b" + bytes(9), "2\\^11 states; at most 2\\^10"),
        (b"\x01" + bytes(4), "5 bytes do not hold 2 states"),
        (b"\x00\x00\x00\x01\x00\x00", "6 bytes do not hold 1 states"),
        (b"\x00\xff\xff\x00\x00", "interleaved state of an ANS stream is too small"),
    ],
)
def test_lanes_that_no_encoder_writes_are_refused(data, says):
    with pytest.raises(ArtifactError, match=says):
        LaneDecoder(data)


def test_streams_that_end_early_or_late_are_refused():
    codes = np.round(np.random.default_rng(0).normal(size=(64, 64)) * 9).astype(np.int16)
    data = encode_ans(codes, coder="numpy")
    with pytest.raises(ArtifactError, match="ends before its last symbol"):
        decoded(data[:-2], (64, 64))
    with pytest.raises(ArtifactError, match="data left after its last symbol"):
        decoded(data + b"\x00\x00", (64, 64))


@settings(max_examples=150, deadline=None)
@given(data=st.binary(max_size=64), rows=st.integers(0, 9), columns=st.integers(0, 9))
def test_no_bytes_crash_the_decoder(data, rows, columns):
    try:
        codes = decoded(data, (rows, columns))
    except ArtifactError:
        return
    assert codes.shape == (rows, columns)


@settings(max_examples=100, deadline=None)
@given(position=st.integers(0, 10**6), flip=st.integers(1, 255))
def test_flipped_bytes_are_refused_or_decode(position, flip):
    data = bytearray(sample().to_bytes())
    data[position % (len(data) - 8)] ^= flip
    data[-8:] = hashlib.blake2b(bytes(data[:-8]), digest_size=8).digest()
    try:
        weights = read_weights(bytes(data), max_bytes=1 << 20)
    except ArtifactError:
        return
    assert all(bool(torch.isfinite(weight).all()) for weight in weights.values())


def test_choices_with_the_coder_decode_to_the_same_weights():
    for text in CHOICES.values():
        weight = patterned(24, 40)
        plain, other = (
            quantize(weight, parse_choice(t)) for t in (text, text.replace("~numpy", ""))
        )
        assert torch.equal(dequantize(plain), dequantize(other))
        assert str(parse_choice(text)) == text
        assert encode_tensor(plain, "numpy").coder in ("numpy", "raw", "lzma", "zlib")


def test_commands_plan_pack_and_ship_it(tmp_path, monkeypatch):
    """Sizes are of this coder, the file holds no other, and its loader asks for numpy alone."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    torch.save({"a.weight": torch.randn(64, 96), "norm": torch.ones(64)}, "model.pt")
    arguments = [
        "plan",
        "model.pt",
        "--cap",
        "12KB",
        "--loader",
        "--coder",
        "numpy",
        "-o",
        "p.json",
    ]
    done = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    made = read_plan("p.json")
    assert all("~numpy" in choice for choice in made.choices.values())
    arguments = ["pack", "model.pt", "--plan", "p.json", "-o", "m.pack", "--loader", "loader.py"]
    done = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert done.exit_code == 0 and "over" not in done.output.lower(), done.output
    assert Path("m.pack").stat().st_size == made.plan.artifact_bytes
    assert Path("loader.py").read_text() == loader_source(parts_of(made.choices.values()))
    script = """
import sys
for name in ("packer", "torch", "constriction", "brotli", "zstandard"):
    sys.modules[name] = None
sys.path.insert(0, ".")
from loader import read_weights
for name, weight in sorted(read_weights(open("m.pack", "rb").read()).items()):
    print(name, weight.dtype, weight.shape, weight.tobytes().hex())
"""
    run = subprocess.run([sys.executable, "-I", "-c", script], capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    weights = packer.unpack("m.pack")
    expected = [
        f"{name} float32 {tuple(weights[name].shape)} {weights[name].numpy().tobytes().hex()}"
        for name in sorted(weights)
    ]
    assert run.stdout.splitlines() == expected


DTYPES = ("float32", "float16", "bfloat16", "float64")
EVERY_FORMAT = (
    *("raw", "fp32", "fp16", "bf16", "int6.row", "int5.tensor", "int4.row.scale32", "ternary.row"),
    *("int4.row.rank2x4", "step", "step.row.col", "trellis.row.col", "int8.tensor.wide"),
)


def every_artifact() -> Artifact:
    """Every format in every dtype that it takes, scalars, and dtypes that are only kept."""
    torch.manual_seed(5)
    tensors = {}
    for dtype in DTYPES:
        weight = torch.randn(24, 40).to(getattr(torch, dtype))
        weight[0, :3] = torch.tensor([0.0, -0.0, 1e-5])
        for text in EVERY_FORMAT:
            rounded = "+nearest@0.4" if text.startswith(("step", "trellis")) else ""
            tensors[f"{dtype} {text}"] = quantize(weight, parse_choice(text + rounded))
        bits = torch.arange(-(2**15), 2**15, 37, dtype=torch.int16)
        tensors[f"{dtype} bits"] = quantize(
            bits.view(torch.bfloat16).nan_to_num(posinf=9, neginf=-9).to(weight.dtype),
            parse_choice("raw"),
        )
    tensors["mask"] = quantize(torch.full((2, 9), -torch.inf).bfloat16(), parse_choice("fp32"))
    tensors["scalar"] = quantize(torch.tensor(1.5, dtype=torch.bfloat16), parse_choice("fp32"))
    for dtype in ("float8_e4m3fn", "complex64", "bool", "int8", "uint16", "int64"):
        kept = torch.arange(12).reshape(3, 4).to(getattr(torch, dtype))
        tensors[dtype] = quantize(kept, parse_choice("raw"))
    coders = dict.fromkeys(tensors, "numpy")
    return Artifact(tensors, {"tied": "scalar"}, {"key": "text"}, coders)


def digest(weight: np.ndarray) -> str:
    return f"{weight.shape} {hashlib.sha256(weight.tobytes()).hexdigest()}"


def as_bits(weight: torch.Tensor) -> np.ndarray:
    """The tensor in the dtype of the loader's array."""
    if weight.dtype == torch.bfloat16:
        return weight.view(torch.int16).numpy().view(np.uint16)
    return (weight.view(torch.uint8) if "float8" in str(weight.dtype) else weight).numpy()


def test_the_loader_needs_numpy_alone_and_gives_the_bits_of_the_torch_decoder(tmp_path):
    data = every_artifact().to_bytes()
    wanted = {name: as_bits(weight) for name, weight in read_weights(data).items()}
    found = read_arrays(data)
    assert {name: (a.dtype, digest(a)) for name, a in found.items()} == {
        name: (a.dtype, digest(a)) for name, a in wanted.items()
    }
    assert found["tied"] is found["scalar"] and found["scalar"].shape == ()
    texts = [f"{text}~numpy" for text in EVERY_FORMAT]
    (tmp_path / "loader.py").write_text(loader_source(parts_of(texts)))
    (tmp_path / "m.pack").write_bytes(data)
    script = """
import hashlib, sys
for name in ("packer", "torch", "constriction", "brotli", "zstandard", "scipy", "numba"):
    sys.modules[name] = None
sys.path.insert(0, sys.argv[1])
from loader import read_weights
for name, a in sorted(read_weights(open(sys.argv[1] + "/m.pack", "rb").read()).items()):
    print(name, a.dtype, a.shape, hashlib.sha256(a.tobytes()).hexdigest())
"""
    command = [sys.executable, "-I", "-c", script, str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    assert run.stdout.splitlines() == [
        f"{name} {a.dtype} {digest(a)}" for name, a in sorted(wanted.items())
    ]


def test_the_loader_of_a_usual_plan_is_small():
    usual = parts_of(["step.row.col~numpy", "int8.row~numpy", "fp16~numpy"])
    assert len(loader_source(usual)) <= 3_750
    assert gives_arrays(usual) and not gives_arrays(parts_of(["step.row.col", "fp16~numpy"]))
    assert "torch" not in minified_loader(usual)


def test_arrays_of_damaged_files_are_refused_as_tensors_are():
    data = every_artifact().to_bytes()
    for damaged in (data[:-9], data[1:], data[:100] + b"\xff" + data[101:], b""):
        with pytest.raises(ArtifactError) as arrays:
            read_arrays(damaged)
        with pytest.raises(ArtifactError) as tensors:
            read_weights(damaged)
        assert str(arrays.value) == str(tensors.value)
