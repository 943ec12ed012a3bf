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


@dataclass(frozen=True, eq=False)
class CurvatureSet:
    """Curvature by tensor name, of the weights with a contents fingerprint.

    contents: None for curvature that the user brought, which is not checked. source: the text, in
    words. tokens: how many were read; seconds: what that took. vocab_size: of the model's logits.
    bytes_per_token: of the text; None where nobody said. unreached: matrices that no linear map or
    lookup used that could be followed, whose curvature, if any, is of their gradients.
    warnings: what to know before trusting it, in words. earlier_notes: what else the file of an
    earlier version says is true, kept because plans made with that file name its sha256.
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
        """Whether the Fisher of any rows is known, without which damage is no divergence."""
        return any(curvature.fisher is not None for curvature in self.by_tensor.values())

    @functools.cached_property
    def sha256(self) -> str:
        """Of all values, and of nothing that changes from run to run, such as the seconds."""
        digest = hashlib.sha256()
        told = {**self.provenance(), "seconds": None}
        digest.update(json.dumps(told, sort_keys=True).encode())
        for key, tensor in self.tensors():
            digest.update(f"{key} {list(tensor.shape)} ".encode())
            digest.update(bytes_of(tensor).numpy().data)
        return digest.hexdigest()

    def provenance(self) -> dict[str, Any]:
        """Everything but the curvatures, for JSON."""
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
        """(key, values) of every field of every curvature, in the order of names."""
        for name in sorted(self.by_tensor):
            one = self.by_tensor[name]
            for prefix, curvature in (("", one), ("lookup.", one.lookup)):
                if curvature is None:
                    continue
                for field in FIELDS:
                    value = getattr(curvature, field)
                    if value is not None:
                        yield f"{name}/{prefix}{field}", value

    def describe(self) -> str:
        """One line: of what, how much, how long."""
        return f"{self.tokens:,} tokens of {self.source} in {self.seconds:.1f} s"


def by_tensor_of(curvature: CurvatureSet | None) -> Mapping[str, Curvature]:
    """By tensor name; empty without any."""
    return {} if curvature is None else curvature.by_tensor
