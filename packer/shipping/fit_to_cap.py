"""Encodes weights by the choices of a plan into an artifact that just fits the cap.

All steps in a plan share one multiplier; this searches for the value at which the file just fits
the cap. A bundle contains the source text of this module and of what it uses.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from packer.artifact.encoder import assemble, encode_header, encode_tensor, header_bytes
from packer.artifact.reader import ArtifactError
from packer.quantizers.choice import Choice
from packer.quantizers.curvature import Curvature, from_lower_triangle
from packer.quantizers.formats import Passthrough
from packer.quantizers.quantize import quantize

ROUNDS = 12  # of quantizing everything
CLOSE = 40  # bytes left are few enough to stop
# Between two multipliers, docs/shipping.md: tensors may then mix the two without loss.
CLOSE_OCTAVES = 1 / 64
NEXT_STEP = 1 / 4  # octaves: takes most steps to the next one of their grid

Blocks = dict[str, bytes]


@dataclass(frozen=True)
class Filling:
    """The blocks of all tensors when steps are multiplied by 2^octaves."""

    octaves: float
    blocks: Blocks

    @property
    def size(self) -> int:
        return total(self.blocks)


def fit_to_cap(
    weights: Mapping[str, torch.Tensor],
    choices: Mapping[str, Choice],
    ties: Mapping[str, str],
    metadata: Mapping[str, str],
    curvature: Mapping[str, Curvature],
    cap_bytes: int,
    code_bytes: int,
    threads: int = 1,
) -> bytes:
    """The artifact of weights under choices, with steps multiplied so that file and code fill the
    cap.

    threads: tensors encoded in parallel, which helps only with compiled loops.
    Raises ArtifactError: it does not fit, however coarse; weights or curvature are missing, of
    another shape, or not finite.
    """
    for name, choice in choices.items():
        keep_usable(name, weights.get(name), choice, curvature.get(name))
    shapes = {name: (str(weights[name].dtype)[6:], weights[name].shape) for name in choices}
    coder = "numpy" if any(one.coder == "numpy" for one in choices.values()) else None
    header = encode_header(shapes, ties, metadata, coder)

    def block(name: str, octaves: float) -> bytes:
        choice = choices[name]
        if choice.step is not None:
            choice = replace(choice, step=choice.step * 2**octaves)
        weight = weights[name].detach().cpu()
        quantized = quantize(weight, choice, curvature.get(name))
        return encode_tensor(quantized, choice.coder).block

    def blocks(names: list[str], octaves: float) -> Blocks:
        # torch gets one thread in each, so that results do not depend on `threads`.
        with ThreadPoolExecutor(threads, "", torch.set_num_threads, (1,)) as pool:
            return dict(zip(names, pool.map(lambda name: block(name, octaves), names), strict=True))

    scaled = [name for name in choices if choices[name].step is not None]
    kept = blocks([name for name in choices if choices[name].step is None], 0.0)
    room = cap_bytes - code_bytes - header_bytes(header) - total(kept)
    count = sum(weights[name].numel() for name in scaled)
    kept |= largest_filling(lambda octaves: blocks(scaled, octaves), room, max(count, 1))
    return assemble(header, [kept[name] for name in sorted(kept)], cap_bytes, code_bytes)


def largest_filling(blocks_at: Callable[[float], Blocks], room: int, count: int) -> Blocks:
    """The largest blocks that fit into `room` bytes. count: of weights; each changes by about a bit
    per octave.

    The remaining bytes go to some of the tensors, which take blocks of another multiplier.
    """
    fits: Filling | None = None
    over: Filling | None = None
    others: list[Blocks] = []
    octaves = 0.0
    for _ in range(ROUNDS):
        now = Filling(octaves, blocks_at(octaves))
        others.append(now.blocks)
        if now.size <= room:
            fits = now
        else:
            over = now
        if fits is not None and (room - fits.size <= CLOSE or not fits.blocks):
            break
        if fits is None or over is None:
            octaves += (now.size - room + 16) * 8 / count * (1.5 if now is over else 1.0)
            continue
        if fits.octaves - over.octaves < CLOSE_OCTAVES:
            break
        # The logarithm of the size is about linear in octaves.
        share = math.log(over.size / max(room, 1)) / math.log(over.size / max(fits.size, 1))
        octaves = over.octaves + min(max(share, 0.05), 0.95) * (fits.octaves - over.octaves)
    best = keep_fitting(fits, room)
    blocks = mixed(best.blocks, others, room)
    if room - total(blocks) > CLOSE and blocks:  # few tensors, or few steps to choose among
        others += [blocks_at(best.octaves + far) for far in (-NEXT_STEP, NEXT_STEP)]
        if total(others[-1]) <= room:
            blocks = mixed(others[-1], others, room)
    return blocks


def total(blocks: Blocks) -> int:
    return sum(map(len, blocks.values()))


def keep_fitting(filling: Filling | None, room: int) -> Filling:
    """Raises ArtifactError, in a bundle too: nothing fits."""
    if filling is None:
        raise ArtifactError(f"the tensors do not fit into {room} bytes; allow more, or plan anew")
    return filling


def mixed(blocks: Blocks, others: list[Blocks], room: int) -> Blocks:
    """Blocks with some replaced by larger ones of `others`, so that they fill the room best."""
    more = {
        name: {len(one[name]) - len(block): one[name] for one in others}
        for name, block in blocks.items()
    }
    left = min(room - total(blocks), sum(map(max, more.values())))
    sums = [np.arange(left + 1) == 0]  # reachable sums of the extra bytes of the tensors so far
    for extras in more.values():
        sums.append(sums[-1].copy())
        for extra in extras:
            if 0 < extra <= left:
                sums[-1][extra:] |= sums[-2][: left + 1 - extra]
    left = np.flatnonzero(sums.pop())[-1]
    chosen = dict(blocks)
    for name in reversed(more):
        before = sums.pop()
        if not before[left]:
            extra = next(one for one in more[name] if 0 < one <= left and before[left - one])
            chosen[name], left = more[name][extra], left - extra
    return chosen


def keep_usable(
    name: str, weight: torch.Tensor | None, choice: Choice, curvature: Curvature | None
) -> None:
    """Raises ArtifactError, in a bundle too: the weight or its curvature cannot be used."""
    problem = None
    if weight is None:
        problem = "is not among the weights"
    elif not (weight.isfinite() | (weight.isinf() & isinstance(choice.format, Passthrough))).all():
        problem = "has values that are not finite"
    elif choice.rounding != "nearest":
        problem = misfit(weight, choice.rounding, curvature)
    if problem:
        raise ArtifactError(f"{name} {problem}")


def misfit(weight: torch.Tensor, rounding: str, curvature: Curvature | None) -> str | None:
    """Why the curvature cannot be used for this rounding; None if it can."""
    if curvature is None:
        return "has no curvature: calibrate this model"
    fields = curvature.hessian, curvature.fisher, curvature.outputs
    if rounding == "gptq2" and curvature.outputs is None:
        return "has no curvature of outputs: calibrate again"
    if not all(field is None or field.isfinite().all() for field in fields):
        return "has curvature that is not finite"
    rows, columns = weight.numel() // max(weight.shape[-1], 1), weight.shape[-1]
    sizes = [len(field) for field in fields[1:2] if field is not None]
    if curvature.hessian.shape[-1] != columns or sizes not in ([], [rows]):
        return f"is {rows} x {columns}, and the curvature is of another shape: calibrate this model"
    return None


def read_tensors(data: bytes) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """(tensors, metadata) of a safetensors file, for the dtypes of curvature and weights."""
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    metadata = header.pop("__metadata__", {})
    kinds = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16}
    kinds["BF16"] = torch.bfloat16
    tensors = {}
    for name, field in header.items():
        first, last = field["data_offsets"]
        raw = bytearray(data[start + first : start + last])
        tensors[name] = torch.frombuffer(raw, dtype=kinds[field["dtype"]]).reshape(field["shape"])
    return tensors, metadata


def read_curvatures(data: bytes) -> dict[str, Curvature]:
    """Curvature by tensor from the bytes of a file that `packer calibrate` wrote."""
    tensors, metadata = read_tensors(data)
    tokens = json.loads(metadata["provenance"])["tokens"]
    shared = json.loads(metadata.get("shared", "{}"))
    parts: dict[str, dict[str, Any]] = {}
    for key, value in (tensors | {key: tensors[of] for key, of in shared.items()}).items():
        name, _, part = key.removesuffix(".lower").rpartition("/")
        value = from_lower_triangle(value) if key.endswith(".lower") else value
        parts.setdefault(name, {})[part] = value
    return {name: _curvature_of(fields, "", tokens) for name, fields in sorted(parts.items())}


def _curvature_of(parts: Mapping[str, Any], prefix: str, tokens: int) -> Curvature:
    fields = ("hessian", "fisher", "row_usage", "outputs")
    hessian, fisher, usage, outputs = (parts.get(prefix + field) for field in fields)
    assert hessian is not None
    both = not prefix and "lookup.hessian" in parts
    lookup = _curvature_of(parts, "lookup.", tokens) if both else None
    return Curvature(hessian, fisher, tokens, usage, lookup, outputs)
