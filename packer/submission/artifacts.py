"""The artifacts in a submission folder: codec by signature, shapes, and scales at their floor."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from packer.code.texts import decode_text
from packer.errors import CheckpointError

# Files with these endings are artifacts even if damaged; others are recognized by their bytes.
ENDINGS = (".ptz", ".pack")
TEXTS = (".py", ".md", ".json", ".log", ".txt", ".out", ".csv", ".sh", ".toml", ".yaml")
MAGICS = {b"PGRP": "lrzip", b"QGv3": "xz", b"\x93BYT": "bytecap", b"PK\x03\x04": "none"}
LARGEST_CODE, LARGEST_TEXT, TEXT_SAMPLE = 2**21, 2**26, 2**16
# int8, int6 and int5 row scales of the old families are at least 1 over the largest code.
FLOORS = {127: 1 / 127, 31: 1 / 31, 15: 1 / 15}


@dataclass(frozen=True)
class ArtifactFile:
    """One file. codec: of its outermost layer. layout: of its tensors, None if unread.

    shapes: of its tensors. rows: number of row scales; floored: of those at the floor.
    problem: why it could not be read, in words.
    """

    name: str
    size_bytes: int
    codec: str
    layout: str | None = None
    shapes: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    rows: int = 0
    floored: int = 0
    problem: str | None = None


def is_artifact_file(path: Path) -> bool:
    """Whether a file has an artifact's ending, or a signature that plain checkpoints and tokenizers
    do not have."""
    if path.name.endswith(ENDINGS) or path.suffix.lower() in TEXTS:
        return path.name.endswith(ENDINGS)
    try:
        with path.open("rb") as file:
            codec = sniff_codec(file.read(64))
    except OSError:  # unreadable
        return False
    return codec not in ("none", "brotli", "gzip")


def read_artifact_file(path: Path, name: str, max_memory: int | None = None) -> ArtifactFile | None:
    """Reads a file; one that cannot be read has a problem instead of tensors. None for one that
    unpacks to text, such as packed code."""
    size = path.stat().st_size
    try:
        with path.open("rb") as file:
            codec = sniff_codec(file.read(64))
    except OSError as error:
        return ArtifactFile(name, size, "none", problem=f"{name}: {error.strerror}")
    try:
        if codec == "bytecap":
            shapes = _shapes_of_ours(path)
            return ArtifactFile(name, size, codec, "bytecap", shapes)
        return _read_foreign(path, name, size, codec, max_memory)
    except (CheckpointError, ValueError) as error:
        if _holds_text(path):
            return None
        return ArtifactFile(name, size, codec, problem=str(error))


def _holds_text(path: Path) -> bool:
    """Whether a file, once decompressed, is Python, JSON or other text."""
    from packer.foreign.codecs import codec_of, unwrap

    if path.stat().st_size > LARGEST_CODE:
        return False
    try:
        packed = path.read_bytes()
        data = unwrap(packed, LARGEST_TEXT, path.name, lambda head: codec_of(head) is None).data
    except (CheckpointError, OSError):
        return False
    text = decode_text(data[:TEXT_SAMPLE])
    return text.encoding != "latin-1" and bool(text.text) and not text.is_binary


def sniff_codec(head: bytes) -> str:
    """The codec by its signature; brotli, which has none, for all other bytes.

    head: at least the first eight bytes.
    """
    from packer.foreign.codecs import codec_of

    return MAGICS.get(head[:4]) or codec_of(head) or "brotli"


def _shapes_of_ours(path: Path) -> dict[str, tuple[int, ...]]:
    from packer.artifact import decoder
    from packer.artifact.reader import ArtifactError

    try:
        stored = decoder.parse(path.read_bytes())
    except ArtifactError as error:
        raise CheckpointError(str(error)) from None
    return {tensor.name: tuple(tensor.shape) for tensor in stored.tensors}


def _read_foreign(
    path: Path, name: str, size: int, codec: str, max_memory: int | None
) -> ArtifactFile:
    import torch

    from packer.checkpoint.file_kinds import load
    from packer.checkpoint.foreign_artifact import foreign_of

    content = load(path, max_memory)
    foreign = foreign_of(content)
    if foreign is None:
        held = content.value.items() if isinstance(content.value, Mapping) else ()
        plain = {str(n): tuple(t.shape) for n, t in held if isinstance(t, torch.Tensor)}
        return ArtifactFile(name, size, content.codec, "plain weights", plain)
    rows = floored = 0
    for tensor in foreign.tensors.values():
        scale = tensor.parts.get("scale")
        if scale is None or scale.dim() == 0:
            continue
        values = scale.flatten().double()
        rows += values.numel()
        at_floor = torch.zeros_like(values, dtype=torch.bool)
        for floor in FLOORS.values():
            at_floor |= (values / floor - 1).abs() < 1e-3  # fp16 keeps 11 bits of it
        floored += int(at_floor.sum())
    shapes = {n: tuple(tensor.quantized.shape) for n, tensor in foreign.tensors.items()}
    outer = content.codec.partition("+")[0]
    known = codec if outer in ("none", "") else outer
    return ArtifactFile(name, size, known, foreign.layout, shapes, rows, floored)
