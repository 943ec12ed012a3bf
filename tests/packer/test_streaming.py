"""Checkpoints and curvature larger than memory: read, packed and written tensor by tensor."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from packer.quantizers.curvature import Curvature
from safetensors.torch import load_file, save_file

from packer import api
from packer.artifact import decoder
from packer.checkpoint.checkpoint import from_state_dict, read_checkpoint
from packer.checkpoint.fingerprint import contents_fingerprint
from packer.checkpoint.lazy_tensors import StoredTensor
from packer.checkpoint.safetensors_write import write_all, write_safetensors
from packer.curvature.curvature_set import CurvatureSet
from packer.curvature.file import read_curvature, write_curvature
from packer.errors import CheckpointError, CurvatureError, OutputError
from packer.threads import MAX_SIDE_BY_SIDE, usable_cores

AT_ONCE = min(usable_cores(), MAX_SIDE_BY_SIDE) + 1  # one per worker, and one just let go
TENSORS = 40


class Living:
    """Counts the tensors that a function gave and that are still held by somebody."""

    def __init__(self) -> None:
        self.references: list[weakref.ref[torch.Tensor]] = []
        self.most = 0

    @property
    def given(self) -> int:
        return len(self.references)

    def watch(self, gives: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
        def watched(*arguments: Any) -> torch.Tensor:
            tensor = gives(*arguments)
            self.references.append(weakref.ref(tensor))
            alive = sum(reference() is not None for reference in list(self.references))
            self.most = max(self.most, alive)
            return tensor

        return watched


@pytest.fixture
def read(monkeypatch: pytest.MonkeyPatch) -> Living:
    living = Living()
    monkeypatch.setattr(StoredTensor, "read", living.watch(StoredTensor.read))
    return living


def matrices(count: int = TENSORS) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {
        f"blocks.{index}.mlp.fc.weight": torch.randn(16, 24, generator=generator)
        for index in range(count)
    }


def curvature_of(weights: dict[str, torch.Tensor]) -> CurvatureSet:
    inputs = torch.randn(200, 24, generator=torch.Generator().manual_seed(1))
    hessian = inputs.mT @ inputs / 200
    hessian = (hessian + hessian.mT) / 2
    one = Curvature(hessian, torch.rand(16, generator=torch.Generator().manual_seed(2)), 200)
    contents = contents_fingerprint(from_state_dict(weights))
    return CurvatureSet(dict.fromkeys(weights, one), contents, "noise", 200, 0.0, 64, 2.0)


@pytest.mark.parametrize("kind", ["file", "shards"])
def test_few_tensors_are_in_memory_at_a_time(tmp_path: Path, read: Living, kind: str) -> None:
    weights = matrices()
    source = tmp_path / "w.safetensors"
    if kind == "file":
        save_file(weights, source)
    else:
        source = tmp_path / "shards"
        source.mkdir()
        for index, (name, weight) in enumerate(weights.items()):
            save_file({name: weight}, source / f"model-{index}.safetensors")
    write_curvature(tmp_path / "c.safetensors", curvature_of(weights))
    plan = api.plan(source, 40_000, curvature=tmp_path / "c.safetensors")
    packed = api.pack(source, plan, curvature=tmp_path / "c.safetensors")
    found = api.verify(packed.data, source, plan, curvature=tmp_path / "c.safetensors")
    assert not found.problems
    assert read.given > 6 * TENSORS
    # A weight, and the hessian and fisher of its curvature.
    assert read.most <= 3 * AT_ONCE


def test_weights_are_written_as_they_are_decoded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = {**matrices(), "scalar": torch.tensor(3, dtype=torch.int64), "none": torch.ones(0, 2)}
    checkpoint = {**weights, "tied": weights["blocks.3.mlp.fc.weight"]}
    data = api.pack(checkpoint, api.plan(checkpoint, 70_000)).data
    living = Living()
    monkeypatch.setattr(decoder, "decode_weight", living.watch(decoder.decode_weight))
    meta_tensors = api.unpack_to(data, tmp_path / "w.safetensors")
    assert (living.given, len(meta_tensors)) == (len(weights), len(checkpoint))
    assert living.most <= 2
    expected, written = api.unpack(data), load_file(tmp_path / "w.safetensors")
    assert expected.keys() == written.keys() == meta_tensors.keys()
    for name, weight in expected.items():
        assert torch.equal(weight, written[name]) and weight.dtype == written[name].dtype
        assert (meta_tensors[name].shape, meta_tensors[name].dtype) == (weight.shape, weight.dtype)
    assert read_checkpoint(tmp_path / "w.safetensors").ties == {"tied": "blocks.3.mlp.fc.weight"}


def test_a_tie_is_one_tensor_when_all_are_in_memory(tmp_path: Path) -> None:
    weights = matrices(2)
    kept = next(iter(weights))
    save_file(weights, tmp_path / "w.safetensors", {"module.head.weight": kept})
    everything = read_checkpoint(tmp_path / "w.safetensors").all_weights()
    assert everything["head.weight"] is everything[kept]


PEAK = """
import sys
from packer.checkpoint.checkpoint import read_checkpoint
from packer.checkpoint.fingerprint import contents_fingerprint
from packer.checkpoint.inspection import inspect
def kib(field):
    lines = dict(line.split(":") for line in open("/proc/self/status"))
    return int(lines[field].split()[0])
inspect(read_checkpoint(sys.argv[2]))  # libraries come into memory too
resident = kib("VmRSS")
loaded = read_checkpoint(sys.argv[1])
print(contents_fingerprint(loaded), len(inspect(loaded)))
print((kib("VmHWM") - resident) * 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="counts resident pages as Linux does")
def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """A file of 400 MB, of which the disk holds only the header: all weights are zero."""
    source, count, side = tmp_path / "large.safetensors", 24, 2048
    size = 4 * side * side
    fields = {
        f"w{index}": {
            "dtype": "F32",
            "shape": [side, side],
            "data_offsets": [index * size, (index + 1) * size],
        }
        for index in range(count)
    }
    header = json.dumps(fields).encode()
    source.write_bytes(len(header).to_bytes(8, "little") + header)
    os.truncate(source, 8 + len(header) + count * size)
    small = tmp_path / "small.safetensors"
    save_file(matrices(1), small)
    ended = subprocess.run(
        [sys.executable, "-c", PEAK, str(source), str(small)],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.split()[1] == str(count)
    assert int(ended.stdout.split()[2]) < count * size / 4


# What is read later may have changed in between.


def test_a_file_that_changes_under_the_reader_is_refused(tmp_path: Path) -> None:
    source = tmp_path / "w.safetensors"
    save_file(matrices(2), source)
    loaded = read_checkpoint(source)
    name = next(iter(loaded.tensors))
    torch.testing.assert_close(loaded.tensors[name], matrices(2)[name], rtol=0, atol=0)
    save_file(matrices(3), source)
    with pytest.raises(CheckpointError, match="was changed while it was read"):
        loaded.tensors[name]
    source.unlink()
    with pytest.raises(CheckpointError, match="cannot be read"):
        loaded.tensors[name]
    with pytest.raises(KeyError):
        loaded.tensors["no such"]


def test_curvature_that_changes_under_the_reader_is_refused(tmp_path: Path) -> None:
    weights, path = matrices(2), tmp_path / "c.safetensors"
    write_curvature(path, curvature_of(weights))
    found = read_curvature(path, from_state_dict(weights))
    write_curvature(path, curvature_of(weights))
    with pytest.raises(CurvatureError, match="was changed while it was read"):
        found.by_tensor[next(iter(weights))]


def test_a_value_is_not_shared_between_those_who_ask(tmp_path: Path) -> None:
    save_file(matrices(1), tmp_path / "w.safetensors")
    loaded = read_checkpoint(tmp_path / "w.safetensors")
    (name,) = loaded.tensors
    loaded.tensors[name].zero_()
    assert bool(loaded.tensors[name].any())


# The file that is written piece by piece.

DTYPES = (
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e5m2),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8, torch.bool),
)


def test_the_library_reads_what_is_written(tmp_path: Path) -> None:
    tensors = {
        f"ä{number}/{dtype}": torch.arange(6).reshape(2, 3).to(dtype)
        for number, dtype in enumerate(DTYPES)
    }
    tensors |= {"scalar": torch.tensor(2.5), "none": torch.ones(3, 0), "turned": torch.rand(4, 3).T}
    write_all(tmp_path / "w.safetensors", tensors, {"b": "ü", "a": "1"})
    found = load_file(tmp_path / "w.safetensors")
    assert found.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert (found[name].shape, found[name].dtype) == (tensor.shape, tensor.dtype)
        assert torch.equal(found[name].double(), tensor.double())
    assert read_checkpoint(tmp_path / "w.safetensors").metadata == {"b": "ü", "a": "1"}


def test_insertion_order_does_not_change_bytes(tmp_path: Path) -> None:
    tensors = {**matrices(3), "half": torch.ones(3).half()}
    turned = dict(reversed(tensors.items()))
    write_all(tmp_path / "a", tensors, {"b": "2", "a": "1"})
    write_all(tmp_path / "b", turned, {"a": "1", "b": "2"})
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_values_that_are_missing_or_other_are_noticed(tmp_path: Path) -> None:
    meta_tensors = {"a": torch.ones(2, device="meta"), "b": torch.ones(2, device="meta")}
    with pytest.raises(ValueError, match="no value of b"):
        write_safetensors(tmp_path / "w", meta_tensors, [("a", torch.ones(2))], {})
    with pytest.raises(ValueError, match=r"a is torch\.float32"):
        write_safetensors(tmp_path / "w", meta_tensors, [("a", torch.ones(3))], {})


def test_a_dtype_that_safetensors_lacks_is_refused_before_anything_is_decoded(
    tmp_path: Path,
) -> None:
    data = api.pack(made := {"z": torch.ones(2, 2).to(torch.complex128)}, api.plan(made, 4000)).data
    with pytest.raises(OutputError, match=r"no complex128, the dtype of z; name a \.pt file"):
        api.unpack_to(data, tmp_path / "w.safetensors")
    assert not list(tmp_path.iterdir())
    assert api.unpack_to(data, tmp_path / "w.pt")["z"].shape == (2, 2)
    assert torch.equal(torch.load(tmp_path / "w.pt", weights_only=True)["z"], made["z"])
