"""The layout {"w", "m"}: parts of every tensor under its name and a suffix, and what each one is.

    name.q, name.scale          int5 to int8 codes, one per byte; a scale per row
    name.gq, name.gs            small gates, int8 per row
    name.awqg_..., name.lq...   what is added to them (corrections.py)
    name                        not quantized, or as float16

Dtypes are seldom in the file; its own reader takes them from the model that it loads into. It reads
only the parts of w that m describes, so that any other part is refused.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from packer.errors import CheckpointError
from packer.foreign import corrections
from packer.foreign.keys import OWN_READER, refuse_other_shape, table
from packer.foreign.meanings import Meaning, meaning_of
from packer.foreign.tensors import ForeignTensor, Parts, computed, kept, plain, scaled

SCALED = ("q", "scale")
GATE = ("gq", "gs")
SUFFIXES = (*SCALED, *GATE, *corrections.SUFFIXES)
Template = Mapping[str, torch.Tensor] | None


def read_mixed(
    value: Mapping[str, object], template: Template, notes: list[str]
) -> dict[str, ForeignTensor]:
    """Raises CheckpointError: unknown keys, or parts that do not fit together."""
    odd = sorted(str(key) for key in set(value) - {"w", "m"})
    if odd:
        raise CheckpointError(
            f"beside w and m it has {', '.join(odd)}; another layout is mixed in, which is not "
            f"known here; {OWN_READER}"
        )
    parts, meanings = table(value["w"], "w"), table(value["m"], "m")
    described = {name: meaning_of(name, entry) for name, entry in meanings.items()}
    grouped = _by_tensor(parts, meanings)
    for name in meanings:
        if name not in grouped:
            raise CheckpointError(f"m describes {name}, of which w has no part")
    assumed = sum(meaning.dtype is None for meaning in described.values())
    if template is None and assumed:
        notes.append(note_of_dtypes(assumed))
    return {name: _tensor(name, own, described[name], template) for name, own in grouped.items()}


def note_of_dtypes(count: int) -> str:
    """The note that float32 was assumed for `count` tensors."""
    return (
        f"the file does not say the dtypes of {count} tensors: float32 is assumed for all of them; "
        "with --template CKPT they are those of the checkpoint"
    )


def _by_tensor(parts: Mapping[str, object], meanings: Mapping[str, object]) -> Mapping[str, Parts]:
    """Parts by tensor and suffix, in the order of the file; an unquantized tensor has suffix ''.

    A name that m describes is a whole tensor even where it ends like a part.
    """
    grouped: dict[str, dict[str, torch.Tensor]] = {}
    for key, value in parts.items():
        name, _, suffix = key.rpartition(".")
        if key in meanings:
            name, suffix = key, ""
        elif name not in meanings:
            raise CheckpointError(f"w has {key}, of which m says nothing; {OWN_READER}")
        elif suffix not in SUFFIXES:
            raise CheckpointError(f"{name}: its part {suffix} has no known meaning; {OWN_READER}")
        grouped.setdefault(name, {})[suffix] = plain(value, key)
    return grouped


def _tensor(name: str, parts: Parts, meaning: Meaning, template: Template) -> ForeignTensor:
    dtype = _dtype(name, meaning, template)
    if set(parts) == {""}:
        return _kept(name, parts[""], meaning, dtype)
    if meaning.kept:
        raise CheckpointError(f"{name}: m calls a tensor with codes one that is kept as it is")
    pair = GATE if GATE[0] in parts else SCALED
    if not set(pair) <= set(parts):
        raise CheckpointError(f"{name}: has only the parts {', '.join(sorted(parts))}")
    wrong = (set(parts) - set(pair)) ^ corrections.suffixes_of(meaning.additions)
    if wrong:
        raise CheckpointError(
            f"{name}: m says {'+'.join(meaning.additions) or 'of no correction'}, and the parts "
            f"{', '.join(sorted(wrong))} are there without it or missing, so that they have no "
            f"known meaning; {OWN_READER}"
        )
    codes, scale = parts[pair[0]], parts[pair[1]]
    if meaning.transposed:
        codes, parts = _turned(name, codes), {"q_transposed": codes, **_without(parts, pair[0])}
    base = scaled(codes, scale, dtype or torch.float32, name, meaning.bits)
    refuse_other_shape({"shape": meaning.shape}, base.shape, name)
    stored = "+".join((str(base.format), *meaning.additions))
    if not meaning.additions:
        return ForeignTensor(stored, parts, base)
    weight = corrections.corrected(name, codes, scale, parts)
    return ForeignTensor(stored, parts, computed(weight.to(base.dtype)))


def _dtype(name: str, meaning: Meaning, template: Template) -> torch.dtype | None:
    """By the template, else by m. Raises CheckpointError: they say different ones."""
    if template is None or name not in template:
        return meaning.dtype
    wanted = template[name].dtype
    if meaning.dtype not in (None, wanted):
        raise CheckpointError(
            f"{name}: is {meaning.dtype} by m and {wanted} in the template; name the checkpoint of "
            "this very model"
        )
    return wanted


def _turned(name: str, codes: torch.Tensor) -> torch.Tensor:
    """The matrix whose transpose the file has; its scales are those of the matrix's own rows."""
    if codes.dim() != 2:
        raise CheckpointError(
            f"{name}: codes of shape {list(codes.shape)} are said to be transposed; a matrix "
            "belongs there"
        )
    return codes.T.contiguous()


def _without(parts: Parts, suffix: str) -> Parts:
    return {key: part for key, part in parts.items() if key != suffix}


def _kept(
    name: str, tensor: torch.Tensor, meaning: Meaning, dtype: torch.dtype | None
) -> ForeignTensor:
    if not meaning.kept or meaning.transposed:
        raise CheckpointError(f"{name}: m does not call it kept, but w has it as it is")
    refuse_other_shape({"shape": meaning.shape}, tuple(tensor.shape), name)
    if not tensor.is_floating_point():
        return ForeignTensor("raw", {"": tensor}, kept(tensor, tensor.dtype))
    wanted = dtype or torch.float32
    quantized = kept(tensor, wanted if wanted.is_floating_point else tensor.dtype)
    return ForeignTensor(str(quantized.format), {"": tensor}, quantized)
