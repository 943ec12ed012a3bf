"""Codes on a trellis: what a path is, the search against every path, and what it gains."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from packer.quantizers.choice import parse_choice
from packer.quantizers.curvature import Curvature
from packer.quantizers.formats import TRELLIS, FormatError, QuantizedTensor
from packer.quantizers.quantize import dequantize, quantize, quantize_reported
from packer.quantizers.trellis_path import (
    NEXT_STATE,
    code_states,
    codes_of,
    on_trellis,
    symbols_of,
)
from packer.quantizers.trellis_search import PREVIOUS, search_columns

from packer.artifact.encoder import encode_tensor
from packer.planning.predicted_damage import predicted_nats


def path(rows: int, columns: int, seed: int, spread: float) -> np.ndarray:
    """int64 codes [rows, columns] of random symbols."""
    drawn = np.random.default_rng(seed).normal(size=(rows, columns)) * spread
    symbols, states = np.rint(drawn).astype(np.int64), np.zeros(columns, dtype=np.int64)
    codes = np.empty_like(symbols)
    for row in range(rows):
        codes[row] = codes_of(symbols[row], states)
        states = NEXT_STATE[states, symbols[row] & 1]
    return codes


def moment(size: int, seed: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    vectors = torch.randn(4 * size, size, generator=generator) * torch.logspace(-0.5, 0.5, size)
    vectors += torch.randn(4 * size, 1, generator=generator)
    return (found := vectors.mT @ vectors / len(vectors)) / 2 + found.mT / 2


def curved(rows: int, columns: int, banks: int = 1) -> Curvature:
    hessian = torch.stack([moment(columns, 10 + bank) for bank in range(banks)])
    outputs = torch.stack([moment(rows, 20 + bank) for bank in range(banks)])
    fisher = outputs.diagonal(dim1=-2, dim2=-1).reshape(-1).clone()
    if banks == 1:
        hessian, outputs = hessian[0], outputs[0]
    return Curvature(hessian, fisher, tokens=1000, outputs=outputs)


def weights(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(3))


@settings(deadline=None)
@given(st.integers(1, 20), st.integers(1, 9), st.integers(0, 999), st.floats(0.1, 400))
def test_a_path_has_its_own_states_and_symbols(rows, columns, seed, spread):
    codes = path(rows, columns, seed, spread)
    states = code_states(codes)
    assert on_trellis(codes) and states.shape == (rows + 1, columns)
    assert np.array_equal(codes_of(symbols_of(codes, states[:-1]), states[:-1]), codes)
    middle = rows // 2
    assert np.array_equal(code_states(codes[middle:], states[middle])[-1], states[-1])
    codes[0, 0] += 1  # the first state allows even codes alone
    assert not on_trellis(codes)


def test_all_states_are_reached_and_each_from_two():
    assert sorted(NEXT_STATE.ravel().tolist()) == sorted([*range(8), *range(8)])
    # Free distance: paths that part and meet again differ in at least three codes.
    ends = {(state, state): 0 for state in range(8)}
    for _ in range(2):
        ends = {
            (int(NEXT_STATE[a, x]), int(NEXT_STATE[b, y])): 0
            for a, b in ends
            for x, y in itertools.product((0, 1), repeat=2)
            if (a, b) not in {(s, s) for s in range(8)} or x != y
        }
        assert all(a != b for a, b in ends)


@pytest.mark.parametrize("price", [0.0, 0.15, 1.0])
@pytest.mark.parametrize("both_ways", [False, True])
def test_the_search_finds_the_cheapest_of_all_paths(price, both_ways):
    """With rows coupled survivors may part from the best path: then it comes close."""
    rows, symbols = 4, (-2, -1, 0, 1, 2)
    generator = np.random.default_rng(7)
    lengths = generator.uniform(1, 6, (2, 1, 2, 4)).astype(np.float32)
    row_class = np.array([0, 1, 1, 0])
    factor = np.triu(generator.normal(size=(rows, rows)) * 0.2 + np.eye(rows)).astype(np.float32)
    factor = factor if both_ways else factor.diagonal()[None].copy()
    pivots = factor.diagonal() if both_ways else factor[0]
    worst = 0.0
    for _ in range(4):
        target = generator.normal(size=rows).astype(np.float32) * 1.5
        one = np.ones((1, 1), np.float32)
        found, _ = search_columns(
            *(target[None].copy(), one, factor, np.ones(rows, np.float32), price, lengths),
            *(row_class, np.zeros(1, np.int64), PREVIOUS, np.zeros(1, np.int64)),
        )

        def cost(codes, target=target):
            states = code_states(codes[:, None])[:-1, 0]
            bits = lengths[row_class, 0, states & 1, np.abs(symbols_of(codes, states))].sum()
            z = np.zeros(rows)
            for row in range(rows):
                above = (z[:row] * factor[:row, row]).sum() if both_ways else 0
                z[row] = (codes[row] - target[row] - above) / pivots[row]
            return (z**2).sum() + price * bits

        every = []
        for chosen in itertools.product(symbols, repeat=rows):
            states, codes = 0, []
            for symbol in chosen:
                codes.append(int(codes_of(np.array(symbol), np.array(states))))
                states = int(NEXT_STATE[states, symbol & 1])
            every.append(cost(np.array(codes)))
        assert on_trellis(found.T)
        worst = max(worst, cost(found[0].astype(np.int64)) / min(every))
    assert worst <= (1.25 if both_ways else 1 + 1e-5)


def worth(text: str, weight: torch.Tensor, curvature: Curvature) -> float:
    """Bits a weight, a damage four times as small being worth one."""
    quantized = quantize(weight, parse_choice(text), curvature)
    nats = predicted_nats(curvature, dequantize(quantized) - weight)
    assert nats is not None
    return 8 * encode_tensor(quantized).size_bytes / weight.numel() + math.log2(nats) / 2


@pytest.mark.parametrize("rounding", ["gptq", "gptq2"])
@pytest.mark.parametrize(("scalar", "fine"), [(0.5, 0.3), (1.0, 0.6)])
def test_it_saves_bits_at_equal_damage(rounding, scalar, fine):
    weight, curvature = weights(160, 96), curved(160, 96)
    ours = worth(f"trellis.row.col+{rounding}@{fine}", weight, curvature)
    assert ours < worth(f"step.row.col+{rounding}@{scalar}", weight, curvature) - 0.05


@pytest.mark.parametrize("format", sorted(TRELLIS))
def test_banks_go_on_where_the_one_before_ended(format):
    weight, curvature = weights(2, 24, 16), curved(24, 16, banks=2)
    for rounding in ("nearest", "gptq", "gptq2"):
        choice = parse_choice(f"{format}+{rounding}@0.3")
        quantized, report = quantize_reported(weight, choice, curvature)
        assert quantized.codes.shape == (48, 16) and on_trellis(quantized.codes.numpy())
        assert (report is None) == (rounding == "nearest")
        assert float((dequantize(quantized) - weight).square().mean()) < 0.2


def test_without_a_factor_columns_are_felt_apart():
    weight = weights(20, 12)
    dead = Curvature(torch.zeros(12, 12), torch.ones(20), tokens=100)
    quantized, report = quantize_reported(weight, parse_choice("trellis.row+gptq@0.2"), dead)
    assert report is not None and report.fell_back is not None
    assert float((dequantize(quantized) - weight).square().mean()) < 0.1


def test_codes_off_the_trellis_are_refused():
    good = quantize(weights(6, 5), parse_choice("trellis.row+nearest@0.3"))
    with pytest.raises(FormatError, match=r"trellis\.row: codes do not follow each other"):
        QuantizedTensor(good.format, (6, 5), torch.float32, good.codes + 1, good.side)


def test_codes_larger_than_lengths_are_known_for_are_found_all_the_same():
    generator = torch.Generator().manual_seed(5)
    weight = torch.randn(48, 32, generator=generator) * torch.logspace(-2, 1.2, 32)
    errors = []
    for step in (0.012, 0.006, 0.003):
        quantized = quantize(weight, parse_choice(f"trellis+nearest@{step}"))
        assert int(quantized.codes.abs().max()) > 2 * 255
        errors.append(float((dequantize(quantized) - weight).square().mean().sqrt()))
        rms = float(weight.square().mean().sqrt())
        assert errors[-1] < step * rms
    assert errors[2] < 0.6 * errors[1] < 0.36 * errors[0]
