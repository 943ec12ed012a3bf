"""Token shards: read as one stream, each kind of damage refused in its own words."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from packer.eval.errors import DataError
from packer.eval.shards import HEADER_BYTES, MAGIC, read_shards, read_sidecar, shard_header


def shard_bytes(
    tokens: NDArray[np.int64] | list[int], *, magic: int = MAGIC, version: int = 1, more: int = 0
) -> bytes:
    header = np.zeros(256, dtype="<i4")
    header[:3] = magic, version, len(tokens) + more
    return header.tobytes() + np.array(tokens, dtype="<u4" if version == 2 else "<u2").tobytes()


def write(path: Path, tokens: list[int]) -> Path:
    path.write_bytes(shard_bytes(tokens))
    return path


def test_several_shards_are_one_stream(tmp_path: Path) -> None:
    write(tmp_path / "val_1.bin", [4, 5, 6])
    write(tmp_path / "val_0.bin", [1, 2, 3])
    write(tmp_path / "val_2.bin", [])
    stream = read_shards([str(tmp_path / "val_*.bin"), tmp_path / "val_0.bin"])
    everything = [1, 2, 3, 4, 5, 6, 1, 2, 3]
    assert len(stream) == 9
    for start in range(10):
        for stop in range(start, 12):
            assert stream[start:stop].tolist() == everything[start:stop]
    assert isinstance(stream.parts[0], np.memmap)


def test_ids_beyond_uint16_are_held_and_marked(tmp_path: Path) -> None:
    """Also in one stream with shards of uint16."""
    wide = [151_642, 3, 65_536, 65_535]
    header, dtype = shard_header(151_643, len(wide))
    (tmp_path / "b.bin").write_bytes(header + np.array(wide, dtype).tobytes())
    narrow, small = shard_header(65_536, 1)
    (tmp_path / "a.bin").write_bytes(narrow + np.array([65_535], small).tobytes())
    assert (dtype.itemsize, small.itemsize) == (4, 2)
    stream = read_shards([tmp_path / "*.bin"], vocab_size=151_643)
    assert stream[:].tolist() == [65_535, *wide]
    assert stream[1:3].tolist() == wide[:2]
    with pytest.raises(DataError, match="token 151642 at position 0 is outside"):
        read_shards([tmp_path / "b.bin"], vocab_size=151_642)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "has 0 bytes, fewer than a shard's 1,024 of header"),
        (shard_bytes([1])[: HEADER_BYTES - 1], "fewer than"),
        (shard_bytes([1], magic=7), "not a token shard: its magic is 7, not 20240520"),
        (shard_bytes([1], version=3), "version 3; only 1 and 2"),
        (shard_bytes([1, 2], more=3), "promises 5 tokens, 1,034 bytes in all, but has 1,028"),
        (shard_bytes([1, 2], version=2, more=1), "promises 3 tokens, 1,036 bytes in all, but has"),
        (shard_bytes([1, 70_000], version=2), "token 70000 at position 1 is outside"),
        (shard_bytes([1, 2]) + b"x", "cut short or something was appended"),
        (shard_bytes([], more=-1), "promises -1 tokens"),
        (shard_bytes([1, 1024, 3]), "token 1024 at position 1 is outside the vocabulary of 1,024"),
    ],
)
def test_each_damage_has_its_words(tmp_path: Path, data: bytes, words: str) -> None:
    path = tmp_path / "val.bin"
    path.write_bytes(data)
    with pytest.raises(DataError, match=words) as caught:
        read_shards([path], vocab_size=1024)
    assert str(path) in str(caught.value)


def test_a_glob_without_files_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="matches no file"):
        read_shards([str(tmp_path / "val_*.bin")])


def test_a_sidecar_counts_the_targets(tmp_path: Path) -> None:
    write(tmp_path / "bytes.bin", [9, 8, 7, 6])
    sidecar = read_sidecar([tmp_path / "bytes.bin"], tokens=4)
    assert sidecar.target_bytes(np.array([0, 0, 0]), 2).tolist() == [7, 6]
    assert sidecar.unknown_count(np.array([0, 0])) == 0
    with pytest.raises(DataError, match="counts 4 tokens but the data has 5"):
        read_sidecar([tmp_path / "bytes.bin"], tokens=5)
