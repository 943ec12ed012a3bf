"""Brings an artifact under the cap at least damage without its original weights.

Every tensor may stay unchanged, at no damage, or take one of a few coarser forms of its decoded
weights. The planner chooses among them once, by real coded bytes, without trial compressions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from packer.artifact.encoder import encode_tensor, header_bytes
from packer.budget.plan import Candidate, Plan
from packer.checkpoint.roles import roles_of
from packer.fix.repack import Repacked, assembled, weights_of
from packer.planning.account import Account, Limits
from packer.planning.code_size import solve
from packer.planning.measure import default_choices
from packer.planning.weight_errors import ROLE_WEIGHT, weight_error
from packer.progress import Progress, WeightCount, ignore_progress
from packer.quantizers.choice import parse_choice
from packer.quantizers.formats import Passthrough, QuantizedTensor, Uniform
from packer.quantizers.quantize import dequantize, quantizable, quantize
from packer.threads import one_torch_thread

AS_IS = "as it is"
WITHOUT_ONES = "as it is, codes of ±1 dropped"
HALVED = "as it is, codes halved"
# Steps in units of the present one. Below about 1.3 a coarser grid costs a whole rounding error
# and saves next to nothing; beyond 6 little is left to save.
STEP_FACTORS = (1.3, 1.5, 1.75, 2.0, 2.4, 2.8, 3.4, 4.0, 5.0, 6.3)
SMALLEST_STEPPED = 4096  # smaller tensors save too little for the long list of steps


@dataclass(frozen=True)
class Step:
    """One tensor's repair. before, after: how it is stored. saved_bytes: compared with the same
    codes re-encoded. damage: predicted.
    """

    tensor: str
    before: str
    after: str
    saved_bytes: int
    damage: float

    @property
    def damage_per_byte(self) -> float:
        return self.damage / max(self.saved_bytes, 1)


@dataclass(frozen=True)
class Repair:
    """An artifact under the cap. steps: the changes, cheapest saved byte first. gap: proven."""

    data: bytes
    account: Account
    steps: tuple[Step, ...]
    damage: float
    gap: float


def repair(
    lossless: Repacked,
    stored: Mapping[str, str],
    limits: Limits,
    progress: Progress = ignore_progress,
) -> Repair:
    """The repair of least predicted damage that fits, from the tensors of `lossless`.

    stored: tensor -> how the artifact stores it, in words.
    Raises CapError: not even the smallest forms fit; names their size.
    """
    candidates = candidates_of(lossless, progress)
    plan = solve(candidates, header_bytes(lossless.header), limits)
    encoded = dict(lossless.encoded)
    with one_torch_thread():
        for chosen in plan.chosen:
            if chosen.choice != AS_IS:
                encoded[chosen.tensor] = encode_tensor(
                    changed(lossless.tensors[chosen.tensor], chosen.choice)
                )
    data, account = assembled(lossless.header, encoded, limits.cap_bytes, limits.code_bytes)
    return Repair(data, account, steps_of(plan, lossless, stored), plan.damage, plan.gap)


def candidates_of(lossless: Repacked, progress: Progress = ignore_progress) -> list[Candidate]:
    """Every tensor unchanged, and in every coarser form."""
    roles = roles_of({name: one.shape for name, one in lossless.tensors.items()}, lossless.ties)
    candidates: list[Candidate] = []
    count = WeightCount(progress, weights_of(lossless.tensors))
    with one_torch_thread():
        for name, one in sorted(lossless.tensors.items()):
            count.begin(name)
            size = lossless.encoded[name].size_bytes
            candidates.append(Candidate(name, AS_IS, size, 0.0))
            candidates += coarser(name, one, size, ROLE_WEIGHT[roles[name].role])
    count.begin("measured")
    return candidates


def steps_of(plan: Plan, lossless: Repacked, stored: Mapping[str, str]) -> tuple[Step, ...]:
    """The changes of a plan, cheapest saved byte first."""
    steps = [
        Step(
            chosen.tensor,
            stored[chosen.tensor],
            chosen.choice,
            lossless.encoded[chosen.tensor].size_bytes - chosen.size_bytes,
            chosen.weight_error or 0.0,
        )
        for chosen in plan.chosen
        if chosen.choice != AS_IS
    ]
    return tuple(sorted(steps, key=lambda step: (step.damage_per_byte, step.tensor)))


def coarser(
    name: str, one: QuantizedTensor, size_bytes: int, role_weight: float
) -> list[Candidate]:
    """Every smaller form of a tensor that decodes to finite weights, with its coded bytes."""
    weight = dequantize(one)
    candidates = []
    for choice in changes(one, weight):
        other = changed(one, choice, weight)
        error = weight_error(weight, dequantize(other))
        size = encode_tensor(other).size_bytes
        if error is not None and size < size_bytes:
            candidates.append(Candidate(name, choice, size, role_weight * error))
    return candidates


def changes(one: QuantizedTensor, weight: torch.Tensor) -> list[str]:
    """The forms worth trying, as texts that `changed` reads: choices, or edits of the codes."""
    if not quantizable(weight) or not bool(weight.any()):
        return []
    if isinstance(one.format, Passthrough):
        return [str(choice) for choice in default_choices(weight)[1:]]
    assert isinstance(one.format, Uniform)
    narrower = [f"int{bits}.row" for bits in range(one.format.bits - 1, 2, -1)]
    if weight.numel() < SMALLEST_STEPPED:
        return narrower
    step = float(one.side["scale"].float().mean() / weight.float().std())
    clips = [f"{127 * factor * step:.4g}" for factor in STEP_FACTORS]
    stepped = [f"int8.{axis}+kstd@{clip}" for clip in clips for axis in ("row", "tensor")]
    return [WITHOUT_ONES, HALVED, *narrower, *stepped]


def changed(
    one: QuantizedTensor, choice: str, weight: torch.Tensor | None = None
) -> QuantizedTensor:
    """The tensor after one of its changes."""
    if choice == WITHOUT_ONES:
        return replace(one, codes=one.codes.masked_fill(one.codes.abs() == 1, 0))
    if choice == HALVED:  # odd codes go towards zero: as near as away from it, and shorter
        return replace(one, codes=one.codes.div(2, rounding_mode="trunc").mul(2))
    return quantize(dequantize(one) if weight is None else weight, parse_choice(choice))
