"""The low-rank correction: the best there is when its factors are wide, and counted when small."""

import pytest
import torch
from packer.quantizers.choice import parse_choice
from packer.quantizers.curvature import Curvature
from packer.quantizers.fake_quant import fake_quantize
from packer.quantizers.formats import FormatError, LowRank, QuantizedTensor, parse_format
from packer.quantizers.low_rank import correction
from packer.quantizers.quantize import dequantize, quantize


def normal(seed: int, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def curvature_of(seed: int, rows: int, columns: int) -> Curvature:
    inputs = normal(seed, 500, columns) @ normal(seed + 1, columns, columns)
    fisher = torch.exp(normal(seed + 2, rows))
    return Curvature(inputs.T @ inputs / 500, fisher, 500)


def quadratic_damage(difference: torch.Tensor, curvature: Curvature | None) -> float:
    """tr(F D H Dᵀ)."""
    difference = difference.double()
    if curvature is None:
        return float(difference.square().sum())
    weighted = difference * curvature.fisher.double()[:, None] @ curvature.hessian.double()
    return float((weighted * difference).sum())


def product(factors: dict[str, torch.Tensor]) -> torch.Tensor:
    left, right = factors["left"].double(), factors["right"].double()
    return left.T * factors["rank_scale"].double() @ right


@pytest.mark.parametrize("curved", [False, True])
def test_wide_factors_come_close_to_the_best_correction_of_that_rank(curved):
    """The bound: the singular values that are left of F^½ E R (Eckart and Young)."""
    residual, curvature = normal(0, 20, 30), curvature_of(1, 20, 30) if curved else None
    metric = residual.double()
    if curvature is not None:
        root = torch.linalg.cholesky(curvature.hessian.double() + 1e-9 * torch.eye(30))
        metric = curvature.fisher.double().sqrt()[:, None] * metric @ root
    sizes = torch.linalg.svdvals(metric)
    for rank in (1, 4, 10):
        format = LowRank(parse_format("int4.row"), rank, 8)
        left_over = quadratic_damage(
            residual - product(correction(residual, format, curvature)), curvature
        )
        best = float(sizes[rank:].square().sum())
        assert best * 0.999 <= left_over <= best * 1.05


@pytest.mark.parametrize("base", ["int3.row", "ternary.row", "int4.tensor"])
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("rounding", ["", "+gptq"])
def test_less_is_left_over_with_a_correction(base, bits, rounding):
    weight, curvature = normal(3, 24, 40), curvature_of(4, 24, 40)
    plain = quantize(weight, parse_choice(base + rounding), curvature)
    corrected = quantize(weight, parse_choice(f"{base}.rank6x{bits}{rounding}"), curvature)
    assert torch.equal(plain.codes, corrected.codes)
    before = quadratic_damage(dequantize(plain) - weight, curvature)
    assert quadratic_damage(dequantize(corrected) - weight, curvature) < before


def test_without_curvature_every_error_counts_alike():
    weight = normal(5, 16, 16)
    corrected = quantize(weight, parse_choice("int2.row.rank16x8"))
    plain = quantize(weight, parse_choice("int2.row"))
    error = (dequantize(corrected) - weight).norm()
    assert error < 0.05 * (dequantize(plain) - weight).norm()


def test_a_matrix_that_nothing_is_left_of_keeps_factors_of_zero():
    weight = torch.ones(4, 6)
    corrected = quantize(weight, parse_choice("int8.row.scale32.rank2x4"))
    assert torch.equal(
        dequantize(corrected), dequantize(quantize(weight, parse_choice("int8.row.scale32")))
    )


def test_a_bank_is_corrected_as_a_whole():
    bank = normal(6, 3, 8, 12)
    hessians = torch.stack([curvature_of(7 + i, 8, 12).hessian for i in range(3)])
    curvature = Curvature(hessians, None, 500)
    corrected = quantize(bank, parse_choice("int3.row.rank4x8+gptq"), curvature)
    plain = quantize(bank, parse_choice("int3.row+gptq"), curvature)
    assert (dequantize(corrected) - bank).norm() < (dequantize(plain) - bank).norm() * 1.1
    mean = Curvature(hessians.mean(0), None, 500)
    errors = [
        quadratic_damage(
            (dequantize(one) - bank).reshape(24, 12), Curvature(mean.hessian, torch.ones(24), 1)
        )
        for one in (corrected, plain)
    ]
    assert errors[0] < errors[1]


def test_a_rank_that_the_matrix_cannot_have_is_refused():
    with pytest.raises(FormatError, match=r"needs 7 rows and columns, found \[6, 9\]"):
        quantize(normal(0, 6, 9), parse_choice("int4.row.rank7x4"))


def test_fake_quantization_refuses_it():
    with pytest.raises(
        FormatError, match=r"train under int4.row, and pack under int4\.row\.rank2x4"
    ):
        fake_quantize(normal(0, 4, 4), parse_choice("int4.row.rank2x4"))


def test_quantized_tensor_checks_the_factors():
    good = quantize(normal(0, 4, 5), parse_choice("int4.row.rank2x4"))

    def refused(says: str, **changed: torch.Tensor) -> None:
        side = {**good.side, **changed}
        with pytest.raises(FormatError, match=says):
            QuantizedTensor(good.format, good.shape, good.dtype, good.codes, side)

    left, steps = good.side["left"], good.side["rank_scale"]
    refused(r"int8 left \[2, 4\]", left=left[:1])
    refused("a code of left is beyond ±7", left=torch.full_like(left, 8))
    refused(r"rank_scale \[2\]", rank_scale=steps.half())
    refused("negative", rank_scale=-steps)
    refused("side values", extra=steps)
    with pytest.raises(FormatError, match="side values"):
        QuantizedTensor(
            good.format, good.shape, good.dtype, good.codes, {"scale": good.side["scale"]}
        )
