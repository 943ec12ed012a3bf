"""The file of a calibration: every value back as it was, symmetric and equal ones stored once."""

from __future__ import annotations

import json

import pytest
import torch
from packer.quantizers.curvature import Curvature
from safetensors.torch import load_file, safe_open, save_file

from packer.checkpoint.checkpoint import Checkpoint, from_state_dict
from packer.checkpoint.fingerprint import contents_fingerprint
from packer.curvature.curvature_set import CurvatureSet
from packer.curvature.file import KIND, read_curvature, write_curvature
from packer.errors import CurvatureError
from packer.shipping.fit_to_cap import read_curvatures

TOKENS = 64


@pytest.fixture(scope="module")
def checkpoint() -> Checkpoint:
    return from_state_dict({name: torch.ones(6, 5) for name in ("k", "q", "up")})


@pytest.fixture(scope="module")
def curvature(checkpoint: Checkpoint) -> CurvatureSet:
    """Of q and k with the same inputs, in two tensors of equal values, and of another matrix."""
    generator = torch.Generator().manual_seed(5)

    def moment(size: int) -> torch.Tensor:
        rows = torch.randn(TOKENS, size, generator=generator)
        product = rows.T @ rows / TOKENS
        return (product + product.T) / 2

    same = moment(5)
    by_tensor = {
        name: Curvature(hessian, torch.rand(6, generator=generator), TOKENS, outputs=moment(6))
        for name, hessian in (("q", same), ("k", same.clone()), ("up", moment(5)))
    }
    contents = contents_fingerprint(checkpoint)
    return CurvatureSet(by_tensor, contents, "text", TOKENS, 1.0, 8, 4.0)


def test_values_come_back_and_a_shared_moment_is_stored_once(tmp_path, checkpoint, curvature):
    path = tmp_path / "c.safetensors"
    write_curvature(path, curvature)
    stored = load_file(path)
    assert [key for key in stored if "/hessian" in key] == ["k/hessian.lower", "up/hessian.lower"]
    assert stored["k/hessian.lower"].shape == (15,) and stored["k/outputs.lower"].shape == (21,)
    read = read_curvature(path, checkpoint)
    assert read.sha256 == curvature.sha256
    for name, one in read_curvatures(path.read_bytes()).items():  # as a bundle reads it
        assert torch.equal(one.hessian, curvature.by_tensor[name].hessian)
        assert torch.equal(one.outputs, curvature.by_tensor[name].outputs)


def test_a_matrix_not_quite_symmetric_and_a_bank_come_back(tmp_path):
    skewed = torch.eye(5)
    skewed[0, 1] += 1e-6
    bank = torch.stack([torch.eye(5), -0.0 * torch.eye(5)])
    of_bank = Curvature(bank, torch.ones(4), TOKENS)
    weights = from_state_dict({"up": torch.ones(6, 5), "bank": torch.ones(2, 2, 5)})
    by_tensor = {"up": Curvature(skewed, None, TOKENS), "bank": of_bank}
    whole = CurvatureSet(by_tensor, contents_fingerprint(weights), "text", TOKENS, 1.0, 8, 4.0)
    write_curvature(tmp_path / "c.safetensors", whole)
    assert read_curvature(tmp_path / "c.safetensors", weights).sha256 == whole.sha256


def test_a_file_of_whole_matrices_is_read(tmp_path, checkpoint, curvature):
    path = tmp_path / "earlier.safetensors"
    provenance = json.dumps(curvature.provenance())
    values = {key: value.clone() for key, value in curvature.tensors()}
    save_file(values, path, {"bytecap": KIND, "provenance": provenance})
    assert read_curvature(path, checkpoint).sha256 == curvature.sha256


@pytest.mark.parametrize(
    ("shared", "dropped"),
    [('{"q/hessian.lower": "v/hessian.lower"}', 0), ("[1]", 0), ("{", 0), ("", 1)],
    ids=["of nothing", "no mapping", "no json", "no triangle"],
)
def test_damage_is_refused_in_words(tmp_path, checkpoint, curvature, shared, dropped):
    path = tmp_path / "c.safetensors"
    write_curvature(path, curvature)
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    values = load_file(path)
    last = len(values["k/hessian.lower"]) - dropped
    values["k/hessian.lower"] = values["k/hessian.lower"][:last].clone()
    save_file(values, path, {**metadata, "shared": shared or metadata["shared"]})
    with pytest.raises(CurvatureError, match="Calibrate again"):
        read_curvature(path, checkpoint)
