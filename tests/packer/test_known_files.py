"""Files that are no checkpoints are called by their name."""

import io
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest

from packer.checkpoint.checkpoint import read_checkpoint
from packer.errors import CheckpointError


def npz() -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, w=np.ones(3))
    return buffer.getvalue()


def zipped(name: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr(name, "x")
    return buffer.getvalue()


def tar() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.addfile(tarfile.TarInfo("model.pt"))
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b"version https://hawser.github.com/spec/v1\noid sha256:0\nsize 9\n", "Git LFS"),
        (b"  \n<HTML><head><title>404</title>", "HTML"),
        (b'<?xml version="1.0"?><Error><Code>AccessDenied', "XML"),
        (b'{"error": "Repository not found"}', "Repository not found"),
        (b"Invalid username or password.", "Invalid username or password"),
        (b"GGUF\3\0\0\0" + bytes(99), "GGUF"),
        (b"\x89HDF\r\n\x1a\n" + bytes(99), "HDF5"),
        (b"\x08\x08\x12\x07pytorch\x1a\x052.4.0" + bytes(range(200)), "ONNX"),
        (b"\x81\xa6params\x82\xa3wte" + bytes(range(256)), "msgpack"),
        (bytes(5000), "zeros"),
        (npz(), ".npz"),
        (zipped("model.weights.h5"), "Keras"),
        (zipped("hf/model.safetensors"), "checkpoints inside"),
        (tar(), "tar archive"),
        (zlib.compress(tar()), "inside its zlib data, a tar archive"),
    ],
)
def test_files_are_called_by_their_name(tmp_path: Path, content: bytes, name: str) -> None:
    for ending in ("pt", "safetensors"):
        path = tmp_path / f"m.{ending}"
        path.write_bytes(content)
        with pytest.raises(CheckpointError) as caught:
            read_checkpoint(path)
        assert name in str(caught.value) and str(path) in str(caught.value)
