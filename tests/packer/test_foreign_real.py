"""Artifacts and a checkpoint of other contest authors, read, re-encoded and planned."""

from __future__ import annotations

import io
import json
import re
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from click.testing import Result
from safetensors.torch import load_file

from packer.artifact.decoder import read_weights

Run = Callable[..., Result]
# At least this share of the stored zlib file goes; the tiny one is mostly raw float16.
REAL = {"int8_zlib_12m.ptz": 0.12, "int8_zlib_tiny.ptz": 0.07}


@pytest.fixture(scope="module")
def artifacts(shared: Path) -> Path:
    folder = shared / "artifacts"
    if not folder.is_dir():
        pytest.skip("the artifacts of other authors are not here")
    return folder


def expected_weights(path: Path) -> dict[str, torch.Tensor]:
    """What the artifact's own reader gives, by the published rule: codes × scale of the row."""
    value = torch.load(io.BytesIO(zlib.decompress(path.read_bytes())), weights_only=True)
    found = {}
    for name, codes in value["quantized"].items():
        scale = value["scales"][name].float()
        scale = scale.reshape(-1, *[1] * (codes.dim() - 1)) if scale.dim() else scale
        found[name] = (codes.float() * scale).to(getattr(torch, value["dtypes"][name]))
    original = value.get("passthrough_orig_dtypes", {})
    for name, tensor in value["passthrough"].items():
        found[name] = tensor.to(getattr(torch, original[name])) if name in original else tensor
    return found


def assert_same(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert set(found) == set(expected)
    for name, weight in expected.items():
        assert found[name].dtype == weight.dtype and found[name].shape == weight.shape, name
        assert torch.equal(found[name].view(torch.uint8), weight.view(torch.uint8)), name


@pytest.mark.parametrize("name", REAL)
def test_reported_tensor_by_tensor(artifacts: Path, run: Run, name: str) -> None:
    path = artifacts / name
    result = run("report", path, "--json")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    expected = expected_weights(path)
    assert report["kind"] == "foreign" and report["artifact_bytes"] == path.stat().st_size
    rows = {row["name"]: row for row in report["tensors"]}
    assert set(rows) == set(expected)
    assert sum(row["size_bytes"] for row in rows.values()) == path.stat().st_size
    embedding = rows["tok_emb.weight"]
    assert embedding["choice"] == "int8.row~zlib"
    assert embedding["raw_bytes"] == expected["tok_emb.weight"].numel() + 2 * 1024
    assert 0 < embedding["entropy_bits"] < 8.25
    assert "order-0 entropy" in result.stderr
    assert "int8.row~zlib" in run("report", path).stdout


@pytest.mark.parametrize("name", REAL)
def test_unpacked_as_its_own_reader_does(artifacts: Path, run: Run, name: str) -> None:
    result = run("unpack", artifacts / name, "-o", "out.safetensors")
    assert result.exit_code == 0, result.output
    assert_same(load_file("out.safetensors"), expected_weights(artifacts / name))


@pytest.mark.parametrize("name", REAL)
def test_re_encoded_without_loss(artifacts: Path, run: Run, name: str) -> None:
    path = artifacts / name
    result = run("fix", path, "--lossless", "-o", "new.pack", "--json")
    assert result.exit_code == 0, result.output
    data = Path("new.pack").read_bytes()
    assert_same(read_weights(data), expected_weights(path))
    fixed = json.loads(result.stdout)
    stored = path.stat().st_size
    assert fixed["artifact_bytes"] == len(data) and fixed["saved_bytes"] == stored - len(data)
    assert len(data) <= (1 - REAL[name]) * stored
    assert run("verify", "new.pack").exit_code == 0


def test_a_cap_that_lossless_cannot_meet_is_refused(artifacts: Path, run: Run) -> None:
    result = run("fix", artifacts / "int8_zlib_tiny.ptz", "--lossless", "--cap", "700KB", "-o", "n")
    assert (
        result.exit_code == 1
        and re.search(r"OVER by 1\d,\d{3};", result.output)
        and not Path("n").exists()
    )


def test_planned_and_packed_to_half_its_size(artifacts: Path, run: Run) -> None:
    path = artifacts / "int8_zlib_tiny.ptz"  # the large one takes half a minute
    cap = path.stat().st_size // 2
    result = run("pack", path, "--cap", cap, "-o", "half.pack")
    assert result.exit_code == 0, result.output
    assert cap * 0.99 < Path("half.pack").stat().st_size <= cap
    assert set(read_weights(Path("half.pack").read_bytes())) == set(expected_weights(path))


def test_inspected_like_its_checkpoint(artifacts: Path, run: Run) -> None:
    """The tiny artifact was made of the raw checkpoint: same names, shapes, dtypes, near values."""
    raw = json.loads(run("inspect", artifacts / "raw_tiny.pt", "--json").stdout)["tensors"]
    packed = json.loads(run("inspect", artifacts / "int8_zlib_tiny.ptz", "--json").stdout)
    found = {one["name"]: one for one in packed["tensors"]}
    assert len(found) == len(raw)
    for one in raw:
        same = found[one["name"]]
        assert (same["shape"], same["role"]) == (one["shape"], one["role"])
        assert same["rms"] == pytest.approx(one["rms"], rel=0.02)
