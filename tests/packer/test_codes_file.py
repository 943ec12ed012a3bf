"""Codes and steps without floats: what the specification says of them gives the very weights."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import Result
from packer.quantizers.choice import parse_choice
from packer.quantizers.quantize import quantize
from safetensors import safe_open

from packer import api
from packer.artifact.encoder import Artifact
from packer.errors import OutputError

Run = Callable[..., Result]
CHOICES = (
    "int6.row",
    "int8.tensor.scale32",
    "ternary.row",
    "int4.row.rank2x4",
    "step.row.col+nearest@0.4",
    "step+nearest@0.01",
    "fp16",
    "bf16",
    "raw",
)


def weight(seed: int) -> torch.Tensor:
    return 0.1 * torch.randn(4, 24, 16, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def artifact() -> bytes:
    tensors = {
        choice: quantize(weight(seed), parse_choice(choice)) for seed, choice in enumerate(CHOICES)
    }
    tensors["scalar"] = quantize(torch.tensor(7), parse_choice("raw"))
    return Artifact(tensors, {"tied": "int6.row"}, {"config": "{}"}).to_bytes()


def weights_by_the_book(name: str, parts: dict[str, torch.Tensor]) -> torch.Tensor:
    """What docs/format.md says of codes, written down anew."""
    if name in parts:
        return parts[name].float()
    codes = parts[f"{name}/codes"]
    shape, flat = codes.shape, codes.float().reshape(-1, codes.shape[-1])
    if f"{name}/scale" in parts:
        found = flat * parts[f"{name}/scale"].float()[:, None]
        if f"{name}/left" in parts:
            for k, step in enumerate(parts[f"{name}/rank_scale"]):
                left, right = parts[f"{name}/left"][k].float(), parts[f"{name}/right"][k].float()
                found = found + (left[:, None] * right[None, :]) * step
        return found.reshape(shape)
    shrink = int(parts[f"{name}/shrink"])
    nearer = {1: shrink, 2: shrink // 2}
    magnitude = flat.abs()
    for size in magnitude.unique().tolist():
        by = nearer.get(int(size), shrink // 4) / 256 if size else 0.0
        magnitude = torch.where(flat.abs() == size, torch.tensor(size - by), magnitude)
    found = flat.sign() * magnitude * parts[f"{name}/row"][:, None]
    if f"{name}/column" in parts:
        found = found * parts[f"{name}/column"][None, :]
    return found.reshape(shape)


def test_codes_give_the_weights_bit_for_bit(artifact: bytes, tmp_path: Path) -> None:
    path = tmp_path / "codes.safetensors"
    parts = api.unpack_codes(artifact, path)
    weights = api.unpack(artifact)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
        read = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    assert set(read) == set(parts) == set(api.unpack_codes(artifact))
    for name in CHOICES:
        assert torch.equal(weights_by_the_book(name, read), weights[name]), name
    assert read["int6.row/codes"].dtype == read["step.row.col+nearest@0.4/codes"].dtype
    assert read["int6.row/codes"].dtype == torch.int8
    assert read["step+nearest@0.01/codes"].dtype == torch.int16, "too large for int8"
    assert (read["fp16"].dtype, read["bf16"].dtype) == (torch.float16, torch.bfloat16)
    assert int(read["scalar"]) == 7
    formats = json.loads(metadata["bytecap.formats"])
    assert formats["ternary.row"] == ["ternary.row", "float32"]
    assert json.loads(metadata["bytecap.ties"]) == {"tied": "int6.row"}
    assert metadata["config"] == "{}"


def test_two_tensors_of_one_key_are_refused(tmp_path: Path) -> None:
    quantized = quantize(weight(1), parse_choice("int6.row"))
    kept = quantize(weight(2), parse_choice("fp16"))
    data = Artifact({"a": quantized, "a/codes": kept}).to_bytes()
    with pytest.raises(OutputError, match="another tensor is called a/codes already"):
        api.unpack_codes(data, tmp_path / "c.safetensors")
    assert list(tmp_path.iterdir()) == []


def test_the_command(run: Run, made: Path, tmp_path: Path) -> None:
    result = run("unpack", made / "model.pack", "--codes", "-o", "c.safetensors")
    assert result.exit_code == 0 and "tensors of codes and steps" in result.stdout
    whole = run("unpack", made / "model.pack", "-o", "w.safetensors")
    assert whole.exit_code == 0
    codes, floats = (tmp_path / name for name in ("c.safetensors", "w.safetensors"))
    assert codes.stat().st_size < 0.5 * floats.stat().st_size
    result = run("unpack", made / "model.pack", "--codes", "-o", "c.pt")
    assert result.exit_code == 1 and "codes are written as .safetensors" in result.stderr
    result = run("unpack", made / "model.pt", "--codes", "-o", "d.safetensors")
    assert result.exit_code == 2 and "is none" in result.stderr
    assert not (tmp_path / "d.safetensors").exists()
