"""Codes of fewer than eight bits in a stream of bits, as the writers of w6_e8_... store them."""

from __future__ import annotations

import io
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import Result
from safetensors.torch import load_file

from packer.checkpoint.checkpoint import read_checkpoint
from packer.errors import PackerError

Run = Callable[..., Result]


def packed(codes: list[int], bits: int) -> bytes:
    """The codes one behind the other, written as a number: the first in its lowest bits."""
    stream = sum((code % (1 << bits)) << (bits * place) for place, code in enumerate(codes))
    return stream.to_bytes(-(-len(codes) * bits // 8), "little")


def tensor(data: bytes) -> torch.Tensor:
    return torch.tensor(list(data), dtype=torch.uint8)


def artifact(bits: int, codes: list[int], shape: list[int]) -> dict[str, Any]:
    low = {"num_bits": bits, "scheme": "per_row", "axis": 0, "packed": True, "shape": shape}
    table = torch.tensor([[5, -127], [0, 90]], dtype=torch.int8)
    return {
        "__quant_format__": f"w{bits}_e8_clean_per_row_v1",
        "quantized": {"a": tensor(packed(codes, bits)), "e": table},
        "scales": {"a": torch.tensor([0.5, 0.003, 1.25]).half(), "e": torch.ones(2).half()},
        "dtypes": {"a": "bfloat16", "e": "float32"},
        "passthrough": {"n": torch.ones(3).half()},
        "passthrough_orig_dtypes": {"n": "float32"},
        "qmeta": {"a": low, "e": {"num_bits": 8, "scheme": "per_row", "axis": 0}},
    }


def write(folder: Path, value: object) -> Path:
    buffer = io.BytesIO()
    torch.save(value, buffer)
    path = folder / "a.ptz"
    path.write_bytes(zlib.compress(buffer.getvalue()))
    return path


def test_three_codes_of_six_bits_byte_by_byte() -> None:
    """1, -2 and 31: 000001, 111110 and 011111 from the right are 01 1111 11 1010 0000 01."""
    assert packed([1, -2, 31], 6) == bytes([0b10000001, 0b11111111, 0b1])


@pytest.mark.parametrize("bits", range(2, 8))
def test_codes_are_unpacked(tmp_path: Path, bits: int) -> None:
    low, high = -(1 << (bits - 1)), (1 << (bits - 1)) - 1
    codes = [low, high, 0, -1, 1, low, high, high, low, 1, 0, -1, low, -1, 1]  # 15: not a byte
    found = read_checkpoint(write(tmp_path, artifact(bits, codes, [3, 5])))
    scale = torch.tensor([0.5, 0.003, 1.25]).half().float()
    expected = torch.tensor(codes).float().reshape(3, 5) * scale[:, None]
    assert found.foreign is not None and found.foreign.layout == f"w{bits}_e8_clean_per_row_v1"
    assert torch.equal(found.tensors["a"], expected.bfloat16())
    assert torch.equal(found.tensors["e"], torch.tensor([[5.0, -127.0], [0.0, 90.0]]))
    assert torch.equal(found.tensors["n"], torch.ones(3))


def test_a_large_matrix_and_lossless_again(tmp_path: Path, run: Run) -> None:
    generator = np.random.default_rng(3)
    codes = generator.integers(-31, 32, (3, 4001)).reshape(-1).tolist()
    path = write(tmp_path, artifact(6, codes, [3, 4001]))
    result = run("fix", path, "--lossless", "-o", "b.pack")
    assert result.exit_code == 0, result.output
    assert run("unpack", "b.pack", "-o", "w.safetensors").exit_code == 0
    assert torch.equal(load_file("w.safetensors")["a"], read_checkpoint(path).tensors["a"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_bits": 5}, "12 × torch.uint8 for 15 codes of 5 bits; 10 bytes belong there"),
        ({"shape": [3, 6]}, "14 bytes belong there"),
        ({"shape": [3, -5]}, "[3, -5]"),
        ({"shape": None}, "shape None"),
        ({"shape": [1 << 40, 1 << 40]}, "bytes belong there"),
        ({"num_bits": 9}, "num_bits 9"),
        ({"num_bits": "6"}, "num_bits '6'"),
        ({"num_bits": 6.0}, "num_bits 6.0"),
        ({"packed": "yes"}, "packed is 'yes'"),
        ({"offset": 32}, "offset"),
        ({"packed": False}, "torch.uint8"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    value = artifact(6, [0] * 15, [3, 5])
    value["qmeta"]["a"] |= change
    with pytest.raises(PackerError) as caught:
        read_checkpoint(write(tmp_path, value))
    assert words in str(caught.value) and "a" in str(caught.value)


@pytest.mark.parametrize(
    "name", ["int6_clean_per_row_v1", "m6_clean_per_row_v1", "w6_e8_clean_per_row_v2", "w9_e8_x"]
)
def test_other_names_pack_in_other_ways(tmp_path: Path, name: str) -> None:
    """Offsets of 31 or 32, the highest bit first: the keys are alike, and the weights differ."""
    value = {**artifact(6, [0] * 15, [3, 5]), "__quant_format__": name}
    with pytest.raises(PackerError, match=f"packed|{name}"):
        read_checkpoint(write(tmp_path, value))


def test_a_tensor_without_a_dtype_is_refused(tmp_path: Path) -> None:
    value = artifact(6, [0] * 15, [3, 5])
    del value["dtypes"]["a"]
    with pytest.raises(PackerError, match="--template"):
        read_checkpoint(write(tmp_path, value))
