"""Entries of `m` of the layout {"w", "m"}, which describe a tensor, as values.

A text, or a dict with it under `type`: "passthrough...", "int6", "gptq (int6)", "gate_int8_row",
"clip15"; behind a plus sign what is added to codes × scales: "+awqgrpint8", "+lqer", "+lqer_asym".
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from packer.errors import CheckpointError
from packer.foreign.keys import (
    CLIP,
    CODES,
    OWN_READER,
    is_kept,
    is_on,
    odd_words,
    refuse_unknown,
    shown,
    words_of,
)
from packer.foreign.tensors import torch_dtype

ENTRY_KEYS = ("type", "shape", "dtype", "orig_dtype", "transposed")
AWQ = re.compile(r"awqgrpint[2-8]")
LOW_RANK, LOW_RANK_GROUPED = "lqer", "lqer_asym"


@dataclass(frozen=True)
class Meaning:
    """kept: not quantized. bits: of the codes, if given. additions: in file order.

    transposed: whether the codes are. dtype, shape: of the weights, if given.
    """

    kept: bool
    bits: int | None = None
    additions: tuple[str, ...] = ()
    transposed: bool = False
    dtype: torch.dtype | None = None
    shape: object = None


def meaning_of(name: str, value: object) -> Meaning:
    """Raises CheckpointError: a word or key that is not known, and names it."""
    entry = value if isinstance(value, Mapping) else {"type": value}
    refuse_unknown(entry, ENTRY_KEYS, f"{name}: its entry in m")
    text = entry.get("type")
    if not isinstance(text, str):
        raise CheckpointError(f"{name}: m calls it {shown(value)}, which says no type")
    dtypes = {torch_dtype(entry[key], name) for key in ("dtype", "orig_dtype") if key in entry}
    if len(dtypes) > 1:
        raise CheckpointError(f"{name}: its entry in m has two dtypes, {shown(value)}")
    dtype, shape = next(iter(dtypes), None), entry.get("shape")
    transposed = is_on(entry, "transposed", name)
    if is_kept(text, f"{name}: in m it"):
        return Meaning(True, None, (), transposed, dtype, shape)
    if dtype is not None and not dtype.is_floating_point:
        raise CheckpointError(
            f"{name}: m says {dtype}, and {shown(text)} has codes of floats; {OWN_READER}"
        )
    base, *additions = text.split("+")
    for addition in additions:
        if addition not in (LOW_RANK, LOW_RANK_GROUPED) and not AWQ.fullmatch(addition):
            raise CheckpointError(
                f"{name}: m calls it {shown(text)}, and +{addition} is not known here; {OWN_READER}"
            )
    return Meaning(False, _bits(name, base), tuple(additions), transposed, dtype, shape)


def _bits(name: str, base: str) -> int | None:
    """The N of intN; None where only the largest code is given."""
    words = words_of(base)
    counts = [match for word in words if (match := CODES.fullmatch(word))]
    clips = [word for word in words if CLIP.fullmatch(word)]
    if odd := odd_words(base):
        raise CheckpointError(
            f"{name}: m calls it {shown(base)}, and {', '.join(odd)} is not known here; "
            f"{OWN_READER}"
        )
    if len(counts) + len(clips) != 1:
        raise CheckpointError(
            f"m calls a tensor with codes {shown(base)} ({name}); int2 to int8 are known; "
            f"{OWN_READER}"
        )
    return int(counts[0][1]) if counts else None
