"""The layout {"w", "m"}: parts of every tensor under its name and a suffix, and what each one is.

    name.q, name.scale                          int5 to int8 codes, one per byte; a scale per row
    name.gq, name.gs                            small gates, int8 per row
    name.lqA_a, .lqAs_a, .lqB_a, .lqBs_a        a low-rank correction (PR #1797): int2 with one
                                                scale, int4 with a scale per group
    name.lqA, .lqAs, .lqB, .lqBs                the same, a scale per row of each factor
    name                                        kept as it is, or as float16

Dtypes are not in the file; its own reader takes them from the model that it loads into.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

from packer.errors import CheckpointError
from packer.foreign.int8 import table
from packer.foreign.tensors import ForeignTensor, Parts, computed, kept, plain, scaled
from packer.quantizers.formats import QuantizedTensor
from packer.quantizers.quantize import dequantize

SCALED = ("q", "scale")
GATE = ("gq", "gs")
LOW_RANK = ("lqA", "lqAs", "lqB", "lqBs")
LOW_RANK_GROUPED = ("lqA_a", "lqAs_a", "lqB_a", "lqBs_a")
SUFFIXES = (*SCALED, *GATE, *LOW_RANK, *LOW_RANK_GROUPED)
LARGEST_RANK = 4096


def read_mixed(
    value: Mapping[str, object], template: Mapping[str, torch.Tensor] | None, notes: list[str]
) -> dict[str, ForeignTensor]:
    """Raises CheckpointError: unknown keys, or parts that do not fit together."""
    odd = sorted(str(key) for key in set(value) - {"w", "m"})
    if odd:
        raise CheckpointError(f"beside w and m it has {', '.join(odd)}; another layout is mixed in")
    parts, meanings = table(value["w"], "w"), table(value["m"], "m")
    grouped = _by_tensor(parts, meanings)
    for name in meanings:
        if name not in grouped:
            raise CheckpointError(f"m describes {name}, of which w has no part")
    if template is None:
        notes.append(
            "the file does not say the dtypes of its tensors: float32 is assumed for all of them; "
            "with --template CKPT they are those of the checkpoint"
        )
    return {
        name: _tensor(name, found, meanings.get(name), template) for name, found in grouped.items()
    }


def _by_tensor(parts: Mapping[str, object], meanings: Mapping[str, object]) -> dict[str, Parts]:
    """Parts by tensor and suffix, in the order of the file; a tensor kept as it is has suffix ''.

    A name that m describes is a whole tensor even where it ends like a part.
    """
    found: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in parts.items():
        name, dot, suffix = key.rpartition(".")
        if key in meanings or not dot or suffix not in SUFFIXES:
            name, suffix = key, ""
        found.setdefault(name, {})[suffix] = plain(value, key)
    return {name: found[name] for name in found}


def _tensor(
    name: str, parts: Parts, meaning: object, template: Mapping[str, torch.Tensor] | None
) -> ForeignTensor:
    dtype = template[name].dtype if template is not None and name in template else None
    if set(parts) == {""}:
        return _kept(name, parts[""], meaning, dtype)
    for pair in (SCALED, GATE):
        if set(pair) <= set(parts):
            break
    else:
        raise CheckpointError(f"{name}: has only the parts {', '.join(sorted(parts))}")
    base = scaled(parts[pair[0]], parts[pair[1]], dtype or torch.float32, name, bits_of(meaning))
    rest = set(parts) - set(pair)
    if not rest:
        return ForeignTensor(_stored(base, meaning), parts, base)
    if rest not in (set(LOW_RANK), set(LOW_RANK_GROUPED)):
        raise CheckpointError(f"{name}: the parts {', '.join(sorted(rest))} have no known meaning")
    return ForeignTensor(_stored(base, meaning), parts, _corrected(name, base, parts))


def _kept(
    name: str, tensor: torch.Tensor, meaning: object, dtype: torch.dtype | None
) -> ForeignTensor:
    if meaning is not None and not str(meaning).startswith("passthrough"):
        raise CheckpointError(f"{name}: m calls it {meaning!r}, but w has it as it is")
    if not tensor.is_floating_point():
        return ForeignTensor("raw", {"": tensor}, kept(tensor, tensor.dtype))
    wanted = dtype or torch.float32
    quantized = kept(tensor, wanted if wanted.is_floating_point else tensor.dtype)
    return ForeignTensor(str(quantized.format), {"": tensor}, quantized)


def bits_of(meaning: object) -> int | None:
    """The N of {"type": "intN"}, "gptq (intN)" or "gate_int8_row"; None where there is none.

    Raises CheckpointError: a tensor with codes is called something else.
    """
    text = str(meaning.get("type")) if isinstance(meaning, Mapping) else str(meaning or "")
    match = re.search(r"int([2-8])(?!\d)", text)
    if meaning is not None and match is None:
        raise CheckpointError(f"m calls a tensor with codes {meaning!r}; int2 to int8 are known")
    return int(match[1]) if match else None


def _stored(base: QuantizedTensor, meaning: object) -> str:
    """The format, and what the artifact adds to it: int6.row+lqer_asym."""
    text = str(meaning or "")
    _, plus, correction = text.partition("+")
    return f"{base.format}{plus}{correction}"


def _corrected(name: str, base: QuantizedTensor, parts: Parts) -> QuantizedTensor:
    """Codes times scales plus the product of the factors, in float32, then cast."""
    weight = dequantize(
        QuantizedTensor(base.format, base.shape, torch.float32, base.codes, base.side)
    )
    left, right = _factors(name, parts)
    if len(base.shape) != 2 or (left.shape[0], right.shape[1]) != base.shape:
        raise CheckpointError(
            f"{name}: its correction {list(left.shape)} × {list(right.shape)} does not fit the "
            f"shape {list(base.shape)}"
        )
    return computed((weight + left @ right).to(base.dtype))


def _factors(name: str, parts: Parts) -> tuple[torch.Tensor, torch.Tensor]:
    """The two factors [rows, rank] and [rank, columns] in float32."""
    if "lqA_a" in parts:
        left, left_scale, right, right_scale = (parts[suffix] for suffix in LOW_RANK_GROUPED)
    else:
        left, left_scale, right, right_scale = (parts[suffix] for suffix in LOW_RANK)
    fits = left.dim() == right.dim() == 2 and left.shape[1] == right.shape[0] <= LARGEST_RANK
    groups = right_scale.numel()
    if (
        not fits
        or not groups
        or right.numel() % groups
        or left_scale.numel()
        not in (
            1,
            left.shape[0],
        )
    ):
        raise CheckpointError(
            f"{name}: factors {list(left.shape)} and {list(right.shape)} with "
            f"{left_scale.numel()} and {groups} scales do not fit together"
        )
    scaled_right = right.float().reshape(groups, -1) * right_scale.float().reshape(-1, 1)
    return left.float() * left_scale.float().reshape(-1, 1), scaled_right.reshape(right.shape)
