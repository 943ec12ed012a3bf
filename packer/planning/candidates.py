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
    """A tensor without its weights. dtype: torch's name without `torch.`, such as float32."""

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

    structure, contents: the checkpoint's fingerprints. header_bytes: the part of the artifact that
    does not depend on choices. metadata: text stored in the artifact. damage_source: what the
    candidates' damage was computed from, as text. curvature: sha256 of the curvature used for the
    damage and for choices with +gptq. calibration: what that was calibrated on, "none",
    "self-generated" or "text". damage_fit: the factors already applied to the damage.
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
    calibration: str = "none"

    @property
    def by_tensor(self) -> dict[str, tuple[Candidate, ...]]:
        """Candidates of each tensor, in the order measured."""
        grouped: dict[str, list[Candidate]] = {tensor.name: [] for tensor in self.tensors}
        for candidate in self.candidates:
            grouped[candidate.tensor].append(candidate)
        return {name: tuple(candidates) for name, candidates in grouped.items()}

    @property
    def roles(self) -> dict[str, TensorRole]:
        return {tensor.name: TensorRole(Role(tensor.role), tensor.layer) for tensor in self.tensors}

    def corrected(self, sizes: Mapping[tuple[str, str], int]) -> Measurement:
        """A copy with real sizes, by (tensor, choice), in place of measured ones."""
        candidates = tuple(
            replace(c, size_bytes=sizes.get((c.tensor, c.choice), c.size_bytes))
            for c in self.candidates
        )
        return replace(self, candidates=candidates)

    def fitted(self, fit: DamageFit) -> Measurement:
        """A copy with damage multiplied by these factors instead of the earlier ones.

        Without curvature the factors turn weight errors into bits per byte.
        """
        earlier = self.damage_fit
        scale = {
            tensor.name: fit.factor(tensor.role) / (earlier.factor(tensor.role) if earlier else 1.0)
            for tensor in self.tensors
        }
        candidates = tuple(
            replace(c, damage_bpb=scale[c.tensor] * c.damage) for c in self.candidates
        )
        return replace(self, candidates=candidates, damage_fit=fit)

    def unfitted(self, chosen: Sequence[Candidate]) -> dict[str, float]:
        """Role -> summed damage of some candidates, without the fitted factors."""
        roles = {tensor.name: tensor.role for tensor in self.tensors}
        damages: dict[str, float] = {}
        for candidate in chosen:
            role = roles[candidate.tensor]
            factor = self.damage_fit.factor(role) if self.damage_fit else 1.0
            damages[role] = damages.get(role, 0.0) + candidate.damage / factor
        return damages

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
            "calibration": self.calibration,
            "damage_fit": None if self.damage_fit is None else self.damage_fit.to_json(),
            "ties": dict(self.ties),
            "metadata": dict(self.metadata),
            "candidate_fields": ["choice", "size_bytes", "weight_error", "damage_bpb"],
            "tensors": [
                {
                    **vars(tensor),
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
        """Raises PlanError: not a candidates file of this version, a field of wrong type, or
        hidden units in another order, as earlier versions measured them.
        """
        check_kind(value, KIND, VERSION, source, "Measure again with `packer measure`.")
        try:
            measurement = _measurement(value)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise PlanError(f"{source} is damaged: {error!r}. Measure again.") from None
        if PERMUTED_MARK in measurement.metadata:
            raise PlanError(
                f"{source} was measured by an earlier version, with the hidden units of MLPs in "
                "another order; sizes in the checkpoint's order differ. Measure again."
            )
        return measurement


def check_kind(value: Mapping[str, Any], kind: str, version: int, source: str, next: str) -> None:
    """Raises PlanError: the object is of another kind or version. next: what to do then."""
    stored = value.get("kind")
    if stored != kind:
        what = f"is {stored!r}" if isinstance(stored, str) else "was not written by packer"
        raise PlanError(f"{source} {what}; expected {kind!r}. {next}")
    if value.get("version") != version:
        raise PlanError(f"{source} has version {value.get('version')!r}, not {version}. {next}")


def whole_number(value: Any) -> int:
    """A size in bytes from a JSON file. Raises ValueError: no integer, negative or too large."""
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
    curvature = value.get("curvature")
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
        # Files of earlier versions have some of these or none.
        curvature=None if curvature is None else str(curvature),
        damage_fit=None if fit is None else DamageFit.from_json(fit),
        calibration=str(value.get("calibration", "none" if curvature is None else "text")),
    )
