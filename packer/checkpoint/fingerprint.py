"""Two fingerprints of a checkpoint: of its structure, and of its contents.

A plan fits a checkpoint of equal structure; sizes and damages fit only equal contents.
"""

from __future__ import annotations

import hashlib

from packer.artifact.tensor_bytes import dtype_name, little_endian
from packer.checkpoint.checkpoint import Checkpoint


def structure_fingerprint(checkpoint: Checkpoint) -> str:
    """sha256 (hex) over names, dtypes, shapes and ties; the order of insertion plays no part.

    Ties count with their direction, because a plan names the kept ones.
    """
    return _fingerprint(checkpoint, contents=False)


def contents_fingerprint(checkpoint: Checkpoint) -> str:
    """sha256 (hex) over the structure and the little-endian bytes of every tensor."""
    return _fingerprint(checkpoint, contents=True)


def _fingerprint(checkpoint: Checkpoint, *, contents: bool) -> str:
    digest = hashlib.sha256()

    def text(value: str) -> None:
        # The length before the field keeps neighbours from running into each other.
        field = value.encode("utf-8", "surrogatepass")
        digest.update(len(field).to_bytes(8, "little") + field)

    text("bytecap contents 1" if contents else "bytecap structure 1")
    text(str(len(checkpoint.tensors)))
    for name, meta in sorted(checkpoint.meta_tensors.items()):
        text(name)
        text(dtype_name(meta.dtype))
        text(",".join(map(str, meta.shape)))
        if contents:
            # Shape and dtype already fix the number of bytes.
            digest.update(little_endian(checkpoint.tensors[name]).numpy().data)
    text(str(len(checkpoint.ties)))
    for tied, kept in sorted(checkpoint.ties.items()):
        text(tied)
        text(kept)
    return digest.hexdigest()
