"""Curvature of a whole checkpoint, and where it comes from."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from packer.artifact.tensor_bytes import bytes_of
from packer.quantizers.curvature import Curvature

FIELDS = ("hessian", "fisher", "row_usage", "outputs")
SELF_GENERATED = "text by the model itself"  # how the `source` of such a calibration begins


@dataclass(frozen=True, eq=False)
class CurvatureSet:
    """Curvature by tensor name, of the weights with a contents fingerprint.

    contents: None for curvature from the user, which is not checked. source: what the text is.
    tokens: number read; seconds: time taken. vocab_size: of the model's logits. bytes_per_token: of
    the text; None if unknown. unreached: matrices that no linear map or lookup that could be
    followed used; their curvature, if any, is from their own gradients. warnings: limits of this
    curvature, as text. earlier_notes: flags in the file of an earlier version, kept because plans
    made with that file name its sha256.
    """

    by_tensor: Mapping[str, Curvature]
    contents: str | None
    source: str
    tokens: int
    seconds: float
    vocab_size: int | None
    bytes_per_token: float | None
    unreached: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    earlier_notes: tuple[str, ...] = ()

    @property
    def predicts_damage(self) -> bool:
        """Whether any Fisher is known; without it, damage is a squared error."""
        return any(curvature.fisher is not None for curvature in self.by_tensor.values())

    @property
    def kind(self) -> str:
        """What the text is: "self-generated" or "text"."""
        return "self-generated" if self.source.startswith(SELF_GENERATED) else "text"

    @functools.cached_property
    def sha256(self) -> str:
        """Hash of all values, and of the provenance without the seconds, which vary."""
        digest = hashlib.sha256()
        provenance = {**self.provenance(), "seconds": None}
        digest.update(json.dumps(provenance, sort_keys=True).encode())
        for key, tensor in self.tensors():
            digest.update(f"{key} {list(tensor.shape)} ".encode())
            digest.update(bytes_of(tensor).numpy().data)
        return digest.hexdigest()

    def provenance(self) -> dict[str, Any]:
        """All fields except for `by_tensor`, for JSON."""
        return {
            "contents": self.contents,
            "source": self.source,
            "tokens": self.tokens,
            "seconds": round(self.seconds, 3),
            "vocab_size": self.vocab_size,
            "bytes_per_token": self.bytes_per_token,
            "unreached": list(self.unreached),
            "warnings": list(self.warnings),
            **dict.fromkeys(self.earlier_notes, True),
        }

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """(key, values) of every field of every curvature, sorted by name."""
        for name in sorted(self.by_tensor):
            yield from fields_of(name, self.by_tensor[name])

    def describe(self) -> str:
        """One line: the text, how many tokens, how long it took."""
        return f"{self.tokens:,} tokens of {self.source} in {self.seconds:.1f} s"


def fields_of(name: str, curvature: Curvature) -> Iterator[tuple[str, torch.Tensor]]:
    """(key, values) of every field that one tensor's curvature has."""
    for prefix, one in (("", curvature), ("lookup.", curvature.lookup)):
        for field in FIELDS:
            value = None if one is None else getattr(one, field)
            if value is not None:
                yield f"{name}/{prefix}{field}", value


def by_tensor_of(curvature: CurvatureSet | None) -> Mapping[str, Curvature]:
    """Curvature by tensor name; empty for None."""
    return {} if curvature is None else curvature.by_tensor
