"""Codes come back exactly, at the size the statistics promise, through every coder."""

import constriction
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packer.quantizers.choice import parse_choice
from packer.quantizers.quantize import quantize

from packer.artifact import stream_decoder as decoder
from packer.artifact.ans_encoder import (
    CODER_IDS,
    count_levels,
    encode_ans,
    encode_elements,
    encode_stream,
    level_counts,
    varint,
)
from packer.artifact.decoder import Reader
from packer.artifact.encoder import encode_tensor


def gaussian(seed: int, rows: int, columns: int, sigma: float) -> np.ndarray:
    drawn = np.random.default_rng(seed).normal(size=(rows, columns)) * sigma
    return np.clip(np.round(drawn), -127, 127).astype(np.int8)


def order0_bytes(codes: np.ndarray) -> float:
    counts = np.unique(codes, return_counts=True)[1]
    return float((counts * np.log2(codes.size / counts)).sum() / 8)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    rows=st.integers(0, 40),
    columns=st.integers(0, 40),
    sigma=st.sampled_from([0.0, 0.3, 2.0, 40.0]),
    coder=st.sampled_from([None, *CODER_IDS]),
    scaled=st.booleans(),
)
def test_codes_come_back(seed, rows, columns, sigma, coder, scaled):
    codes = gaussian(seed, rows, columns, sigma)
    scale = np.random.default_rng(seed).random(rows).astype(np.float32) if scaled else None
    stream = encode_stream(codes, coder, scale)
    assert np.array_equal(decoder.decode_stream(stream, rows, columns, scale), codes)
    assert encode_stream(codes, coder, scale) == stream


@pytest.mark.parametrize("sigma", [0.6, 3.0, 30.0])
@pytest.mark.parametrize("spread", [0.0, 0.5])
def test_coded_size_is_within_half_a_percent_of_order0_entropy(sigma, spread):
    rng = np.random.default_rng(1)
    factors = np.exp(spread * rng.normal(size=(256, 1))) * np.exp(spread * rng.normal(size=256))
    codes = np.clip(np.round(rng.normal(size=(256, 256)) * sigma * factors), -127, 127)
    codes = codes.astype(np.int8)
    size = len(encode_stream(codes, None)[1])
    assert size <= order0_bytes(codes) * 1.005
    if spread:
        assert size < order0_bytes(codes) * 0.98  # classes of rows and columns pay


@pytest.mark.parametrize("text", ["int8.row", "int6.row", "int6.row+kstd@12.85", "ternary.row"])
def test_real_matrices_take_less_than_their_order0_entropy(shared, text):
    """Tables, classes and framing included, over all tensors of at least 65,536 weights."""
    weights = torch.load(shared / "checkpoints" / "ref6x256.pt", weights_only=True)
    coded = entropy = 0.0
    for weight in weights.values():
        if weight.numel() >= 1 << 16:
            quantized = quantize(weight, parse_choice(text))
            encoded = encode_tensor(quantized)
            coded += encoded.size_bytes - encoded.side_bytes
            entropy += order0_bytes(quantized.codes.numpy())
    assert 0 < coded < entropy


def test_rows_are_classed_by_their_scale_for_free():
    """Where the scale tells a row's spread, no stored class is needed."""
    rng = np.random.default_rng(2)
    scale = np.exp(rng.normal(size=64)).astype(np.float32)
    codes = np.round(rng.normal(size=(64, 64)) * 3 * scale[:, None]).clip(-127, 127).astype(np.int8)
    with_scale, without = encode_ans(codes, scale), encode_ans(codes, None)
    assert with_scale[0] & 3 == 1
    assert len(with_scale) < len(without)


@settings(max_examples=30, deadline=None)
@given(
    itemsize=st.sampled_from([1, 2, 4, 8, 16]), count=st.integers(0, 300), seed=st.integers(0, 99)
)
def test_elements_come_back_from_byte_planes(itemsize, count, seed):
    elements = np.random.default_rng(seed).integers(0, 256, (count, itemsize), dtype=np.uint8)
    stream = encode_elements(elements, None)
    assert np.array_equal(decoder.decode_elements(stream, count, itemsize), elements)
    assert len(stream[1]) <= elements.size  # incompressible bytes are kept raw


@given(st.integers(0, 2**62))
def test_varint_comes_back(value):
    assert Reader(varint(value)).varint() == value


def test_levels_are_increasing_counts_with_two_bits_of_mantissa():
    values = level_counts()
    assert list(values[:16]) == [0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28]
    assert (np.diff(values) > 0).all()
    counts = np.arange(1, 100_000)
    nearest = values[count_levels(counts)]
    assert (np.abs(nearest - counts) <= counts / 8).all()


@pytest.mark.parametrize("reach", [1, 3, 128])
def test_tables_are_read_as_they_were_written(reach):
    """The decoder's one-by-one predictions equal those the encoder made from the whole table."""
    codes = gaussian(reach, 64, 64, reach / 3).clip(-reach, min(reach, 127))
    codes[0, 0] = -reach if reach == 128 else reach
    assert np.array_equal(decoder.decode_ans(encode_ans(codes, None), 64, 64, None), codes)


def reference_decode(words: list[int], counts: list[int], amount: int) -> list[int]:
    """constriction's default ANS and its fast model, in integers and one float64 product.

    State of 64 bits, words of 32, probabilities of 24 bits. The cumulative count of each symbol is
    scaled by (2^24 - symbols) / total and truncated, and each symbol gets one unit more.
    """
    precision, alphabet = 24, len(counts)
    scale = float((1 << precision) - alphabet) / float(sum(counts))
    left = [int(float(sum(counts[:i])) * scale) + i for i in range(alphabet)] + [1 << precision]
    stack = list(words)
    state = 0
    while stack and state < 1 << 32:
        state = state << 32 | stack.pop()
    found = []
    for _ in range(amount):
        quantile = state & (1 << precision) - 1
        symbol = max(i for i in range(alphabet) if left[i] <= quantile)
        found.append(symbol)
        width = left[symbol + 1] - left[symbol]
        state = (state >> precision) * width + quantile - left[symbol]
        if state < 1 << 32 and stack:
            state = state << 32 | stack.pop()
    return found


@pytest.mark.parametrize(
    "counts", [[5, 1], [1, 1, 1, 1], [100, 40, 7, 1, 1], [3] * 255, [1 << 30, 1, 0, 7]]
)
def test_a_small_integer_decoder_reads_our_streams(counts):
    possible = [i for i, count in enumerate(counts) if count]
    symbols = np.random.default_rng(3).choice(possible, 500).astype(np.int32)
    coder = constriction.stream.stack.AnsCoder()
    coder.encode_reverse(symbols, decoder.categorical(np.array(counts)))
    words = coder.get_compressed().tolist()
    assert reference_decode(words, counts, 500) == symbols.tolist()


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "starts with"),
        (b"\x00\x05\x00", "32-bit words"),
        (b"\x00\x81" + bytes(4), "starts with"),
        (b"\x40\x05" + bytes(4), "starts with"),
        (b"\x00\x05" + bytes(4), "damaged"),
        (b"\x01\x05\x01\x00\x00\x00", "classed by their scales"),
        (b"\x03\x05\x01\x00\x00\x00", "at most 8"),
        (b"\x00\x05" + b"\xff" * 400, "data left"),
    ],
)
def test_damaged_ans_streams_are_refused(data, says):
    with pytest.raises(decoder.ArtifactError, match=says):
        decoder.decode_ans(data, 16, 4, None)


@settings(max_examples=300, deadline=None)
@given(data=st.binary(max_size=64), rows=st.integers(0, 9), columns=st.integers(0, 9))
def test_no_bytes_crash_the_ans_decoder(data, rows, columns):
    try:
        codes = decoder.decode_ans(data, rows, columns, None)
    except decoder.ArtifactError:
        return
    assert codes.shape == (rows, columns)


@pytest.mark.parametrize("coder", ["zstd", "brotli", "lzma", "zlib"])
def test_decompression_is_bounded_and_exact(coder):
    raw = bytes(100_000)
    packed = encode_stream(np.frombuffer(raw, np.int8).reshape(1, -1), coder)[1]
    number = CODER_IDS[coder]
    assert decoder.decompress(number, packed, 100_000) == raw
    with pytest.raises(decoder.ArtifactError, match=r"where 100 belong|does not end"):
        decoder.decompress(number, packed, 100)
    with pytest.raises(decoder.ArtifactError):
        decoder.decompress(number, packed, 100_001)
    for cut in (0, 1, len(packed) // 2, len(packed) - 1):
        with pytest.raises(decoder.ArtifactError):
            decoder.decompress(number, packed[:cut], 100_000)
    with pytest.raises(decoder.ArtifactError):
        decoder.decompress(number, b"\x07garbage" * 3, 100)
