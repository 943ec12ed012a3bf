"""The file curvature.safetensors: curvature of a checkpoint, checked when read."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch

from packer.checkpoint.checkpoint import Checkpoint
from packer.checkpoint.file_kinds import load
from packer.checkpoint.fingerprint import contents_fingerprint
from packer.checkpoint.lazy_tensors import LazyMapping
from packer.checkpoint.safetensors_write import write_all
from packer.curvature.curvature_set import FIELDS, CurvatureSet
from packer.errors import CheckpointError, CurvatureError
from packer.files import replacing
from packer.quantizers.curvature import Curvature
from packer.quantizers.formats import FormatError

KIND = "bytecap curvature 1"
AGAIN = "Calibrate again with `packer calibrate`."
EARLIER_NOTES = ("free_order",)  # whether hidden units of MLPs may lie in any order
PARTS = tuple(prefix + field for prefix in ("", "lookup.") for field in FIELDS)


def write_curvature(path: str | os.PathLike[str], curvature: CurvatureSet) -> None:
    """Raises OutputError."""
    metadata = {"bytecap": KIND, "provenance": json.dumps(curvature.provenance())}
    with replacing(path) as temporary:
        write_all(temporary, dict(curvature.tensors()), metadata)


class StoredCurvature(LazyMapping[Curvature]):
    """Curvature by tensor name, read from its file and checked on each access.

    It is not cached, because it takes more memory than the weights. Access raises CurvatureError.
    """

    def __init__(self, source: str, values: Mapping[str, torch.Tensor], tokens: int) -> None:
        """values: by key. Raises CurvatureError: a key belongs to no field of curvature."""
        self._source, self._values, self._tokens = source, values, tokens
        self._keys = _by_name(source, values)
        super().__init__(self._keys)

    def __getitem__(self, name: str) -> Curvature:
        try:
            parts = {part: self._values[key] for part, key in self._keys[name].items()}
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
    by_tensor = StoredCurvature(source, loaded, provenance["tokens"])
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


def _by_name(source: str, keys: Iterable[str]) -> dict[str, dict[str, str]]:
    """Tensor name -> part -> key, sorted by name."""
    keys_by_name: dict[str, dict[str, str]] = {}
    for key in sorted(keys):
        name, _, part = key.rpartition("/")
        if not name or part not in PARTS:
            raise CurvatureError(
                f"{source} holds {key!r}, which is not a field of curvature. {AGAIN}"
            )
        keys_by_name.setdefault(name, {})[part] = key
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
