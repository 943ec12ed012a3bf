"""Which files of a folder are the model, and what is said of those missing or passed over."""

import json
from collections.abc import Iterable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from packer.checkpoint.checkpoint import Checkpoint, read_checkpoint
from packer.errors import CheckpointError

APPLE_DOUBLE = bytes.fromhex("0005160700020000") + bytes(4000)


def write(path: Path, *names: str) -> None:
    tensors = {name: torch.randn(4, 6) for name in names}
    if path.suffix == ".safetensors":
        save_file(tensors, path)
    else:
        torch.save(tensors, path)


def folder_of(folder: Path, **files: Iterable[str]) -> Path:
    """A folder with a file for each name, with these tensors in it; __ stands for a dot."""
    for file, names in files.items():
        write(folder / file.replace("__", "."), *names)
    return folder


def read(folder: Path) -> tuple[list[str], str]:
    found: Checkpoint = read_checkpoint(folder)
    return sorted(found.tensors), " ".join(found.notes)


@pytest.mark.parametrize(
    ("first", "second", "missing"),
    [
        ("model-00001-of-00003.safetensors", "model-00003-of-00003.safetensors", "model-00002-of"),
        ("pytorch_model-00001-of-00003.bin", "pytorch_model-00002-of-00003.bin", "00003-of-00003"),
        ("w_0_of_3.pt", "w_2_of_3.pt", "w_1_of_3.pt"),
        ("model.fp16-1-of-3.safetensors", "model.fp16-2-of-3.safetensors", "fp16-3-of-3"),
    ],
)
def test_shards_name_those_that_are_missing(
    tmp_path: Path, first: str, second: str, missing: str
) -> None:
    write(tmp_path / first, "a")
    write(tmp_path / second, "b")
    with pytest.raises(CheckpointError, match=missing) as caught:
        read_checkpoint(tmp_path)
    assert "of 3 shards 1 are missing" in str(caught.value)
    part = read_checkpoint(tmp_path / first)  # a part by itself is read, and said to be one
    assert list(part.tensors) == ["a"] and missing in part.notes[0]


def test_shards_of_torch_files_are_one_model(tmp_path: Path) -> None:
    write(tmp_path / "pytorch_model-00001-of-00002.bin", "a")
    write(tmp_path / "pytorch_model-00002-of-00002.bin", "b")
    write(tmp_path / "training_args.bin", "c")
    names, notes = read(tmp_path)
    assert names == ["a", "b"] and "passed over: training_args.bin" in notes


@pytest.mark.parametrize("stranger", ["scheduler", "rng_state_0", "adapter_model", "model.fp16"])
def test_strangers_beside_the_model_are_passed_over(tmp_path: Path, stranger: str) -> None:
    folder_of(tmp_path, model__safetensors="ab", **{f"{stranger}__safetensors": "xa"})
    names, notes = read(tmp_path)
    assert names == ["a", "b"]
    assert f"read from the folder: model.safetensors; passed over: {stranger}.safetensors" in notes


def test_a_folder_of_strangers_is_refused_and_the_file_read(tmp_path: Path) -> None:
    folder_of(tmp_path, optimizer__safetensors="x")
    with pytest.raises(CheckpointError, match=r"with optimizer\.safetensors"):
        read_checkpoint(tmp_path)
    assert read(tmp_path / "optimizer.safetensors")[0] == ["x"]
    folder_of(tmp_path, pytorch_model__bin="a")
    assert read(tmp_path)[0] == ["a"]


def test_files_that_are_joined_are_named(tmp_path: Path) -> None:
    folder_of(tmp_path, text__safetensors="a", vision__safetensors="b")
    names, notes = read(tmp_path)
    assert names == ["a", "b"]
    assert "read as one model: text.safetensors, vision.safetensors" in notes


def test_an_index_says_what_a_part_lacks_and_is_read_by_itself(tmp_path: Path) -> None:
    folder_of(tmp_path, first__safetensors="a", optimizer__safetensors="x")
    index = tmp_path / "diffusion_pytorch_model.safetensors.index.json"
    weight_map = {"a": "first.safetensors", "b": "second.safetensors"}
    index.write_text(json.dumps({"weight_map": weight_map}))
    for path in (tmp_path, index):
        with pytest.raises(CheckpointError, match=r"second\.safetensors, 1 of 2"):
            read_checkpoint(path)
    assert "second.safetensors" in read(tmp_path / "first.safetensors")[1]
    folder_of(tmp_path, second__safetensors="b")
    assert read(index) == (["a", "b"], "")
    assert read(tmp_path)[0] == ["a", "b"]


def test_a_whole_model_comes_before_an_index_of_missing_shards(tmp_path: Path) -> None:
    folder_of(tmp_path, model__safetensors="ab")
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert read(tmp_path)[0] == ["a", "b"]


def test_litter_is_passed_over(tmp_path: Path) -> None:
    folder_of(tmp_path, pytorch_model__bin="a")
    for name in ("._pytorch_model.bin", "._model.safetensors", ".model.safetensors.x.safetensors"):
        (tmp_path / name).write_bytes(APPLE_DOUBLE)
    assert read(tmp_path) == (["a"], "")
    with pytest.raises(CheckpointError, match="AppleDouble"):
        read_checkpoint(tmp_path / "._pytorch_model.bin")


def test_an_unfinished_download_is_named(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors.incomplete").write_bytes(b"x")
    with pytest.raises(CheckpointError, match=r"model\.safetensors\.incomplete"):
        read_checkpoint(tmp_path)
