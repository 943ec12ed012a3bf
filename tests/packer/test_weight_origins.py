"""A tensor is traced to its weight through any chain of views, slices, transposes and casts."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from packer.curvature.weight_origins import Origins, place

Step = Callable[[torch.Tensor], torch.Tensor]
CASTS = ("float", "double", "contiguous", "clone")


def cast(origins: Origins, tensor: torch.Tensor, name: str) -> torch.Tensor:
    result = getattr(tensor, name)()
    origins.remember(tensor, result)
    return result


@st.composite
def chains(draw: st.DrawFn) -> tuple[tuple[int, ...], list[tuple[str, int, int]]]:
    shape = draw(st.sampled_from([(6, 5), (3, 4, 5), (2, 1, 3), (1, 4), (4, 1)]))
    step = st.tuples(
        st.sampled_from(["cast", "select", "rows", "columns", "transpose", "every_other"]),
        st.integers(0, 3),
        st.integers(1, 4),
    )
    return shape, draw(st.lists(step, max_size=5))


@given(chains())
def test_placed_elements_are_those_of_the_weight(
    chain: tuple[tuple[int, ...], list[tuple[str, int, int]]],
) -> None:
    """Every weight holds its own number, so a wrong place shows in the values."""
    shape, steps = chain
    weight = torch.arange(torch.Size(shape).numel(), dtype=torch.float16).reshape(shape)
    origins, matrix = Origins({"w": weight}), weight
    for kind, first, count in steps:
        if kind == "cast":
            matrix = cast(origins, matrix, CASTS[first])
        elif kind == "select" and matrix.dim() == 3:
            matrix = matrix[first % len(matrix)]
        elif kind == "rows":
            matrix = matrix[..., first % matrix.size(-2) :, :][..., :count, :]
        elif kind == "columns":
            matrix = matrix[..., first % matrix.size(-1) :][..., :count]
        elif kind == "transpose":
            matrix = matrix.mT
        elif kind == "every_other":
            matrix = matrix[..., ::2, :]
    if matrix.dim() == 3:
        matrix = matrix[0]
    region = origins.of(matrix)
    if region is None:
        return
    found = place(region, tuple(matrix.shape), shape)
    if found is None:
        return
    held = weight.reshape(-1, shape[-1])[found.rows, found.columns]
    assert torch.equal((held.mT if found.transposed else held).double(), matrix.double())
    assert found.row_count == held.size(0)


@pytest.mark.parametrize(
    ("change", "transposed"),
    [
        (lambda bank: bank[1], False),
        (lambda bank: bank[1, 2:4], False),
        (lambda bank: bank[1].mT, True),
        (lambda bank: bank.float()[1], False),
        (lambda bank: bank[1].float()[:, 1:3], False),
        (lambda bank: bank[:, :, :3].contiguous()[1], False),
        (lambda bank: bank[1].mT.contiguous(), True),
        (lambda bank: bank.detach()[1].double().float(), False),
    ],
)
def test_what_models_do_with_banks_is_found(change: Step, transposed: bool) -> None:
    bank = torch.arange(60, dtype=torch.float16).reshape(3, 4, 5)
    origins = Origins({"bank": bank})

    class Copies(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if func.__name__ in (*CASTS, "float"):
                origins.remember(args[0], result)
            return result

    with Copies():
        matrix = change(bank)
    region = origins.of(matrix)
    assert region is not None
    found = place(region, tuple(matrix.shape), (3, 4, 5))
    assert found is not None and found.transposed == transposed
    held = bank.reshape(12, 5)[found.rows, found.columns]
    assert torch.equal((held.mT if transposed else held).double(), matrix.double())


def test_other_tensors_are_not_taken_for_weights() -> None:
    weight = torch.ones(4, 4)
    origins = Origins({"w": weight, "strided": torch.ones(8, 4)[::2]})
    assert origins.of(torch.ones(4, 4)) is None
    assert origins.of(weight * 2) is None
    copy = weight.clone()
    origins.remember(weight, copy)
    assert origins.of(copy[1:]) is not None
    origins.forget_copies()
    assert origins.of(copy[1:]) is None
