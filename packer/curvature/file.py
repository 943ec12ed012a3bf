"""The file curvature.safetensors: curvature of a checkpoint, checked when read.

A field NAME/FIELD of symmetric matrices is stored as its lower triangle, NAME/FIELD.lower. A second
moment that several weights share is stored once: the metadata's "shared", JSON, has key -> stored
key. Earlier versions stored every matrix whole, which is read too.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Container, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from packer.artifact.tensor_bytes import bytes_of
from packer.checkpoint.checkpoint import Checkpoint
from packer.checkpoint.file_kinds import load
from packer.checkpoint.fingerprint import contents_fingerprint
from packer.checkpoint.lazy_tensors import LazyMapping
from packer.checkpoint.safetensors_write import write_all
from packer.curvature.curvature_set import FIELDS, CurvatureSet, fields_of
from packer.errors import CheckpointError, CurvatureError
from packer.files import replacing
from packer.quantizers.curvature import Curvature, from_lower_triangle, lower_triangle
from packer.quantizers.formats import FormatError

KIND = "bytecap curvature 1"
AGAIN = "Calibrate again with `packer calibrate`."
EARLIER_NOTES = ("free_order",)  # whether hidden units of MLPs may lie in any order
LOWER = ".lower"
PARTS = tuple(prefix + field for prefix in ("", "lookup.") for field in FIELDS)


def write_curvature(path: str | os.PathLike[str], curvature: CurvatureSet) -> None:
    """Raises OutputError."""
    stored = curvature.by_tensor
    if not isinstance(stored, StoredCurvature):
        by_tensor = curvature.by_tensor
        stored = compact(((name, by_tensor[name]) for name in sorted(by_tensor)), curvature.tokens)
    metadata = {
        "bytecap": KIND,
        "provenance": json.dumps(curvature.provenance()),
        "shared": json.dumps(stored.shared),
    }
    with replacing(path) as temporary:
        write_all(temporary, stored.values_by_key, metadata)


def compact(curvature: Iterable[tuple[str, Curvature]], tokens: int) -> StoredCurvature:
    """Curvature by tensor name in the form that a file has, at less than half the memory."""
    fields = (field for name, one in curvature for field in fields_of(name, one))
    stored, shared = _stored(fields)
    return StoredCurvature("the calibration", stored, tokens, shared)


def _stored(
    fields: Iterable[tuple[str, torch.Tensor]],
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """(tensors to store by key, shared: key -> key of equal values)."""
    stored: dict[str, torch.Tensor] = {}
    shared: dict[str, str] = {}
    keys: dict[bytes, str] = {}
    for key, value in fields:
        if value.dim() < 2 or not torch.equal(value, value.mT):
            stored[key] = value
            continue
        triangle = lower_triangle(value)
        digest = hashlib.blake2b(bytes_of(triangle).numpy().data, key=str(value.shape).encode())
        kept = keys.setdefault(digest.digest(), key + LOWER)
        if kept == key + LOWER:
            stored[kept] = triangle
        else:
            shared[key + LOWER] = kept
    return stored, shared


class StoredCurvature(LazyMapping[Curvature]):
    """Curvature by tensor name, of the triangles in its file, made and checked on each access.

    It is not cached, because it takes more memory than the weights. Access raises CurvatureError.
    values_by_key, shared: what the file has.
    """

    def __init__(
        self,
        source: str,
        values: Mapping[str, torch.Tensor],
        tokens: int,
        shared: Mapping[str, str],
    ) -> None:
        """values: by key; shared: key -> key of `values`.

        Raises CurvatureError: a key belongs to no field of curvature.
        """
        self._source, self._tokens = source, tokens
        self.values_by_key, self.shared = values, shared
        self._keys = _by_name(source, {**dict.fromkeys(values), **shared}, shared)
        super().__init__(self._keys)

    def __getitem__(self, name: str) -> Curvature:
        try:
            parts = {
                part: _whole(self.values_by_key, key) for part, key in self._keys[name].items()
            }
            return _curvature(name, parts, self._tokens)
        except FormatError as error:
            raise CurvatureError(f"{self._source}: {error}. {AGAIN}") from None
        except CheckpointError as error:
            raise CurvatureError(f"{error}") from None


def read_curvature(path: str | os.PathLike[str], checkpoint: Checkpoint) -> CurvatureSet:
    """The curvature of this checkpoint in a file.

    Raises CurvatureError: the file is damaged, not a curvature file, or of another checkpoint; or
    values are of wrong shape, not finite or not symmetric.
    """
    source = os.fspath(path)
    loaded, metadata = _load(source)
    provenance = _provenance(source, metadata)
    contents = contents_fingerprint(checkpoint)
    if provenance["contents"] != contents:
        raise CurvatureError(
            f"{source} is the curvature of weights with contents {provenance['contents'][:12]}, "
            f"and {checkpoint.source} has {contents[:12]}. {AGAIN}"
        )
    shared = _shared(source, metadata, loaded)
    by_tensor = StoredCurvature(source, loaded, provenance["tokens"], shared)
    check_tensors(by_tensor, checkpoint)
    return CurvatureSet(by_tensor, **provenance)


def check_tensors(by_tensor: Mapping[str, Curvature], checkpoint: Checkpoint) -> None:
    """Raises CurvatureError: curvature of a tensor that is missing, or has another shape."""
    for name, one in by_tensor.items():
        weight = checkpoint.meta_tensors.get(name)
        if weight is None:
            near = checkpoint.ties.get(name)
            hint = f"; it is tied to {near}, name that" if near else ""
            raise CurvatureError(
                f"curvature is given for {name}, which {checkpoint.source} does not hold{hint}"
            )
        try:
            one.check_shape(tuple(weight.shape) or (1,))
        except FormatError as error:
            raise CurvatureError(f"curvature of {name}: {error}") from None


def _load(source: str) -> tuple[Mapping[str, torch.Tensor], Mapping[str, str]]:
    try:
        content = load(Path(source))
    except CheckpointError as error:
        raise CurvatureError(f"{error}") from None
    except OSError as error:
        raise CurvatureError(f"{source} cannot be read: {error.strerror or error}") from None
    if content.metadata.get("bytecap") != KIND or not isinstance(content.value, dict):
        raise CurvatureError(f"{source} is no curvature file of this version. {AGAIN}")
    return content.tensors or content.value, content.metadata


def _provenance(source: str, metadata: Mapping[str, str]) -> dict[str, Any]:
    try:
        value = json.loads(metadata["provenance"])
        vocab, ratio = value["vocab_size"], value["bytes_per_token"]
        checked = {
            "contents": str(value["contents"]),
            "source": str(value["source"]),
            "tokens": _positive(int(value["tokens"])),
            "seconds": float(value["seconds"]),
            "vocab_size": None if vocab is None else _positive(int(vocab)),
            "bytes_per_token": None if ratio is None else _positive(float(ratio)),
            "unreached": tuple(map(str, value["unreached"])),
            "warnings": tuple(map(str, value["warnings"])),
            "earlier_notes": tuple(key for key in EARLIER_NOTES if value.get(key) is True),
        }
    except (
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        OverflowError,
        RecursionError,
    ) as error:
        raise CurvatureError(f"{source} is damaged: {error!r}. {AGAIN}") from None
    return checked


def _positive(value: Any) -> Any:
    if not 0 < value < math.inf:
        raise ValueError(f"{value} is not positive")
    return value


def _shared(source: str, metadata: Mapping[str, str], values: Container[str]) -> Mapping[str, str]:
    """Key -> stored key, of tensors stored once for several weights."""
    try:
        shared: dict[str, str] = json.loads(metadata.get("shared", "{}"))
        usable = all(of in values and key not in values for key, of in shared.items())
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise CurvatureError(f"{source} is damaged: {error!r}. {AGAIN}") from None
    if not usable:
        raise CurvatureError(f"{source} is damaged: it shares tensors that it lacks. {AGAIN}")
    return shared


def _whole(values: Mapping[str, torch.Tensor], key: str) -> torch.Tensor:
    """Raises FormatError."""
    return from_lower_triangle(values[key]) if key.endswith(LOWER) else values[key]


def _by_name(
    source: str, keys: Iterable[str], shared: Mapping[str, str]
) -> dict[str, dict[str, str]]:
    """Tensor name -> part -> stored key, sorted by name."""
    keys_by_name: dict[str, dict[str, str]] = {}
    for key in sorted(keys):
        name, _, part = key.removesuffix(LOWER).rpartition("/")
        if not name or part not in PARTS:
            raise CurvatureError(
                f"{source} holds {key!r}, which is not a field of curvature. {AGAIN}"
            )
        keys_by_name.setdefault(name, {})[part] = shared.get(key, key)
    return dict(sorted(keys_by_name.items()))


def _curvature(name: str, parts: Mapping[str, torch.Tensor], tokens: int) -> Curvature:
    """Raises FormatError, which names the tensor."""
    try:
        lookup = None
        if any(part.startswith("lookup.") for part in parts):
            lookup = _one(parts, "lookup.", tokens, None)
        return _one(parts, "", tokens, lookup)
    except FormatError as error:
        raise FormatError(f"{name}: {error}") from None


def _one(
    parts: Mapping[str, torch.Tensor], prefix: str, tokens: int, lookup: Curvature | None
) -> Curvature:
    if f"{prefix}hessian" not in parts:
        raise FormatError(f"there is no {prefix}hessian")
    fisher, usage = parts.get(f"{prefix}fisher"), parts.get(f"{prefix}row_usage")
    outputs = parts.get(f"{prefix}outputs")
    return Curvature(parts[f"{prefix}hessian"], fisher, tokens, usage, lookup, outputs)
