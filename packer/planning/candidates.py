"""Measurements: every tensor under every choice, in bytes and damage; the file candidates.json."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from packer.budget.plan import Candidate
from packer.checkpoint.earlier_versions import PERMUTED_MARK
from packer.checkpoint.roles import Role, TensorRole
from packer.errors import PlanError
from packer.planning.account import MAX_SIZE_BYTES
from packer.planning.damage_fit import DamageFit

KIND = "bytecap candidates"
VERSION = 1


@dataclass(frozen=True)
class TensorInfo:
    """What is known of a tensor without its weights. dtype is torch's name, without `torch.`."""

    name: str
    role: str
    layer: int | None
    shape: tuple[int, ...]
    dtype: str

    @property
    def elements(self) -> int:
        return math.prod(self.shape)


@dataclass(frozen=True)
class Measurement:
    """Candidates of every tensor of one checkpoint.

    structure, contents: the checkpoint's fingerprints. header_bytes: the artifact's part that no
    choice changes. metadata: text that goes into the artifact. damage_source: what the candidates'
    damage was computed from, in words. curvature: sha256 of the curvature behind the damage and
    behind choices with +gptq. damage_fit: the factors that the damage already contains.
    """

    source: str
    structure: str
    contents: str
    header_bytes: int
    tensors: tuple[TensorInfo, ...]
    candidates: tuple[Candidate, ...]
    ties: Mapping[str, str]
    metadata: Mapping[str, str]
    damage_source: str
    curvature: str | None = None
    damage_fit: DamageFit | None = None

    @property
    def by_tensor(self) -> dict[str, tuple[Candidate, ...]]:
        """Candidates of each tensor, in the order measured."""
        found: dict[str, list[Candidate]] = {tensor.name: [] for tensor in self.tensors}
        for candidate in self.candidates:
            found[candidate.tensor].append(candidate)
        return {name: tuple(candidates) for name, candidates in found.items()}

    @property
    def roles(self) -> dict[str, TensorRole]:
        return {tensor.name: TensorRole(Role(tensor.role), tensor.layer) for tensor in self.tensors}

    def corrected(self, sizes: Mapping[tuple[str, str], int]) -> Measurement:
        """The same with real sizes put in place of measured ones, by (tensor, choice)."""
        candidates = tuple(
            replace(c, size_bytes=sizes.get((c.tensor, c.choice), c.size_bytes))
            for c in self.candidates
        )
        return replace(self, candidates=candidates)

    def fitted(self, fit: DamageFit) -> Measurement:
        """The same with damages multiplied by these factors in place of earlier ones.

        Without curvature the factors are of weight errors, and make bits per byte of them.
        """
        before = self.damage_fit
        scale = {
            tensor.name: fit.factor(tensor.role) / (before.factor(tensor.role) if before else 1.0)
            for tensor in self.tensors
        }
        candidates = tuple(
            replace(c, damage_bpb=scale[c.tensor] * c.damage) for c in self.candidates
        )
        return replace(self, candidates=candidates, damage_fit=fit)

    def unfitted(self, chosen: Sequence[Candidate]) -> dict[str, float]:
        """Role -> summed damage of some candidates before any factor."""
        roles = {tensor.name: tensor.role for tensor in self.tensors}
        found: dict[str, float] = {}
        for candidate in chosen:
            role = roles[candidate.tensor]
            factor = self.damage_fit.factor(role) if self.damage_fit else 1.0
            found[role] = found.get(role, 0.0) + candidate.damage / factor
        return found

    def to_json(self) -> dict[str, Any]:
        by_tensor = self.by_tensor
        return {
            "kind": KIND,
            "version": VERSION,
            "source": self.source,
            "structure": self.structure,
            "contents": self.contents,
            "header_bytes": self.header_bytes,
            "damage_source": self.damage_source,
            "curvature": self.curvature,
            "damage_fit": None if self.damage_fit is None else self.damage_fit.to_json(),
            "ties": dict(self.ties),
            "metadata": dict(self.metadata),
            "candidate_fields": ["choice", "size_bytes", "weight_error", "damage_bpb"],
            "tensors": [
                {
                    "name": tensor.name,
                    "role": tensor.role,
                    "layer": tensor.layer,
                    "shape": list(tensor.shape),
                    "dtype": tensor.dtype,
                    "candidates": [
                        [c.choice, c.size_bytes, c.weight_error, c.damage_bpb]
                        for c in by_tensor[tensor.name]
                    ],
                }
                for tensor in self.tensors
            ],
        }

    @staticmethod
    def from_json(value: Mapping[str, Any], source: str) -> Measurement:
        """Raises PlanError: not a candidates file of this version, fields of wrong type, or
        measured with hidden units in another order, as earlier versions did.
        """
        check_kind(value, KIND, VERSION, source, "Measure again with `packer measure`.")
        try:
            found = _measurement(value)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise PlanError(f"{source} is damaged: {error!r}. Measure again.") from None
        if PERMUTED_MARK in found.metadata:
            raise PlanError(
                f"{source} was measured by an earlier version, with the hidden units of MLPs in "
                "another order; sizes in the checkpoint's order differ. Measure again."
            )
        return found


def check_kind(value: Mapping[str, Any], kind: str, version: int, source: str, next: str) -> None:
    """Raises PlanError: the object is of another kind or version; `next` says what to do."""
    found = value.get("kind")
    if found != kind:
        what = f"is {found!r}" if isinstance(found, str) else "is no file of ours"
        raise PlanError(f"{source} {what}; {kind!r} is wanted. {next}")
    if value.get("version") != version:
        raise PlanError(f"{source} has version {value.get('version')!r}, not {version}. {next}")


def whole_number(value: Any) -> int:
    """A number of bytes from a JSON file. Raises ValueError: not one, negative or absurd."""
    if type(value) is not int or not 0 <= value < MAX_SIZE_BYTES:
        raise ValueError(f"{value!r} is not a number of bytes")
    return value


def _measurement(value: Mapping[str, Any]) -> Measurement:
    tensors, candidates = [], []
    for entry in value["tensors"]:
        layer = None if entry["layer"] is None else int(entry["layer"])
        shape = tuple(whole_number(size) for size in entry["shape"])
        name, role = str(entry["name"]), Role(entry["role"]).value
        tensors.append(TensorInfo(name, role, layer, shape, str(entry["dtype"])))
        for choice, size_bytes, weight_error, damage_bpb in entry["candidates"]:
            damage = None if damage_bpb is None else float(damage_bpb)
            size, error = whole_number(size_bytes), float(weight_error)
            candidates.append(Candidate(name, str(choice), size, error, damage))
    names, fit = [tensor.name for tensor in tensors], value.get("damage_fit")
    if names != sorted(set(names)):
        raise ValueError("its tensors are not sorted by name, each once")
    return Measurement(
        source=str(value["source"]),
        structure=str(value["structure"]),
        contents=str(value["contents"]),
        header_bytes=whole_number(value["header_bytes"]),
        tensors=tuple(tensors),
        candidates=tuple(candidates),
        ties={str(tied): str(kept) for tied, kept in value["ties"].items()},
        metadata={str(key): str(text) for key, text in value["metadata"].items()},
        damage_source=str(value["damage_source"]),
        # Files of before there was curvature have neither.
        curvature=None if value.get("curvature") is None else str(value["curvature"]),
        damage_fit=None if fit is None else DamageFit.from_json(fit),
    )
