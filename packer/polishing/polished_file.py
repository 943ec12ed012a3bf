"""A polished file: packed with a little room, tuned, coded anew under the same cap, and judged."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

from packer.account import Account
from packer.artifact import (
    POLISHED_MARK,
    Artifact,
    EncodedTensor,
    assemble,
    encode_tensor,
    header_bytes,
)
from packer.candidates import Measurement
from packer.errors import PolishError
from packer.eval.damage import DamageMeter
from packer.eval.shards import TokenStream
from packer.fit import Packed
from packer.measuring import Progress, header_of, ignore_progress
from packer.planning import PackPlan
from packer.polishing.distilling import DEFAULT_PACE, Pace, distil
from packer.polishing.outcome import PolishOutcome
from packer.quantizers.choice import parse_choice
from packer.quantizers.formats import QuantizedTensor
from packer.quantizers.quantize import dequantize

# What a plan leaves free for a polish: its mark in the metadata, and the few bytes that tuned
# floats may take more.
ROOM_BYTES = 64


@dataclass(frozen=True, eq=False)
class Polisher:
    """What a file is tuned by.

    meter: with the unquantized model, on held-out tokens; they choose nothing but whether to keep
    the result. held_out: these, in words. text, window, seconds, pace: as of `distil`.
    """

    meter: DamageMeter
    text: TokenStream
    window: int
    seconds: float
    pace: Pace = DEFAULT_PACE
    held_out: str = "held-out text"


def check_room(pack_plan: PackPlan) -> None:
    """Raises PolishError: the plan keeps no room for a polish."""
    margin = pack_plan.limits.margin_bytes
    if margin < ROOM_BYTES:
        raise PolishError(
            f"a polish takes up to {ROOM_BYTES} bytes out of the plan's margin, and that is "
            f"{margin}: plan again with --margin {ROOM_BYTES}, or pack with --cap in place of "
            "--plan"
        )


def polished(packed: Packed, polisher: Polisher, progress: Progress = ignore_progress) -> Packed:
    """The file tuned, under its cap; or as it was, where held-out tokens are no better off.

    Raises PolishError: no room, or see `distil`. ScoreError: the model cannot be run so.
    """
    check_room(packed.plan)
    started = time.perf_counter()
    meter, tensors = polisher.meter, Artifact.from_bytes(packed.data).tensors
    before = _measured(meter, tensors, "before", progress)
    spent = time.perf_counter() - started
    distilled = distil(
        tensors,
        meter,
        polisher.text,
        polisher.window,
        seconds=max(polisher.seconds - 2 * spent, 0.0),
        pace=polisher.pace,
        progress=progress,
    )
    again, settled = _coded_anew(packed, tensors, distilled.tensors)
    after = _measured(meter, settled, "after", progress)
    outcome = PolishOutcome(
        before,
        after,
        polisher.held_out,
        len(meter.stream) - 1,
        distilled.steps,
        time.perf_counter() - started,
        distilled.cut_short,
        _worth_bytes(packed.plan, 1 - after / before if before else 0.0),
    )
    return replace(again if outcome.kept else packed, polish=outcome)


def _measured(
    meter: DamageMeter, tensors: Mapping[str, QuantizedTensor], what: str, progress: Progress
) -> float:
    """KL in bits per byte on the held-out tokens."""
    weights = {name: dequantize(one) for name, one in tensors.items() if name in meter.live}

    def told(done: int, total: int) -> None:
        progress(f"polishing, {what}", done, total)

    return meter.divergence(weights, told).kl_bits_per_byte


def _worth_bytes(pack_plan: PackPlan, share: float) -> int | None:
    """How many bytes the plan would pay for a fall of its damage by this share."""
    plan = pack_plan.plan
    if plan.damage_kind != "damage_bpb" or not plan.price:
        return None
    return round(share * plan.damage / plan.price)


def _coded_anew(
    packed: Packed, old: Mapping[str, QuantizedTensor], new: Mapping[str, QuantizedTensor]
) -> tuple[Packed, dict[str, QuantizedTensor]]:
    """(the file, what it holds): the new tensors, but as many old ones in their place, those that
    grew most first, as it takes to stay under the cap.
    """
    plan, header = packed.plan.plan, _marked_header(packed.plan)
    encoded, settled = dict(packed.encoded), dict(new)
    for name, choice in plan.choices.items():
        encoded[name] = encode_tensor(new[name], parse_choice(choice).coder)
    growth = {name: encoded[name].size_bytes - packed.encoded[name].size_bytes for name in encoded}
    grown = header_bytes(header) - plan.header_bytes
    room = plan.unused_bytes - (plan.margin_bytes - ROOM_BYTES) - grown
    for name in sorted(growth, key=lambda name: (-growth[name], name)):
        if sum(growth.values()) <= room:
            break
        encoded[name], settled[name], growth[name] = packed.encoded[name], old[name], 0
    return _assembled(packed, encoded, header), settled


def _marked_header(pack_plan: PackPlan) -> bytes:
    measurement = _marked(pack_plan.measurement)
    return header_of(
        measurement.tensors, measurement.ties, measurement.metadata, measurement.candidates
    )


def _marked(measurement: Measurement) -> Measurement:
    return replace(measurement, metadata={**measurement.metadata, POLISHED_MARK: "1"})


def _assembled(packed: Packed, encoded: Mapping[str, EncodedTensor], header: bytes) -> Packed:
    """The same file with other blocks; its plan has their sizes, and keeps no more room."""
    plan, limits = packed.plan.plan, packed.plan.limits
    blocks = [encoded[name].block for name in sorted(encoded)]
    data = assemble(header, blocks, plan.cap_bytes, plan.code_bytes)
    side = sum(one.side_bytes for one in encoded.values())
    payload = sum(one.payload_bytes for one in encoded.values())
    account = Account(plan.cap_bytes, plan.code_bytes, len(data) - side - payload, side, payload)
    margin = limits.margin_bytes - ROOM_BYTES
    sizes = {(name, plan.choices[name]): one.size_bytes for name, one in encoded.items()}
    measurement = _marked(packed.plan.measurement.corrected(sizes))
    fixed = header_bytes(header)
    weighed = replace(
        packed.plan,
        measurement=replace(measurement, header_bytes=fixed),
        limits=replace(limits, margin_bytes=margin),
        plan=replace(
            plan,
            header_bytes=fixed,
            margin_bytes=margin,
            chosen=tuple(replace(c, size_bytes=sizes[c.tensor, c.choice]) for c in plan.chosen),
        ),
    )
    return replace(packed, data=data, plan=weighed, encoded=encoded, account=account)
