"""From a plan to a file under the cap: pack, weigh the real bytes, plan again if they differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from packer.account import Account
from packer.artifact import EncodedTensor, assemble, encode_tensor, header_bytes
from packer.budget.plan import Candidate
from packer.checkpoint import Checkpoint, contents_fingerprint
from packer.errors import CapError, PlanError
from packer.measuring import Progress, header_of, ignore_progress, tensor_infos
from packer.planning import PackPlan, replan
from packer.quantizers.choice import parse_choice
from packer.quantizers.formats import FormatError
from packer.quantizers.quantize import quantize
from packer.threads import one_torch_thread

MAX_ROUNDS = 8


@dataclass(frozen=True)
class Packed:
    """An artifact that fits. data: the file. plan: the plan it follows, sizes as weighed.

    encoded: what each tensor weighs. rounds: how often planning was needed, 1 when the plan held.
    """

    data: bytes
    plan: PackPlan
    encoded: Mapping[str, EncodedTensor]
    account: Account
    rounds: int


def pack_to_cap(
    checkpoint: Checkpoint, pack_plan: PackPlan, progress: Progress = ignore_progress
) -> Packed:
    """The artifact of a plan; its real bytes, code and margin included, are at most the cap.

    Our coder's sizes repeat exactly, so the first round lands. Sizes that differ (another version
    of a compressor) are put into the plan, which is solved again.
    Raises PlanError: the plan is for other contents. CapError: nothing fits.
    """
    found = contents_fingerprint(checkpoint)
    if pack_plan.measurement.contents != found:
        raise PlanError(stale_plan(pack_plan, checkpoint, found))
    header = _header(checkpoint, pack_plan)
    measurement = replace(pack_plan.measurement, header_bytes=header_bytes(header))
    if measurement != pack_plan.measurement:
        pack_plan = replan(pack_plan, measurement)
    encoded: dict[str, tuple[str, EncodedTensor]] = {}
    for rounds in range(1, MAX_ROUNDS + 1):
        _encode_chosen(checkpoint, pack_plan, encoded, progress)
        sizes = {(name, choice): e.size_bytes for name, (choice, e) in encoded.items()}
        planned = {(c.tensor, c.choice): c.size_bytes for c in pack_plan.plan.chosen}
        if sizes == planned:
            blocks = {name: e for name, (_, e) in encoded.items()}
            return _packed(pack_plan, header, blocks, rounds)
        pack_plan = replan(pack_plan, pack_plan.measurement.corrected(sizes))
    raise CapError(
        f"after {MAX_ROUNDS} rounds the real sizes still differ from the plan's; a compressor "
        "gives another size each time it runs"
    )


def stale_plan(pack_plan: PackPlan, checkpoint: Checkpoint, found: str) -> str:
    return (
        f"the plan was made for {pack_plan.measurement.source} with contents "
        f"{pack_plan.measurement.contents[:12]}, and {checkpoint.source} has contents "
        f"{found[:12]}. Plan this checkpoint (with the same --weights and --drop), or follow the "
        "plan's choices with --policy and --cap."
    )


def _encode_chosen(
    checkpoint: Checkpoint,
    pack_plan: PackPlan,
    encoded: dict[str, tuple[str, EncodedTensor]],
    progress: Progress,
) -> None:
    """Bring `encoded` in line with the plan's choices; tensors already encoded so are kept."""
    wanted = [
        candidate
        for candidate in pack_plan.plan.chosen
        if encoded.get(candidate.tensor, ("",))[0] != candidate.choice
    ]

    with one_torch_thread():
        for done, candidate in enumerate(wanted):
            progress(candidate.tensor, done, len(wanted))
            weight = checkpoint.tensors[candidate.tensor]
            encoded[candidate.tensor] = (candidate.choice, _encode(candidate, weight))
    progress("packed", len(wanted), len(wanted))


def _encode(candidate: Candidate, weight: torch.Tensor) -> EncodedTensor:
    try:
        choice = parse_choice(candidate.choice)
        quantized = quantize(weight, choice)
    except FormatError as error:
        raise PlanError(f"{candidate.tensor}: {error}") from None
    return encode_tensor(quantized, choice.coder)


def _header(checkpoint: Checkpoint, pack_plan: PackPlan) -> bytes:
    """The header of the artifact. Raises PlanError: the plan describes other tensors or ties."""
    measurement, infos = pack_plan.measurement, tensor_infos(checkpoint)
    planned = [(info.name, info.shape, info.dtype) for info in measurement.tensors]
    found = [(info.name, info.shape, info.dtype) for info in infos]
    if planned != found or dict(measurement.ties) != checkpoint.ties:
        odd = next((p for p, f in zip(planned, found, strict=False) if p != f), measurement.ties)
        raise PlanError(
            f"the plan describes other tensors than {checkpoint.source} holds, first {odd}; it was "
            "edited or damaged. Plan again."
        )
    return header_of(infos, checkpoint.ties, measurement.metadata)


def _packed(
    pack_plan: PackPlan, header: bytes, encoded: Mapping[str, EncodedTensor], rounds: int
) -> Packed:
    plan = pack_plan.plan
    blocks = [encoded[name].block for name in sorted(encoded)]
    data = assemble(header, blocks, plan.cap_bytes, plan.code_bytes)
    side = sum(tensor.side_bytes for tensor in encoded.values())
    payload = sum(tensor.payload_bytes for tensor in encoded.values())
    account = Account(plan.cap_bytes, plan.code_bytes, len(data) - side - payload, side, payload)
    if account.total_bytes + plan.margin_bytes > plan.cap_bytes:
        raise CapError(f"the file weighs more than was planned: {account}")
    return Packed(data, pack_plan, encoded, account, rounds)
