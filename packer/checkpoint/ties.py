"""Names of one tensor: those that share a storage, that metadata declares, or that hold copies."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping

import torch

from packer.artifact.tensor_bytes import bytes_of
from packer.errors import CheckpointError, reason

TIES_KEY = "bytecap.ties"
SMALLEST_COPY = 256  # bytes; the name of a tied tensor takes some as well
FEW_VALUES = 16
SAMPLE_BYTES = 4096  # at either end, which distinguish most tensors without reading the rest


def apply_declared_ties(
    named: Mapping[str, torch.Tensor], texts: dict[str, str], notes: list[str], source: str
) -> dict[str, torch.Tensor]:
    """Let tied names share a tensor again, by the metadata; such entries are removed from `texts`.

    safetensors.torch.save_model leaves the tied name out and writes {dropped: kept}; unpacked
    artifacts hold both and list them under `bytecap.ties`.
    """
    tied = dict(named)
    for dropped, kept in list(texts.items()):
        if kept not in named or dropped in named:
            continue
        if _may_be_tied(dropped, kept):
            tied[dropped] = named[kept]
            del texts[dropped]
        elif dropped != "format":
            notes.append(
                f"the metadata's {dropped!r} is {kept!r}, also the name of a tensor; it is taken "
                "for a text and not for a tie"
            )
    for name, kept in _declared_ties(texts.pop(TIES_KEY, "{}"), source).items():
        if name == kept or name not in named or kept not in named:
            continue
        if _equal(named[name], named[kept]):
            # Behind the kept name, so that the first of the two is the one kept before.
            del tied[name]
            tied[name] = named[kept]
        else:
            notes.append(f"{name} was tied to {kept}, but they differ now: both are stored")
    return tied


def _may_be_tied(dropped: str, kept: str) -> bool:
    """Whether a metadata key can be a parameter that shares another's values, not a word such as
    format, author or modelspec.title: modules name what they share alike (weight, bias).
    """
    module, dot, parameter = dropped.rpartition(".")
    return bool(module and dot) and parameter == kept.rpartition(".")[2]


def _declared_ties(text: str, source: str) -> dict[str, str]:
    try:
        return {str(name): str(kept) for name, kept in json.loads(text).items()}
    except (ValueError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"{source}: its metadata {TIES_KEY} is not a JSON object of names ({reason(error)}); "
            "save it again, or remove that entry"
        ) from error


def _equal(one: torch.Tensor, other: torch.Tensor) -> bool:
    same_kind = one.dtype == other.dtype and one.shape == other.shape
    return same_kind and torch.equal(bytes_of(one), bytes_of(other))


def without_ties(
    named: Mapping[str, torch.Tensor],
) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """(the first name of every storage, the other names -> that name)."""
    kept: dict[str, torch.Tensor] = {}
    ties: dict[str, str] = {}
    first: dict[tuple[object, ...], str] = {}
    for name, tensor in named.items():
        # Empty tensors have no storage to share: their addresses mean nothing.
        owner = first.setdefault(_identity(tensor), name) if tensor.numel() else name
        if owner == name:
            kept[name] = tensor
        else:
            ties[name] = owner
    return kept, ties


def _identity(tensor: torch.Tensor) -> tuple[object, ...]:
    return (
        tensor.device,
        tensor.untyped_storage().data_ptr(),
        tensor.storage_offset(),
        tuple(tensor.shape),
        tensor.stride(),
        tensor.dtype,
        tensor.is_conj(),
        tensor.is_neg(),
    )


def equal_tensors(
    mapped: Mapping[str, torch.Tensor], tensors: Mapping[str, torch.Tensor]
) -> dict[str, str]:
    """Name -> the first name with the very same bytes, dtype and shape.

    mapped: contiguous, on the CPU; files may be mapped there, and few pages of them are touched.
    tensors: the same, to be read one at a time, which is done where another has the same ends.
    Tensors of few values, such as masks, and norms and gates that are still as they began, agree
    without being copies, and cost little: they and those of few bytes stay apart.
    """
    groups: dict[tuple[object, ...], list[str]] = {}
    for name, tensor in mapped.items():
        if tensor.nbytes >= SMALLEST_COPY:
            whole = bytes_of(tensor)
            ends = bytes(whole[:SAMPLE_BYTES].numpy()) + bytes(whole[-SAMPLE_BYTES:].numpy())
            if _has_many_values(whole[:SAMPLE_BYTES], tensor.element_size()):
                groups.setdefault((tensor.dtype, tuple(tensor.shape), ends), []).append(name)
    copies: dict[str, str] = {}
    for names in groups.values():
        first: dict[bytes, str] = {}
        for name in names if len(names) > 1 else ():
            owner = first.setdefault(_digest(tensors[name]), name)
            if owner != name:
                copies[name] = owner
    return copies


def _has_many_values(sample: torch.Tensor, width: int) -> bool:
    """sample: uint8 bytes, `width` an element."""
    elements = sample[: len(sample) // width * width].numpy().view(f"V{width}")
    return len(set(elements.tolist())) > FEW_VALUES


def _digest(tensor: torch.Tensor) -> bytes:
    return hashlib.sha256(bytes_of(tensor).numpy().data).digest()
