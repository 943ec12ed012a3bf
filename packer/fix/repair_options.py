"""Repair options of an artifact over the cap: repair the artifact, or replan its checkpoint."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from packer.artifact.decoder import read_weights
from packer.checkpoint.checkpoint import Checkpoint, from_state_dict
from packer.checkpoint.foreign_artifact import ForeignArtifact, without_banks
from packer.checkpoint.roles import roles_of
from packer.errors import CapError, CheckpointError
from packer.fix.repack import Repacked
from packer.fix.repairs import Repair, Step, repair
from packer.packing.pack import pack_to_cap
from packer.planning.account import Account, Limits
from packer.planning.measure import Progress, ignore_progress
from packer.planning.options import MeasureOptions
from packer.planning.pipeline import always, plan_checkpoint
from packer.planning.weight_errors import ROLE_WEIGHT, weight_error
from packer.threads import one_torch_thread

REPAIRED = "coarser tensors"
PLANNED = "plan of the checkpoint"


@dataclass(frozen=True)
class RepairOption:
    """One file under the cap. damage: predicted, against the checkpoint if there is one, else
    against the artifact. steps: of a repair, cheapest saved byte first. kl: measured, in bits per
    byte; None without data.
    """

    name: str
    data: bytes
    account: Account
    damage: float
    steps: tuple[Step, ...] = ()
    kl: float | None = None


def original_of(foreign: ForeignArtifact, checkpoint: Checkpoint) -> Checkpoint:
    """Only those weights of the checkpoint that the artifact has, under the artifact's names.

    Raises CheckpointError: it lacks a tensor of the artifact, or has it in another shape.
    """
    weights = without_banks(checkpoint.all_weights())
    for name, tensor in foreign.tensors.items():
        if name not in weights:
            raise CheckpointError(
                f"{checkpoint.source}: lacks {name}, which {foreign.source} has; name the "
                "checkpoint that it was made from"
            )
        shape, wanted = tuple(weights[name].shape), tensor.quantized.shape
        if shape != wanted:
            raise CheckpointError(
                f"{checkpoint.source}: {name} has the shape {list(shape)} and in {foreign.source} "
                f"{list(wanted)}; name the checkpoint that it was made from"
            )
    kept = {name: weights[name] for name in foreign.tensors}
    return from_state_dict(kept, source=checkpoint.source)


def repair_options(
    limits: Limits,
    foreign: ForeignArtifact,
    same: Repacked,
    original: Checkpoint | None = None,
    metadata: Mapping[str, str] | None = None,
    progress: Progress = ignore_progress,
) -> list[RepairOption]:
    """All repair options, lowest predicted damage first. Raises CapError: nothing fits."""
    stored = {name: tensor.stored for name, tensor in foreign.tensors.items()}
    options: list[RepairOption] = []
    refused: list[CapError] = []
    try:
        options.append(option_of(repair(same, stored, limits, progress), original))
    except CapError as error:
        refused.append(error)
    if original is not None:
        try:
            options.append(plan_original(original, limits, metadata, progress))
        except CapError as error:
            refused.append(error)
    if not options:
        raise refused[-1]
    return ranked(options)


def plan_original(
    original: Checkpoint,
    limits: Limits,
    metadata: Mapping[str, str] | None = None,
    progress: Progress = ignore_progress,
) -> RepairOption:
    """The plan of least damage under the cap, packed. Raises CapError: nothing fits."""
    options = MeasureOptions(metadata=metadata or {})
    plan = plan_checkpoint(original, limits, options, shown=always(progress))
    packed = pack_to_cap(original, plan, progress=progress)
    return RepairOption(PLANNED, packed.data, packed.account, damage_of(original, packed.data))


def option_of(repaired: Repair, original: Checkpoint | None) -> RepairOption:
    """A repair as an option; its damage is measured against the checkpoint if there is one."""
    damage = repaired.damage if original is None else damage_of(original, repaired.data)
    return RepairOption(REPAIRED, repaired.data, repaired.account, damage, repaired.steps)


def damage_of(original: Checkpoint, data: bytes) -> float:
    """The squared errors of a file's weights, summed with the weight of each tensor's role."""
    shapes = {name: tuple(meta.shape) for name, meta in original.meta_tensors.items()}
    roles = roles_of(shapes, original.ties)
    decoded = read_weights(data)
    with one_torch_thread():
        return sum(
            ROLE_WEIGHT[roles[name].role] * _error(weight, decoded[name])
            for name, weight in original.tensors.items()
        )


def _error(weight: torch.Tensor, decoded: torch.Tensor) -> float:
    error = weight_error(weight, decoded)
    return float("inf") if error is None else error


def ranked(options: Sequence[RepairOption]) -> list[RepairOption]:
    """The best first: by measured KL if every option has one, else by predicted damage."""
    kls = [option.kl for option in options if option.kl is not None]
    if len(kls) < len(options):
        return sorted(options, key=lambda option: option.damage)
    return [option for _, _, option in sorted(zip(kls, range(len(kls)), options, strict=True))]
