"""Statistics per tensor."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from packer.checkpoint.checkpoint import from_state_dict, read_checkpoint
from packer.checkpoint.inspection import BLOCK_ELEMENTS, TensorStatistics, inspect
from packer.checkpoint.roles import Role


def only(tensor: torch.Tensor) -> TensorStatistics:
    (found,) = inspect(from_state_dict({"w": tensor}))
    return found


def test_what_a_line_says() -> None:
    table = torch.randn(6, 4)
    state = {
        "tok_emb.weight": table,
        "lm_head.weight": table,
        "blocks.2.attn.c_k.weight": torch.randn(2, 4).to(torch.bfloat16),
        "step": torch.tensor(7),
    }
    embedding, key, step = inspect(from_state_dict(state))
    assert (embedding.name, embedding.role, embedding.layer) == (
        "tok_emb.weight",
        Role.TOKEN_EMBEDDING,
        None,
    )
    assert (embedding.shape, embedding.dtype, embedding.size_bytes) == ((6, 4), "float32", 96)
    assert embedding.tied == ("lm_head.weight",)
    assert (key.role, key.layer, key.dtype, key.size_bytes) == (Role.ATTENTION_K, 2, "bfloat16", 16)
    assert key.tied == ()
    assert (step.shape, step.dtype, step.rms, step.kurtosis) == ((), "int64", 7.0, None)
    assert (embedding.share, key.share, step.share) == (96 / 120, 16 / 120, 8 / 120)


def test_a_head_first_in_the_file_is_still_the_embedding() -> None:
    table = torch.randn(6, 4)
    (found,) = inspect(from_state_dict({"lm_head.weight": table, "wte.weight": table}))
    assert (found.name, found.role) == ("lm_head.weight", Role.TOKEN_EMBEDDING)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_rms_and_kurtosis_against_numpy(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    tensor = (torch.randn(1100, 1000, generator=generator) * 0.02 + 0.3).to(dtype)  # several blocks
    values = tensor.double().numpy()
    central = values - values.mean()
    found = only(tensor)
    assert found.rms == pytest.approx(float(np.sqrt((values**2).mean())), rel=1e-12)
    assert found.kurtosis == pytest.approx(
        float((central**4).mean() / central.var() ** 2), rel=1e-9
    )
    assert found.kurtosis == pytest.approx(3.0, abs=0.05)


def test_known_distributions() -> None:
    assert only(torch.tensor([-1.0, 1.0])).kurtosis == 1.0
    assert only(torch.linspace(-1, 1, 10_001)).kurtosis == pytest.approx(1.8, abs=1e-3)
    assert only(torch.tensor([3.0, -4.0])).rms == pytest.approx(math.sqrt(12.5))


@pytest.mark.parametrize(
    "dtype", [torch.int8, torch.int64, torch.uint8, torch.uint16, torch.uint64]
)
def test_integers(dtype: torch.dtype) -> None:
    found = only(torch.tensor([0, 1, 2, 3]).to(dtype))
    assert found.rms == pytest.approx(math.sqrt(14 / 4))
    assert found.kurtosis == pytest.approx(1.64)


def test_float8_and_complex() -> None:
    assert only(torch.tensor([1.0, -2.0]).to(torch.float8_e4m3fn)).rms == math.sqrt(2.5)
    found = only(torch.tensor([3 + 4j, 0j]))
    assert found.rms == pytest.approx(math.sqrt(12.5)) and found.kurtosis is None


def test_undefined_values_are_none() -> None:
    assert (only(torch.ones(0, 3)).rms, only(torch.ones(0, 3)).kurtosis) == (None, None)
    flags = torch.tensor([True, False])
    assert (only(flags).rms, only(flags).kurtosis) == (None, None)
    constant = only(torch.full((1000,), 0.1))
    assert constant.rms == pytest.approx(0.1) and constant.kurtosis is None
    assert only(torch.zeros(3)).rms == 0.0
    assert only(torch.ones(0)).share == 0.0


@pytest.mark.parametrize("scale", [1e-300, 1e200])
def test_values_whose_powers_leave_float64(scale: float) -> None:
    found = only(torch.tensor([-1.0, 0.0, 1.0, 2.0], dtype=torch.float64) * scale)
    assert found.rms == pytest.approx(scale * math.sqrt(1.5))
    assert found.kurtosis == pytest.approx(1.64)


def test_the_reference_checkpoint(shared: Path) -> None:
    found = inspect(read_checkpoint(shared / "checkpoints" / "ref6x256.pt"))
    assert len(found) == 71
    assert sum(line.share for line in found) == pytest.approx(1.0)
    matrices = [line for line in found if line.role is Role.ATTENTION_Q]
    assert all(line.kurtosis and 2.9 < line.kurtosis < 3.3 for line in matrices)


class LargestWide(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes the most elements a 64-bit result of any operation has."""

    elements = 0

    def __torch_dispatch__(self, func: Any, _: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor) and result.dtype == torch.float64:
            self.elements = max(self.elements, result.numel())
        return result


def test_a_large_tensor_is_never_widened_as_a_whole() -> None:
    made = from_state_dict({"w": torch.zeros(3 * BLOCK_ELEMENTS + 1, dtype=torch.float16)})
    with LargestWide() as seen:  # type: ignore[no-untyped-call]
        inspect(made)
    assert seen.elements == BLOCK_ELEMENTS
