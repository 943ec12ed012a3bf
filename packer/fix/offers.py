"""Files that fit a cap, beside each other: a repaired artifact, and a plan of its checkpoint."""

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
class Offer:
    """One file that fits. damage: predicted, against the checkpoint where one is at hand, else
    against the artifact. steps: of a repair, the cheapest byte first. kl: measured, in bits per
    byte; None without data.
    """

    name: str
    data: bytes
    account: Account
    damage: float
    steps: tuple[Step, ...] = ()
    kl: float | None = None


def original_of(foreign: ForeignArtifact, checkpoint: Checkpoint) -> Checkpoint:
    """The checkpoint's weights under the artifact's names, and nothing else of it.

    Raises CheckpointError: it lacks a tensor of the artifact, or has it in another shape.
    """
    weights = without_banks(checkpoint.all_weights())
    for name, tensor in foreign.tensors.items():
        if name not in weights:
            raise CheckpointError(
                f"{checkpoint.source}: lacks {name}, which {foreign.source} has; name the "
                "checkpoint that it was made from"
            )
        found, wanted = tuple(weights[name].shape), tensor.quantized.shape
        if found != wanted:
            raise CheckpointError(
                f"{checkpoint.source}: {name} has the shape {list(found)} and in {foreign.source} "
                f"{list(wanted)}; name the checkpoint that it was made from"
            )
    kept = {name: weights[name] for name in foreign.tensors}
    return from_state_dict(kept, source=checkpoint.source)


def offers_under(
    limits: Limits,
    foreign: ForeignArtifact,
    same: Repacked,
    original: Checkpoint | None = None,
    metadata: Mapping[str, str] | None = None,
    progress: Progress = ignore_progress,
) -> list[Offer]:
    """All ways that fit, the best predicted first. Raises CapError: nothing fits."""
    stored = {name: tensor.stored for name, tensor in foreign.tensors.items()}
    found: list[Offer] = []
    refused: list[CapError] = []
    try:
        found.append(offer_of(repair(same, stored, limits, progress), original))
    except CapError as error:
        refused.append(error)
    if original is not None:
        try:
            found.append(plan_original(original, limits, metadata, progress))
        except CapError as error:
            refused.append(error)
    if not found:
        raise refused[-1]
    return ranked(found)


def plan_original(
    original: Checkpoint,
    limits: Limits,
    metadata: Mapping[str, str] | None = None,
    progress: Progress = ignore_progress,
) -> Offer:
    """The plan of least damage under the cap, packed. Raises CapError: nothing fits."""
    options = MeasureOptions(metadata=metadata or {})
    plan = plan_checkpoint(original, limits, options, shown=always(progress))
    packed = pack_to_cap(original, plan, progress=progress)
    return Offer(PLANNED, packed.data, packed.account, damage_of(original, packed.data))


def offer_of(made: Repair, original: Checkpoint | None) -> Offer:
    """A repair as an offer; its damage is counted from the checkpoint where there is one."""
    damage = made.damage if original is None else damage_of(original, made.data)
    return Offer(REPAIRED, made.data, made.account, damage, made.steps)


def damage_of(original: Checkpoint, data: bytes) -> float:
    """Squared errors of a file's weights, each times the weight of its role."""
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


def ranked(offers: Sequence[Offer]) -> list[Offer]:
    """The best first: by what was measured, if all of them were, else by what is predicted."""
    kls = [offer.kl for offer in offers if offer.kl is not None]
    if len(kls) < len(offers):
        return sorted(offers, key=lambda offer: offer.damage)
    return [offer for _, _, offer in sorted(zip(kls, range(len(kls)), offers, strict=True))]
