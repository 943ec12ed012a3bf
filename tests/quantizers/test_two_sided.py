"""Two-sided GPTQ against Babai's nearest plane on the whole lattice, and what it gains."""

import pytest
import torch
from packer.quantizers.choice import parse_choice
from packer.quantizers.curvature import Curvature
from packer.quantizers.dequantize import nearer_to_zero
from packer.quantizers.formats import FormatError
from packer.quantizers.quantize import dequantize, quantize
from packer.quantizers.rounding import factorize, round_with
from packer.quantizers.two_sided import _by_antidiagonals, _compiled_tile, round_both_ways

from packer.planning.predicted_damage import predicted_nats


def moment(size: int, seed: int, count: int | None = None) -> torch.Tensor:
    """Second moment of correlated vectors of unlike size."""
    generator = torch.Generator().manual_seed(seed)
    count = count or 4 * size
    vectors = torch.randn(count, size, generator=generator) * torch.logspace(-0.5, 0.5, size)
    vectors += torch.randn(count, 1, generator=generator)
    found = vectors.mT @ vectors / count
    return (found + found.mT) / 2


def weights(rows: int, columns: int, seed: int = 3) -> torch.Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(seed))


def curved(rows: int, columns: int, banks: int = 0) -> Curvature:
    if banks:
        hessian = torch.stack([moment(columns, 10 + bank) for bank in range(banks)])
        outputs = torch.stack([moment(rows, 20 + bank) for bank in range(banks)])
    else:
        hessian, outputs = moment(columns, 10), moment(rows, 20)
    fisher = outputs.diagonal(dim1=-2, dim2=-1).reshape(-1).clone()
    return Curvature(hessian, fisher, tokens=1000, outputs=outputs)


def nearest_plane(
    weight: torch.Tensor, hessian: torch.Tensor, outputs: torch.Tensor, scale: torch.Tensor
) -> torch.Tensor:
    """Weight by weight in float64: after each the ones left move to where the form is least."""
    rows, columns = weight.shape
    whole = torch.kron(hessian.double(), outputs.double())  # column after column
    target = weight.double().T.reshape(-1)
    steps = scale.double().repeat(columns)
    codes = torch.zeros_like(target)
    for at in range(rows * columns):
        moved = target.clone()
        if at:
            error = codes[:at] * steps[:at] - target[:at]
            moved[at:] -= torch.linalg.solve(whole[at:, at:], whole[at:, :at] @ error)
        codes[at] = (moved[at] / steps[at]).round()
    return codes.reshape(columns, rows).T.float()


def test_codes_are_those_of_the_nearest_plane():
    weight, hessian, outputs = weights(6, 5), moment(5, 1), moment(6, 2)
    scale = torch.linspace(0.3, 0.9, 6)
    factors = [factorize(matrix, damping=0, order="given") for matrix in (hessian, outputs)]
    codes = round_both_ways(*factors, weight, scale, -32767, 32767)
    assert torch.equal(codes, nearest_plane(weight, hessian, outputs, scale))


@pytest.mark.parametrize("shape", [(40, 30), (150, 140), (1, 20), (20, 1)])
def test_with_outputs_that_are_felt_apart_it_is_gptq(shape):
    """Tiles, orders and shrunken values included."""
    rows, columns = shape
    factor = factorize(moment(columns, 1))
    apart = factorize(torch.diag(torch.linspace(0.5, 2, rows)), damping=0)
    scale = torch.linspace(0.3, 0.6, rows)
    one = round_with(factor, weights(rows, columns), scale, -32767, 32767, shrink=20).codes
    both = round_both_ways(factor, apart, weights(rows, columns), scale, -32767, 32767, 20)
    assert float((one != both).float().mean()) < 1e-3  # a tie may fall otherwise


@pytest.mark.parametrize(("shape", "shrink"), [((64, 64), 0), ((37, 64), 25), ((64, 5), 60)])
def test_the_compiled_loop_is_the_one_by_antidiagonals(shape, shrink):
    rows, columns = shape
    factors = [factorize(moment(size, size)).upper for size in (columns, rows)]
    scale = torch.linspace(0.2, 0.9, rows)

    def told() -> tuple[torch.Tensor, torch.Tensor]:
        return weights(rows, columns), 0.1 * weights(columns, rows, 4)

    nearer = nearer_to_zero(shrink).numpy()
    compiled = _compiled_tile(*told(), *factors, scale, (-3, 2), nearer)
    plain = _by_antidiagonals(*told(), *factors, scale, (-3, 2), shrink)
    for one, other in zip(compiled, plain, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
    assert compiled[0].unique().numel() == 6


@pytest.mark.parametrize("banks", [0, 2])
def test_it_lowers_the_damage_at_equal_steps(banks):
    shape = (banks, 48, 32) if banks else (48, 32)
    weight, curvature = weights(48 * (banks or 1), 32).reshape(shape), curved(48, 32, banks)
    damage = {}
    for rounding in ("gptq", "gptq2", "nearest"):
        quantized = quantize(weight, parse_choice(f"step+{rounding}@0.3"), curvature)
        damage[rounding] = predicted_nats(curvature, dequantize(quantized) - weight)
    assert damage["gptq2"] < 0.9 * damage["gptq"] < damage["nearest"]


def test_rows_have_their_own_fisher_on_the_diagonal():
    curvature = curved(6, 5)
    factors = curvature.row_factors
    assert torch.allclose(factors[0].diagonal(), curvature.row_fisher, rtol=1e-6)
    assert torch.allclose(factors[0, 0, 1], 0.7 * curvature.outputs[0, 1], rtol=1e-5)
    assert bool((torch.linalg.eigvalsh(factors[0].double()) > 0).all())


def test_a_row_that_was_silent_is_felt_all_the_same():
    fisher = torch.tensor([0.0, 2.0, 4.0])
    outputs = torch.tensor([[0.0, 0.0, 0.0], [0.0, 2.0, 1.0], [0.0, 1.0, 4.0]])
    silent = Curvature(torch.eye(2), fisher, 1000, outputs=outputs)
    assert silent.row_fisher.tolist() == pytest.approx([0.06, 2.06, 4.06])
    assert silent.row_factors[0].diagonal().tolist() == pytest.approx([0.06, 2.06, 4.06])
    assert float(silent.row_factors[0, 1, 2]) == pytest.approx(0.7)
    change = torch.tensor([[3.0, 0.0], [0.0, 0.0], [0.0, 0.0]])
    assert predicted_nats(silent, change) == pytest.approx(0.06 * 9 / 2)
    table = Curvature(torch.eye(2), fisher, 1000, row_usage=torch.tensor([0.0, 0.5, 0.5]))
    assert predicted_nats(table, change) == 0


def test_curvature_of_outputs_is_asked_for_and_checked():
    weight, curvature = weights(6, 5), curved(6, 5)
    bare = Curvature(curvature.hessian, curvature.fisher, 1000)
    with pytest.raises(FormatError, match="needs the curvature of outputs"):
        quantize(weight, parse_choice("step+gptq2@0.5"), bare)
    with pytest.raises(FormatError, match=r"int6.row rounds by nearest or gptq"):
        parse_choice("int6.row+gptq2")
    with pytest.raises(FormatError, match=r"outputs is .* with a fisher of 6 rows"):
        Curvature(curvature.hessian, curvature.fisher, 1000, outputs=moment(5, 1))
    with pytest.raises(FormatError, match="outputs is not symmetric"):
        Curvature(curvature.hessian, curvature.fisher, 1000, outputs=torch.ones(6, 6).triu())
