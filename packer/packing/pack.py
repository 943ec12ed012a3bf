"""From a plan to a file under the cap: encode, compare real sizes, plan again if they differ."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import torch

from packer.artifact.encoder import EncodedTensor, assemble, encode_tensor, header_bytes
from packer.budget.plan import Candidate
from packer.checkpoint.checkpoint import Checkpoint
from packer.checkpoint.fingerprint import contents_fingerprint
from packer.curvature.curvature_set import CurvatureSet, by_tensor_of
from packer.errors import CapError, PlanError
from packer.planning.account import Account
from packer.planning.measure import Progress, header_of, ignore_progress, tensor_infos
from packer.planning.plan import PackPlan, replan
from packer.progress import WeightCount
from packer.quantizers.choice import Choice, parse_choice
from packer.quantizers.curvature import Curvature
from packer.quantizers.formats import FormatError, row_shape
from packer.quantizers.quantize import dequantize, quantizable, quantize_reported
from packer.quantizers.rounding import RoundingReport
from packer.threads import as_completed

MAX_ROUNDS = 8
NEARLY_ALL = 0.9  # of a tensor's weights; the coarsest ternary codes keep more than the rest


@dataclass(frozen=True)
class Packed:
    """An artifact that fits. data: the file. plan: the plan it follows, with real sizes.

    encoded: by tensor. rounds: how often it was encoded, 1 if the planned sizes were right.
    roundings: how GPTQ went, for the tensors whose choice uses it. lost: tensor -> which of its
    weights decode to zeros, as text.
    """

    data: bytes
    plan: PackPlan
    encoded: Mapping[str, EncodedTensor]
    account: Account
    rounds: int
    roundings: Mapping[str, RoundingReport] = field(default_factory=dict)
    lost: Mapping[str, str] = field(default_factory=dict)

    @property
    def rounding_problems(self) -> dict[str, str]:
        """Tensor -> why it was not rounded as its choice says."""
        problems = {name: report.problem for name, report in self.roundings.items()}
        return {name: problem for name, problem in problems.items() if problem is not None}


@dataclass(frozen=True)
class _Encoding:
    """One tensor encoded under a choice."""

    choice: str
    encoded: EncodedTensor
    rounding: RoundingReport | None
    lost: str | None


def pack_to_cap(
    checkpoint: Checkpoint,
    pack_plan: PackPlan,
    curvature: CurvatureSet | None = None,
    progress: Progress = ignore_progress,
) -> Packed:
    """The artifact of a plan; its real bytes, code and margin included, are at most the cap.

    curvature: what choices with +gptq were measured with.

    Sizes of our coder repeat exactly, so that one round suffices. Sizes that differ (another
    version of a compressor) are put into the plan, which is solved again.
    Raises PlanError: the plan is for other contents, or needs curvature that is missing.
    CapError: nothing fits.
    """
    contents = contents_fingerprint(checkpoint)
    if pack_plan.measurement.contents != contents:
        raise PlanError(stale_plan(pack_plan, checkpoint, contents))
    header = _header(checkpoint, pack_plan)
    measurement = replace(pack_plan.measurement, header_bytes=header_bytes(header))
    if measurement != pack_plan.measurement:
        pack_plan = replan(pack_plan, measurement)
    done: dict[str, _Encoding] = {}
    for rounds in range(1, MAX_ROUNDS + 1):
        _encode_chosen(checkpoint, pack_plan, by_tensor_of(curvature), done, progress)
        sizes = {(name, one.choice): one.encoded.size_bytes for name, one in done.items()}
        planned = {(c.tensor, c.choice): c.size_bytes for c in pack_plan.plan.chosen}
        if sizes == planned:
            return _packed(pack_plan, header, done, rounds)
        pack_plan = replan(pack_plan, pack_plan.measurement.corrected(sizes))
    raise CapError(
        f"after {MAX_ROUNDS} rounds the real sizes still differ from the plan's; a compressor "
        "gives another size each time it runs"
    )


def stale_plan(pack_plan: PackPlan, checkpoint: Checkpoint, contents: str) -> str:
    return (
        f"the plan was made for {pack_plan.measurement.source} with contents "
        f"{pack_plan.measurement.contents[:12]}, and {checkpoint.source} has contents "
        f"{contents[:12]}. Plan this checkpoint (with the same --weights and --drop), or follow "
        "the plan's choices with --policy and --cap."
    )


def _encode_chosen(
    checkpoint: Checkpoint,
    pack_plan: PackPlan,
    curvature: Mapping[str, Curvature],
    done: dict[str, _Encoding],
    progress: Progress,
) -> None:
    """Update `done` to the plan's choices; tensors already encoded so are kept."""
    pending = [
        candidate
        for candidate in pack_plan.plan.chosen
        if candidate.tensor not in done or done[candidate.tensor].choice != candidate.choice
    ]

    choices = {one.tensor: _choice(one) for one in pending}

    def encode(candidate: Candidate) -> _Encoding:
        name = candidate.tensor
        return _encode(candidate, choices[name], checkpoint.tensors[name], curvature.get(name))

    weights = {one.tensor: checkpoint.meta_tensors[one.tensor].numel() for one in pending}
    count = WeightCount(progress, weights)
    largest_first = sorted(pending, key=lambda one: -weights[one.tensor])
    encoded = {}
    for candidate, one in as_completed(encode, largest_first, count.wait):
        count.end(candidate.tensor)
        encoded[candidate.tensor] = one
    done |= {name: encoded[name] for name in weights}
    count.begin("packed")


def _choice(candidate: Candidate) -> Choice:
    try:
        return parse_choice(candidate.choice)
    except FormatError as error:
        raise PlanError(f"{candidate.tensor}: {error}") from None


def _encode(
    candidate: Candidate, choice: Choice, weight: torch.Tensor, curvature: Curvature | None
) -> _Encoding:
    try:
        quantized, rounding = quantize_reported(weight, choice, curvature)
    except FormatError as error:
        raise PlanError(f"{candidate.tensor}: {error}") from None
    lost = lost_weights(weight, dequantize(quantized))
    return _Encoding(candidate.choice, encode_tensor(quantized, choice.coder), rounding, lost)


def lost_weights(weight: torch.Tensor, decoded: torch.Tensor) -> str | None:
    """Which weights decode to zeros, as text: whole rows or nearly all; None if neither."""
    if not quantizable(weight):  # stored unquantized
        return None
    before, after = (t.reshape(row_shape(tuple(t.shape))) != 0 for t in (weight, decoded))
    count, remaining = int(before.sum()), int((before & after).sum())
    if remaining < (1 - NEARLY_ALL) * count:
        return f"{count - remaining:,} of {count:,} weights that are not zero came back as zero"
    rows = before.any(1)
    gone = int((rows & ~after.any(1)).sum()) if before.shape[1] > 1 else 0
    return f"{gone:,} of {int(rows.sum()):,} rows came back as zeros" if gone else None


def _header(checkpoint: Checkpoint, pack_plan: PackPlan) -> bytes:
    """The header of the artifact. Raises PlanError: the plan describes other tensors or ties."""
    measurement, infos = pack_plan.measurement, tensor_infos(checkpoint)
    planned = [(info.name, info.shape, info.dtype) for info in measurement.tensors]
    actual = [(info.name, info.shape, info.dtype) for info in infos]
    if planned != actual or dict(measurement.ties) != checkpoint.ties:
        odd = next((p for p, f in zip(planned, actual, strict=False) if p != f), measurement.ties)
        raise PlanError(
            f"the plan describes other tensors than {checkpoint.source} holds, first {odd}; it was "
            "edited or damaged. Plan again."
        )
    return header_of(infos, checkpoint.ties, measurement.metadata, measurement.candidates)


def _packed(
    pack_plan: PackPlan, header: bytes, done: Mapping[str, _Encoding], rounds: int
) -> Packed:
    plan = pack_plan.plan
    encoded = {name: one.encoded for name, one in done.items()}
    roundings = {name: one.rounding for name, one in done.items() if one.rounding is not None}
    blocks = [encoded[name].block for name in sorted(encoded)]
    data = assemble(header, blocks, plan.cap_bytes, plan.code_bytes)
    side = sum(tensor.side_bytes for tensor in encoded.values())
    payload = sum(tensor.payload_bytes for tensor in encoded.values())
    account = Account(plan.cap_bytes, plan.code_bytes, len(data) - side - payload, side, payload)
    if account.total_bytes + plan.margin_bytes > plan.cap_bytes:
        raise CapError(f"the file is larger than was planned: {account}")
    lost = {name: one.lost for name, one in sorted(done.items()) if one.lost is not None}
    return Packed(data, pack_plan, encoded, account, rounds, roundings, lost=lost)
