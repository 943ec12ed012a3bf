"""Weights and curvature to an artifact that fills what the cap leaves, by the choices of a plan.

A plan's steps stand to each other as one multiplier has made them; here that multiplier is turned
until the file is as large as it may be. A bundle ships the source text of this, and of what this
needs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch

from packer.artifact import assemble, encode_header, encode_tensor, header_bytes
from packer.artifact_error import ArtifactError
from packer.quantizers.choice import Choice
from packer.quantizers.curvature import Curvature
from packer.quantizers.quantize import quantize

ROUNDS = 12  # of quantizing everything, at most
CLOSE = 40  # bytes left are few enough to stop
CLOSE_OCTAVES = 1 / 512  # between two multipliers
NEXT_STEP = -1 / 8  # octaves: what takes every step to the next finer one of its grid

Blocks = dict[str, bytes]


@dataclass(frozen=True)
class Filling:
    """What every tensor takes when all steps are multiplied by 2^octaves."""

    octaves: float
    blocks: Blocks

    @property
    def size(self) -> int:
        return sum(len(block) for block in self.blocks.values())


def filled(
    weights: Mapping[str, torch.Tensor],
    choices: Mapping[str, Choice],
    ties: Mapping[str, str],
    metadata: Mapping[str, str],
    curvature: Mapping[str, Curvature],
    cap_bytes: int,
    code_bytes: int,
) -> bytes:
    """The artifact of weights under choices, steps multiplied so that file and code fill the cap.

    Raises ArtifactError: it does not fit, however coarse.
    """
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

    fixed = {name: block(name, 0.0) for name in choices if choices[name].step is None}
    turned = [name for name in choices if name not in fixed]
    room = cap_bytes - code_bytes - header_bytes(header) - sum(map(len, fixed.values()))
    count = sum(weights[name].numel() for name in turned)
    found = largest_filling(
        lambda octaves: {name: block(name, octaves) for name in turned}, room, max(count, 1)
    )
    blocks = fixed | found
    return assemble(header, [blocks[name] for name in sorted(blocks)], cap_bytes, code_bytes)


def largest_filling(blocks_at: Callable[[float], Blocks], room: int, count: int) -> Blocks:
    """The largest blocks that fit into `room` bytes; count: of weights, about a bit per octave.

    What is left is given to some of the tensors, which take finer steps that were tried.
    """
    fits: Filling | None = None
    over: Filling | None = None
    finer: list[Blocks] = []
    octaves = 0.0
    for _ in range(ROUNDS):
        now = Filling(octaves, blocks_at(octaves))
        if now.size <= room:
            fits = now
        else:
            over = now
            finer.append(now.blocks)
        if fits is not None and (room - fits.size <= CLOSE or not fits.blocks):
            break
        if fits is None or over is None:
            octaves += (now.size - room + 16) * 8 / count * (1.5 if now is over else 1.0)
            continue
        if fits.octaves - over.octaves < CLOSE_OCTAVES:
            break
        # Sizes fall about as steeply as they are large.
        share = math.log(over.size / max(room, 1)) / math.log(over.size / max(fits.size, 1))
        octaves = over.octaves + min(max(share, 0.05), 0.95) * (fits.octaves - over.octaves)
    found = keep_fitting(fits, room)
    if room - found.size > CLOSE and found.blocks:
        finer.append(blocks_at(found.octaves + NEXT_STEP))
    return _topped_up(found.blocks, finer, room)


def keep_fitting(found: Filling | None, room: int) -> Filling:
    """Raises ArtifactError, in a bundle too: nothing fits."""
    if found is None:
        raise ArtifactError(f"the tensors do not fit into {room} bytes; allow more, or plan anew")
    return found


def _topped_up(blocks: Blocks, finer: list[Blocks], room: int) -> Blocks:
    """Some of the tensors finer: by the largest difference that there is room for, and so on."""
    left = room - sum(map(len, blocks.values()))
    chosen = dict(blocks)
    more = [(len(one[name]) - len(blocks[name]), name, one[name]) for one in finer for name in one]
    for difference, name, block in sorted(more, reverse=True):
        if 0 < difference <= left and chosen[name] is blocks[name]:
            chosen[name], left = block, left - difference
    return chosen


def read_tensors(data: bytes) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    """(tensors, metadata) of a safetensors file, of the dtypes that curvature and weights have."""
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    metadata = header.pop("__metadata__", {})
    kinds = {
        "F64": torch.float64,
        "F32": torch.float32,
        "F16": torch.float16,
        "BF16": torch.bfloat16,
    }
    found = {}
    for name, field in header.items():
        first, last = field["data_offsets"]
        raw = bytearray(data[start + first : start + last])
        found[name] = torch.frombuffer(raw, dtype=kinds[field["dtype"]]).reshape(field["shape"])
    return found, metadata


def read_curvatures(data: bytes) -> dict[str, Curvature]:
    """By tensor, of the file that `packer calibrate` writes."""
    tensors, metadata = read_tensors(data)
    tokens = json.loads(metadata["provenance"])["tokens"]
    parts: dict[str, dict[str, Any]] = {}
    for key, value in tensors.items():
        name, _, part = key.rpartition("/")
        parts.setdefault(name, {})[part] = value
    return {name: _curvature_of(found, "", tokens) for name, found in sorted(parts.items())}


def _curvature_of(parts: Mapping[str, Any], prefix: str, tokens: int) -> Curvature:
    fields = ("hessian", "fisher", "row_usage", "outputs")
    hessian, fisher, usage, outputs = (parts.get(prefix + field) for field in fields)
    assert hessian is not None
    both = not prefix and "lookup.hessian" in parts
    lookup = _curvature_of(parts, "lookup.", tokens) if both else None
    return Curvature(hessian, fisher, tokens, usage, lookup, outputs)
