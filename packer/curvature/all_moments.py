"""The moments of all weights: what a calibration has summed so far."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from packer.curvature.moments import InputMoments, MapMoments, ParameterMoments, TableMoments

KINDS: Mapping[str, Any] = {
    "inputs": InputMoments,
    "maps": MapMoments,
    "tables": TableMoments,
    "parameters": ParameterMoments,
}


@dataclass(eq=False)
class AllMoments:
    """Moments by weight. inputs: by all weights that had them in common, their names one a line."""

    inputs: dict[str, InputMoments] = field(default_factory=dict)
    maps: dict[str, MapMoments] = field(default_factory=dict)
    tables: dict[str, TableMoments] = field(default_factory=dict)
    parameters: dict[str, ParameterMoments] = field(default_factory=dict)

    def of_map(self, name: str, weight: torch.Tensor) -> MapMoments:
        """Those of a weight, zero at first."""
        if name not in self.maps:
            self.maps[name] = MapMoments(tuple(weight.shape), weight.device)
        return self.maps[name]

    def of_inputs(self, names: Sequence[str], weight: torch.Tensor) -> InputMoments:
        """Those that some weights have in common, zero at first. weight: one of them."""
        key = "\n".join(names)
        if key not in self.inputs:
            self.inputs[key] = InputMoments(tuple(weight.shape), weight.device)
        return self.inputs[key]

    def inputs_by_name(self) -> dict[str, list[str]]:
        """By weight, the keys of all of `inputs` that are its own."""
        keys: dict[str, list[str]] = {}
        for key in self.inputs:
            for name in key.split("\n"):
                keys.setdefault(name, []).append(key)
        return keys

    def sums(self) -> dict[str, torch.Tensor]:
        """All sums so far, by kind/field/name: the state to resume from between two batches."""
        return {
            f"{kind}/{field}/{name}": getattr(moments, field)
            for kind, by_name in vars(self).items()
            for name, moments in by_name.items()
            for field in moments.SUMS
            if getattr(moments, field) is not None
        }

    def begin(
        self, keys: Iterable[str], weights: Mapping[str, torch.Tensor], device: torch.device
    ) -> None:
        """Zero sums for weights without any, by keys as in `sums`."""
        for key in keys:
            kind, _, name = key.split("/", 2)
            by_name = vars(self)[kind]
            if name not in by_name:
                shape = tuple(weights[name.split("\n")[0]].shape)
                by_name[name] = KINDS[kind](shape, device)

    def restore(
        self,
        sums: Mapping[str, torch.Tensor],
        weights: Mapping[str, torch.Tensor],
        device: torch.device,
    ) -> None:
        """Replaces the sums so far by those of an earlier run over the same weights.

        Raises ValueError: a sum of an unknown weight, or of another shape.
        """
        for key, value in sums.items():
            kind, field, name = key.split("/", 2)
            known = all(one in weights for one in name.split("\n"))
            if kind not in KINDS or not known or field not in KINDS[kind].SUMS:
                raise ValueError(f"there is no sum {key!r}")
            self.begin([key], weights, device)
            place = getattr(vars(self)[kind][name], field)
            if place is None:
                raise ValueError(f"there is no sum {key!r}")
            if place.shape != value.shape or place.dtype != value.dtype:
                raise ValueError(f"{key} is {value.dtype} {list(value.shape)}")
            place.copy_(value)
