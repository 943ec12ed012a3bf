"""Per-group lrzip (PR #1855): seven groups of matrices, each through the program lrzip, and a rest.

The magic PGRP, a u32 count (9), that many u32 lengths, then the streams. Streams 0 to 6 hold the
codes of one kind of matrix, layer after layer, each column by column; stream 7 every other tensor,
what they are, and the shapes; stream 8 how rows were put in order.
"""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from packer.errors import CheckpointError
from packer.foreign.codecs import expand

PGRP = b"PGRP"
GROUPS = (
    "tok_emb.weight.q",
    "attn.c_k.weight.q",
    "attn.c_q.weight.q",
    "attn.c_v.weight.q",
    "attn.proj.weight.q",
    "mlp.fc.weight.q",
    "mlp.proj.weight.q",
)
SORTED_GROUPS = ("tok_emb.weight.q", "attn.c_q.weight.q", "mlp.fc.weight.q")
STREAMS = len(GROUPS) + 2
LRZIP_MAGIC = b"LRZI"
SECONDS = 600
SPARE_BYTES = 1 << 20
Load = Callable[[bytes, str, int], tuple[object, dict[str, str]]]


def read_pgrp(data: bytes, source: str, limit: int, load: Load) -> dict[str, object]:
    """The dict {"w", "m"} of the artifact. load: reads the container inside stream 7.

    Raises CheckpointError: lengths that do not add up, lrzip is not installed, damaged streams.
    """
    try:
        return _read(data, source, limit, load)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"{source}: its PGRP frame is damaged ({type(error).__name__}: {error}); copy it again"
        ) from None


def _read(data: bytes, source: str, limit: int, load: Load) -> dict[str, object]:
    streams = split(data, source)
    rest, _ = load(expand("brotli", streams[7], limit, source), source, limit)
    assert isinstance(rest, Mapping)
    parts, meanings, shapes = dict(rest["r"]), dict(rest["m"]), dict(rest["s"])
    permutations = expand("brotli", streams[8], limit, source) if streams[8] else b""
    orders = np.frombuffer(permutations, "<u2").astype(np.int64)
    if "_tok_emb.weight.q" in parts:
        parts["tok_emb.weight.q"] = parts.pop("_tok_emb.weight.q")
    used = 0
    for group, stream in zip(GROUPS, streams, strict=False):
        names = _names(group, meanings)
        sizes = [_shape(shape) for shape in shapes.get(group, [])]
        if not stream and not sizes:
            continue
        if len(sizes) != len(names):
            raise ValueError(f"{len(sizes)} matrices of {group} for {len(names)} layers")
        total = sum(rows * columns for rows, columns in sizes)
        codes = np.frombuffer(lrzip_expand(stream, total, limit, source), np.int8)
        at = 0
        for name, (rows, columns) in zip(names, sizes, strict=True):
            matrix = codes[at : at + rows * columns].reshape(columns, rows).T
            at += rows * columns
            if group in SORTED_GROUPS and len(orders):
                matrix = _unsorted(matrix, orders[used : used + rows], name)
                used += rows
            parts[name] = torch.from_numpy(np.ascontiguousarray(matrix))
    if used != len(orders):
        raise ValueError(f"{len(orders):,} row numbers where {used:,} belong")
    return {"w": parts, "m": meanings}


def split(data: bytes, source: str) -> list[bytes]:
    """The streams. Raises CheckpointError: another count, or lengths that do not add up."""
    count = int.from_bytes(data[4:8], "little")
    start = 8 + 4 * count
    lengths = [int.from_bytes(data[at : at + 4], "little") for at in range(8, 8 + 4 * STREAMS, 4)]
    if count != STREAMS or len(data) < start or start + sum(lengths) != len(data):
        raise CheckpointError(
            f"{source}: as PGRP it has {count} streams of {sum(lengths):,} bytes in a frame of "
            f"{len(data):,}; the file is truncated or damaged: copy it again"
        )
    streams = []
    for length in lengths:
        streams.append(data[start : start + length])
        start += length
    return streams


def _names(group: str, meanings: Mapping[str, Any]) -> list[str]:
    """The keys of a group's codes, in order of their layers."""
    found = [
        f"{name}.q"
        for name, meaning in meanings.items()
        if f"{name}.q".endswith(group) and "passthrough" not in str(meaning)
    ]
    if group == GROUPS[0]:
        return [name for name in found if name == group]
    inside = [name for name in found if name.split(".")[0] == "blocks"]
    return sorted(inside, key=lambda name: int(name.split(".")[1]))


def _shape(value: Any) -> tuple[int, int]:
    rows, columns = (int(size) for size in value)
    if not (0 <= rows < 1 << 24 and 0 <= columns < 1 << 24):
        raise ValueError(f"a matrix of shape {value}")
    return rows, columns


def _unsorted(matrix: Any, order: Any, name: str) -> Any:
    """Rows where they were: row i of the stream is row order[i] of the matrix."""
    if not np.array_equal(np.sort(order), np.arange(len(matrix))):
        raise ValueError(f"the rows of {name} are in no order that has each of them once")
    found = np.empty_like(matrix)
    found[order] = matrix
    return found


def _limit_files(length: int) -> None:
    """In the program's own process: no file of its may grow beyond what was declared."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (length + SPARE_BYTES, length + SPARE_BYTES))


def lrzip_expand(stream: bytes, length: int, limit: int, source: str) -> bytes:
    """Exactly `length` bytes out of one lrzip stream, by the program of that name.

    Raises CheckpointError: it is not installed, fails, or gives another length.
    """
    if stream[:4] != LRZIP_MAGIC:
        raise CheckpointError(f"{source}: a group of codes is no lrzip stream; the file is damaged")
    # Its header declares the size that the stream expands to, in bytes 6 to 13.
    declared = int.from_bytes(stream[6:14], "little")
    if declared != length or length > limit:
        raise CheckpointError(
            f"{source}: a group of codes would expand to {declared:,} bytes where {length:,} "
            f"belong and {limit:,} are allowed; the file is damaged, or allow more with "
            "--max-memory"
        )
    program = shutil.which("lrzip")
    if program is None:
        raise CheckpointError(
            f"{source}: its codes are compressed by lrzip, a program that is not installed; "
            "install the package lrzip (apt-get install lrzip, brew install lrzip)"
        )
    with tempfile.TemporaryDirectory() as folder:
        packed, unpacked = Path(folder) / "group.lrz", Path(folder) / "group"
        packed.write_bytes(stream)
        command = [program, "-d", "-q", "-f", "-o", str(unpacked), str(packed)]
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                timeout=SECONDS,
                check=False,
                preexec_fn=lambda: _limit_files(length),
            )
        except subprocess.TimeoutExpired:
            raise CheckpointError(f"{source}: lrzip took more than {SECONDS} seconds") from None
        if done.returncode or not unpacked.is_file() or unpacked.stat().st_size != length:
            said = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
            raise CheckpointError(f"{source}: lrzip cannot read a group ({' '.join(said)})")
        return unpacked.read_bytes()
