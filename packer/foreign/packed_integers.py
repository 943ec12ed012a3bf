"""Weights as GPTQ and AWQ store them: integers of a few bits packed into int32, with a scale and a
zero for every group of inputs.

GPTQ is read as AutoGPTQ's `qlinear_cuda.py` computes, AWQ as AutoAWQ's `packing_utils.py` (GEMM).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from packer.errors import CheckpointError

PARTS = ("qweight", "qzeros", "scales", "g_idx")
AWQ_ORDER = [0, 4, 1, 5, 2, 6, 3, 7]  # where each of eight columns lies in its word
BITS = {"gptq": (2, 3, 4, 8), "awq": (4,)}
VARIANTS = {"gptq": ("checkpoint_format", ["gptq", "gptq_v2"]), "awq": ("version", ["gemm"])}
UNPACKED = "use the folder of the unquantized model, or dequantize and save it"


@dataclass(frozen=True)
class Packing:
    """How a folder's layers are packed. group_size: inputs that share a scale, None for all.

    zero_offset: what is to be added to a stored zero.
    """

    method: str
    bits: int
    group_size: int | None
    zero_offset: int

    @property
    def words(self) -> str:
        group = "" if self.group_size is None else f" g{self.group_size}"
        return f"{self.method} int{self.bits}{group}"


def packing_of(settings: Mapping[str, Any], where: str) -> Packing:
    """The packing that a quantization_config describes; where: its file, for error messages.

    Raises CheckpointError: another method, or a variant of one that is not read.
    """
    method = str(settings.get("quant_method", "?"))
    if method not in BITS:
        raise CheckpointError(
            f"{where}: the weights are quantized already ({method}), and of such only GPTQ and AWQ "
            f"are read; {UNPACKED}"
        )
    key, known = VARIANTS[method]
    variant = str(settings.get(key, known[0])).lower()
    if variant not in known:
        raise CheckpointError(
            f"{where}: the weights are quantized already ({method}) with {key} {variant!r}, where "
            f"{' and '.join(known)} are read; {UNPACKED}"
        )
    bits, group = settings.get("bits"), settings.get("group_size", -1)
    allowed = BITS[method]
    if (
        not isinstance(bits, int)
        or bits not in allowed
        or not isinstance(group, int)
        or not (group > 0 or group == -1)
    ):
        raise CheckpointError(
            f"{where}: {method} with bits {bits!r} and group_size {group!r}, where bits are one of "
            f"{', '.join(map(str, allowed))} and a group is of 1 input or more, or -1; {UNPACKED}"
        )
    offset = int(method == "gptq" and variant == "gptq")
    return Packing(method, bits, None if group == -1 else group, offset)


def shape_of(packing: Packing, parts: Mapping[str, Tensor]) -> tuple[int, int]:
    """(outputs, inputs) of a layer. parts: by the names in PARTS, g_idx only of GPTQ.

    Raises ValueError: a part is missing, or of another shape or dtype than the others ask for.
    """
    for part in PARTS[:3]:
        if part not in parts:
            raise ValueError(f"has no {part}")
    for name, one in parts.items():
        right = one.is_floating_point() if name == "scales" else one.dtype == torch.int32
        if not right or one.dim() != (1 if name == "g_idx" else 2):
            raise ValueError(f"has {name} of {one.dtype} and shape {list(one.shape)}")
    rows, columns = parts["qweight"].shape
    bits, by_rows = packing.bits, packing.method == "gptq"
    inputs = rows * 32 // bits if by_rows else rows
    outputs = columns if by_rows else columns * 32 // bits
    groups = -(-inputs // (packing.group_size or max(inputs, 1)))
    wanted = {
        "qweight": [inputs * bits / 32, outputs] if by_rows else [inputs, outputs * bits / 32],
        "qzeros": [groups, outputs * bits / 32],
        "scales": [groups, outputs],
        "g_idx": [inputs],
    }
    for name, one in parts.items():
        if list(one.shape) != wanted[name]:
            raise ValueError(
                f"has {name} {list(one.shape)}, which does not go with qweight {[rows, columns]} "
                f"of {packing.words}"
            )
    return outputs, inputs


def dequantized(packing: Packing, parts: Mapping[str, Tensor]) -> Tensor:
    """The weight, float32 [outputs, inputs], of parts that `shape_of` has checked.

    Raises ValueError: g_idx names a group that is not there.
    """
    scales = parts["scales"].float()
    zeros = _unpacked(parts["qzeros"], packing.bits)
    if packing.method == "awq":
        codes, zeros = (_ordered(_unpacked(parts["qweight"], 4)).T, _ordered(zeros))
    else:
        codes = _unpacked(parts["qweight"].T, packing.bits)
    zeros = (zeros + packing.zero_offset) & (2**packing.bits - 1)
    inputs = codes.shape[1]
    group = parts.get(
        "g_idx", torch.arange(inputs) // (packing.group_size or max(inputs, 1))
    ).long()
    if inputs and not 0 <= int(group.min()) <= int(group.max()) < len(scales):
        raise ValueError(
            f"has g_idx from {int(group.min())} to {int(group.max())}, with {len(scales)} groups"
        )
    weight: Tensor = (codes.float() - zeros.T.float()[:, group]) * scales.T[:, group]
    return weight


def _unpacked(words: Tensor, bits: int) -> Tensor:
    """uint8 [rows, 32 / bits x columns] of int32 [rows, columns], lowest bits first.

    A code of 3 bits may lie in two words.
    """
    stored = np.ascontiguousarray(words.numpy()).astype("<i4", copy=False).view(np.uint8)
    flags = np.unpackbits(stored, axis=1, bitorder="little").reshape(len(stored), -1, bits)
    return torch.from_numpy(np.packbits(flags, axis=2, bitorder="little")[:, :, 0])


def _ordered(codes: Tensor) -> Tensor:
    """Columns in the model's order; AWQ puts every eight as 0, 2, 4, 6, 1, 3, 5, 7."""
    return codes.reshape(len(codes), -1, 8)[:, :, AWQ_ORDER].reshape(len(codes), -1)
