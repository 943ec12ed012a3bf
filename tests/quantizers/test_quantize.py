"""One list of checks for every format, then the range rules against slow twins."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packer.quantizers.choice import parse_choice
from packer.quantizers.clip import PERCENTILES
from packer.quantizers.formats import FormatError, QuantizedTensor, Uniform
from packer.quantizers.prune import prune_smallest
from packer.quantizers.quantize import dequantize, encode, quantize

SCALED = [
    *(f"int{bits}.{axis}" for bits in range(2, 9) for axis in ("row", "tensor")),
    "int6.row.wide",
    "int8.row.scale32",
    "int8.row+kstd@12.85",
    "int5.row+percentile",
    "int5.row+percentile-matrix",
    "int4.row+mse",
    "int6.row+prune@0.1",
    "int6.row+reach@20",
    "int5.row+percentile+reach@3",
    "ternary.row",
    "ternary.row+absmean",
]


def weights(seed: int, rows: int, columns: int, scale: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return scale * torch.randn(rows, columns, generator=generator)


@pytest.mark.parametrize("text", SCALED)
@settings(max_examples=15, deadline=None)
@given(
    seed=st.integers(0, 1000),
    rows=st.integers(1, 6),
    columns=st.integers(1, 9),
    scale=st.sampled_from([1e-9, 1e-4, 1.0, 3e4]),
)
def test_requantizing_a_decoded_tensor_with_its_scales_gives_the_same_codes(
    text, seed, rows, columns, scale
):
    choice = parse_choice(text)
    quantized = quantize(weights(seed, rows, columns, scale), choice)
    decoded = dequantize(quantized)
    assert torch.isfinite(decoded).all()
    again = encode(decoded, choice, quantized.side["scale"])
    has_scale = (quantized.side["scale"].float() > 0).expand(rows)
    assert torch.equal(again[has_scale], quantized.codes[has_scale])
    assert not decoded[~has_scale].any()


@pytest.mark.parametrize("text", SCALED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("shape", [(), (5,), (3, 4), (2, 3, 4)])
def test_shape_and_dtype_come_back(text, dtype, shape):
    weight = torch.linspace(-1, 1, max(1, torch.Size(shape).numel())).reshape(shape).to(dtype)
    decoded = dequantize(quantize(weight, parse_choice(text)))
    assert decoded.shape == weight.shape
    assert decoded.dtype == dtype


@pytest.mark.parametrize("text", SCALED)
def test_rows_of_zeros_stay_zero(text):
    weight = weights(0, 4, 8, 1.0)
    weight[1] = 0
    decoded = dequantize(quantize(weight, parse_choice(text)))
    assert not decoded[1].any()
    assert decoded[0].any()


@pytest.mark.parametrize(
    "dtype",
    [
        *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn),
        *(torch.float8_e5m2, torch.complex64, torch.int64, torch.int8, torch.uint16, torch.bool),
    ],
)
@pytest.mark.parametrize("shape", [(), (0,), (3, 0), (2, 5)])
def test_raw_keeps_every_bit_of_every_dtype(dtype, shape):
    count = torch.Size(shape).numel()
    weight = (torch.arange(count) % 2).reshape(shape).to(dtype)
    decoded = dequantize(quantize(weight, parse_choice("raw")))
    assert (decoded.dtype, decoded.shape) == (dtype, weight.shape)
    flat_decoded, flat_weight = decoded.reshape(-1), weight.reshape(-1)
    assert torch.equal(flat_decoded.view(torch.uint8), flat_weight.view(torch.uint8))


@pytest.mark.parametrize("text", ["fp16", "bf16", "fp32"])
def test_passthrough_is_a_cast(text):
    weight = weights(3, 4, 5, 1.0)
    dtype = {"fp16": torch.float16, "bf16": torch.bfloat16, "fp32": torch.float32}[text]
    decoded = dequantize(quantize(weight, parse_choice(text)))
    assert torch.equal(decoded, weight.to(dtype).float())


def test_no_floor_on_the_scale():
    """Weights far below 1/31 keep a step of their own: halving them halves the step exactly."""
    weight = weights(1, 8, 64, 1e-3)
    full = quantize(weight, parse_choice("int6.row.scale32"))
    half = quantize(weight / 2, parse_choice("int6.row.scale32"))
    assert torch.equal(full.side["scale"], 2 * half.side["scale"])
    assert torch.equal(full.codes, half.codes)
    assert full.codes.unique().numel() > 30


def test_scale_too_small_for_float16_rounds_up_not_to_zero():
    quantized = quantize(torch.full((1, 4), 1e-7), parse_choice("int8.row"))
    assert float(quantized.side["scale"]) == 2.0**-24
    assert dequantize(quantized).any()


def test_banks_have_rows_over_all_leading_axes():
    bank = weights(2, 6, 4, 1.0).reshape(2, 3, 4)
    assert torch.equal(
        quantize(bank, parse_choice("int6.row")).codes,
        quantize(bank.reshape(6, 4), parse_choice("int6.row")).codes,
    )


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("seed", range(4))
def test_least_squares_scale_is_the_best_of_all_float16_scales(bits, seed):
    weight = weights(seed, 3, 7, 10.0 ** (-seed))
    if seed == 0:
        weight[0] = torch.tensor([1.0, 2, 0, 0, 0, 1, 2])  # the exact scale is far above absmax
    found = dequantize(quantize(weight, parse_choice(f"int{bits}.row+mse")))
    error = (found - weight).double().square().sum(1)
    code_max = 2 ** (bits - 1) - 1
    every_scale = torch.arange(1, 0x7C00, dtype=torch.int16).view(torch.float16).float()[:, None]
    for row, row_error in zip(weight, error, strict=True):
        codes = (row / every_scale).round().clamp(-code_max, code_max)
        best = (codes * every_scale - row).double().square().sum(1).min()
        assert row_error <= best * (1 + 1e-5) + 1e-30


def test_ternary_scale_beats_every_number_of_kept_weights():
    weight = weights(5, 4, 9, 1.0)
    error = (dequantize(quantize(weight, parse_choice("ternary.row"))) - weight).square().sum(1)
    for row, row_error in zip(weight, error, strict=True):
        ordered = row.abs().sort(descending=True).values
        for kept in range(1, 10):
            scale = ordered[:kept].mean()
            best = ((ordered[:kept] - scale) ** 2).sum() + (ordered[kept:] ** 2).sum()
            assert row_error <= best * 1.01  # the stored scale is rounded to float16


def test_percentile_per_row_is_never_worse_than_per_matrix():
    weight = weights(7, 16, 2048, 1.0)
    weight[3] *= 0.01
    weight[3, :2] = 1.0  # two weights that matter: clipping them only hurts this row
    errors = {}
    for rule in ("percentile", "percentile-matrix"):
        decoded = dequantize(quantize(weight, parse_choice(f"int5.row+{rule}")))
        errors[rule] = (decoded - weight).square().sum(1)
    assert (errors["percentile"] <= errors["percentile-matrix"] * (1 + 1e-6)).all()
    assert errors["percentile"][3] < errors["percentile-matrix"][3]


def test_percentile_is_the_best_of_the_five():
    weight = weights(8, 3, 5000, 1.0)
    error = (dequantize(quantize(weight, parse_choice("int4.row+percentile"))) - weight).square()
    for row, row_error in zip(weight, error.sum(1), strict=True):
        candidates = []
        for fraction in PERCENTILES:
            scale = (torch.quantile(row.abs(), fraction) / 7).half().float()
            codes = (row / scale).round().clamp(-7, 7)
            candidates.append((codes * scale - row).square().sum())
        assert row_error == pytest.approx(float(min(candidates)), rel=1e-3)


def test_kstd_scale_is_k_standard_deviations():
    weight = weights(9, 5, 300, 0.1)
    scale = quantize(weight, parse_choice("int6.row+kstd@12.85")).side["scale"].float()
    assert torch.allclose(scale * 31, 12.85 * weight.std(dim=1), rtol=1e-3)


@given(st.integers(0, 50), st.floats(0, 0.99))
@settings(max_examples=40, deadline=None)
def test_prune_zeroes_exactly_the_smallest(seed, fraction):
    weight = weights(seed, 4, 6, 1.0)
    pruned = prune_smallest(weight, fraction)
    count = int(fraction * 24)
    assert int((pruned == 0).sum()) == count
    kept = pruned != 0
    assert torch.equal(pruned[kept], weight[kept])
    if 0 < count < 24:
        assert weight[~kept].abs().max() <= weight[kept].abs().min()


def test_prune_breaks_ties_by_position():
    assert prune_smallest(torch.tensor([1.0, -1.0, 1.0, 1.0]), 0.5).tolist() == [0, 0, 1, 1]


@pytest.mark.parametrize("rule", ["absmax", "percentile", "kstd@3", "mse"])
def test_reach_limits_codes_and_their_step(rule):
    weight = weights(10, 6, 400, 0.1)
    few = quantize(weight, parse_choice(f"int6.row+{rule}+reach@7"))
    same = quantize(weight, parse_choice(f"int4.row+{rule}"))
    assert int(few.codes.abs().max()) == 7
    assert torch.equal(few.codes, same.codes)
    assert torch.equal(few.side["scale"], same.side["scale"])


def test_integers_need_raw():
    with pytest.raises(FormatError, match="use raw"):
        quantize(torch.arange(4), parse_choice("int8.row"))
    with pytest.raises(FormatError, match="use raw"):
        quantize(torch.arange(4), parse_choice("fp16"))


def test_quantized_tensor_checks_its_parts():
    format = Uniform(4, "row")
    codes = torch.zeros(2, 3, dtype=torch.int8)
    scale = torch.ones(2, dtype=torch.float16)
    QuantizedTensor(format, (2, 3), torch.float32, codes, {"scale": scale})
    with pytest.raises(FormatError, match="codes -7 to 7, found 0 to 8"):
        QuantizedTensor(
            format, (2, 3), torch.float32, codes.index_fill(0, torch.tensor(1), 8), {"scale": scale}
        )
    with pytest.raises(FormatError, match=r"stores int8 codes \[3, 2\]"):
        QuantizedTensor(format, (3, 2), torch.float32, codes, {"scale": scale})
    with pytest.raises(FormatError, match=r"scales \[2\]"):
        QuantizedTensor(format, (2, 3), torch.float32, codes, {"scale": scale[:1]})
    with pytest.raises(FormatError, match="negative"):
        QuantizedTensor(format, (2, 3), torch.float32, codes, {"scale": -scale})
    with pytest.raises(FormatError, match="one side value"):
        QuantizedTensor(format, (2, 3), torch.float32, codes)


@pytest.mark.parametrize("fraction", [0.5, 0.9995, 1.0])
def test_a_quantile_of_the_magnitudes_takes_the_largest_code(fraction):
    weight = weights(9, 5, 200, 1.0)
    scale = quantize(weight, parse_choice(f"int6.row+quantile@{fraction}")).side["scale"]
    expected = torch.quantile(weight.abs(), fraction, dim=1) / 31
    torch.testing.assert_close(scale.float(), expected, rtol=1e-3, atol=0)
    default = quantize(weight, parse_choice("int6.row+quantile"))
    same = quantize(weight, parse_choice("int6.row+quantile@0.9995"))
    assert torch.equal(default.codes, same.codes)


def test_a_row_that_is_mostly_zero_keeps_its_weights_under_a_quantile():
    weight = torch.zeros(2, 100)
    weight[0, 3] = 0.5
    decoded = dequantize(quantize(weight, parse_choice("int6.row+quantile@0.9")))
    torch.testing.assert_close(decoded, weight, atol=1e-3, rtol=0)
