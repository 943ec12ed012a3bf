"""Trellis formats in a file: round trip, golden and hostile bytes, and the loader."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packer.quantizers.choice import parse_choice
from packer.quantizers.formats import TRELLIS, QuantizedTensor, Stepped
from packer.quantizers.quantize import dequantize, quantize
from packer.quantizers.step_grid import steps_of
from packer.quantizers.trellis_path import NEXT_STATE, codes_of

from packer.artifact.decoder import ArtifactError, read_weights
from packer.artifact.encoder import Artifact, encode_tensor
from packer.artifact.trellis_decoder import decode_trellis
from packer.artifact.trellis_encoder import encode_trellis
from packer.shipping.loader import loader_source, minified_loader, parts_of

GOLDEN = Path(__file__).parents[1] / "golden" / "trellis_v1.pack"
CODERS = {"ans": 1, "numpy": 6}


def on_path(symbols: np.ndarray) -> np.ndarray:
    """int16 codes of symbols [rows, columns]."""
    states, codes = np.zeros(symbols.shape[1], dtype=np.int64), np.empty(symbols.shape, np.int16)
    for row, of_row in enumerate(symbols):
        codes[row] = codes_of(of_row, states)
        states = NEXT_STATE[states, of_row & 1]
    return codes


def patterned(rows: int, columns: int, text: str, reach: int) -> QuantizedTensor:
    """Symbols of about ±reach, thinning out away from zero, without any random generator."""
    format = TRELLIS[text]
    assert isinstance(format, Stepped)
    line = np.arange(rows * columns)
    symbols = (line * 37 % 101) * (line * 53 % 97) * reach // 9600 * (1 - 2 * (line % 2))
    side = {
        "row": steps_of(np.arange(rows if format.rows else 1) * 7 % 41 - 60),
        "shrink": torch.zeros(1, dtype=torch.uint8),
    }
    if format.columns:
        side["column"] = steps_of(np.arange(columns) * 4 % 24 - 12)
    codes = torch.from_numpy(on_path(symbols.reshape(rows, columns)))
    return QuantizedTensor(format, (rows, columns), torch.float32, codes, side)


def sample() -> Artifact:
    tensors = {
        f"w{at}": patterned(17 + at, 12 + 9 * at, text, 3 * 10**at)
        for at, text in enumerate(sorted(TRELLIS))
    }
    tensors["column"] = patterned(40, 1, "trellis.row.col", 4)
    tensors["row"] = patterned(1, 40, "trellis.row.col", 4)
    tensors["zeros"] = patterned(3, 3, "trellis.col", 0)
    return Artifact(tensors)


def test_files_come_back_with_the_same_bytes_and_weights():
    artifact = sample()
    data = artifact.to_bytes()
    again = Artifact.from_bytes(data)
    assert again.to_bytes() == data
    for name, weight in read_weights(data).items():
        assert again.tensors[name].format == artifact.tensors[name].format
        assert torch.equal(again.tensors[name].codes, artifact.tensors[name].codes)
        assert torch.equal(weight, dequantize(artifact.tensors[name]))


def test_golden_file_is_still_written():
    """What it decodes to, tests/test_same_bytes.py holds, of every golden file."""
    assert sample().to_bytes() == GOLDEN.read_bytes()


@settings(deadline=None, max_examples=60)
@given(
    st.integers(1, 40),
    st.integers(1, 40),
    st.integers(0, 999),
    st.sampled_from([0.3, 1.0, 4.0, 60.0]),
    st.integers(0, 16_000),
    st.sampled_from(sorted(CODERS)),
)
def test_streams_come_back(rows, columns, seed, spread, outlier, coder):
    generator = np.random.default_rng(seed)
    symbols = np.rint(generator.normal(size=(rows, columns)) * spread).astype(np.int64)
    symbols.flat[seed % symbols.size] = outlier
    codes = on_path(symbols)
    scale, column_scale = generator.random(rows), generator.random(columns)
    data = encode_trellis(codes, scale, column_scale, coder)
    found = decode_trellis(data, rows, columns, scale, column_scale, CODERS[coder])
    assert found.dtype == np.int16 and np.array_equal(found, codes)


@settings(deadline=None, max_examples=100)
@given(st.data())
def test_damaged_streams_decode_or_are_refused(data):
    symbols = np.arange(12 * 9).reshape(12, 9) % 7 - 3
    stream = bytearray(
        encode_trellis(on_path(symbols), coder=(name := data.draw(st.sampled_from(sorted(CODERS)))))
    )
    stream[data.draw(st.integers(0, len(stream) - 1))] ^= data.draw(st.integers(1, 255))
    kept = bytes(stream[: data.draw(st.integers(0, len(stream)))])
    try:
        found = decode_trellis(kept, 12, 9, None, None, CODERS[name])
    except ArtifactError:
        return
    assert found.shape == (12, 9) and np.abs(found.astype(int)).max() <= 32767


def test_lengths_are_within_a_hundredth_of_the_entropy_of_symbols():
    generator = np.random.default_rng(5)
    symbols = np.rint(generator.normal(size=(256, 256)) * 1.5).astype(np.int64)
    counts = np.unique(symbols, return_counts=True)[1]
    bits = (counts * np.log2(symbols.size / counts)).sum()
    assert 8 * len(encode_trellis(on_path(symbols))) < 1.01 * bits


@pytest.mark.parametrize("coder", sorted(CODERS))
def test_the_loader_holds_the_trellis_only_where_it_is_used(coder):
    texts = [f"trellis.row.col~{coder}+nearest@0.4"]
    choice = parse_choice(texts[0])
    weight = torch.randn(48, 32, generator=torch.Generator().manual_seed(1))
    artifact = Artifact({"w": quantize(weight, choice)}, coders={"w": choice.coder})
    space: dict[str, object] = {}
    exec(loader_source(parts_of(texts)), space)  # the source that we ship
    read = space["read_weights"]
    assert callable(read)
    found = torch.as_tensor(read(artifact.to_bytes())["w"])
    assert torch.equal(found, dequantize(artifact.tensors["w"]))
    scalar = parts_of([f"step.row.col~{coder}+nearest@0.4"])
    assert parts_of(texts) - scalar == {"trellis"}
    assert len(minified_loader(scalar)) < len(minified_loader(parts_of(texts))) - 300
    assert encode_tensor(artifact.tensors["w"], choice.coder).coder == coder
