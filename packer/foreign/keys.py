"""Keys of an artifact's tables and entries: which change no weight, and refusal of unknown ones."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from packer.errors import CheckpointError

OWN_READER = "decode it with its author's own reader and use the weights that this gives"
LONGEST_SHOWN = 120
# How the codes were chosen. No author's reader computes with them.
INFORMATIVE = frozenset(
    (
        *("bits", "num_bits", "precision", "method", "category", "gptq", "per_row"),
        *("clip", "clip_pct", "clip_range", "qmax", "deadzone", "sdclip_k"),
    )
)
# Transforms of the weights, or other ways of storing codes, that a writer may have switched off.
SWITCHES = frozenset(
    (
        *("transposed", "packed", "aliases", "row_passthrough", "split_fp16", "rocket"),
        *("hadamard", "had_cols", "rotated", "turbo", "boustrophedon"),
    )
)


def shown(value: object) -> str:
    """A value for a refusal: on one line, and a short one."""
    text = " ".join(repr(value).split())
    return text if len(text) <= LONGEST_SHOWN else f"{text[: LONGEST_SHOWN - 3]}..."


def table(value: object, key: str) -> Mapping[str, object]:
    """A dict by tensor name. Raises CheckpointError: it is none."""
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise CheckpointError(f"its {key} is a {type(value).__name__}, not a dict by tensor name")
    return value


def refuse_unknown(entry: Mapping[Any, object], known: Collection[str], what: str) -> None:
    """Raises CheckpointError: a key is neither in `known`, nor a switch that is off, nor a number
    or text among `INFORMATIVE`; names all such keys. what: whose keys they are.
    """
    odd = sorted(
        str(key) for key, value in entry.items() if key not in known and not _harmless(key, value)
    )
    if odd:
        raise CheckpointError(
            f"{what} has {', '.join(odd)}, which may change its weights and is not known here; "
            f"{OWN_READER}"
        )


def _harmless(key: object, value: object) -> bool:
    if key in SWITCHES:
        return is_off(value)
    return key in INFORMATIVE and (value is None or isinstance(value, str | int | float))


def is_off(value: object) -> bool:
    """Whether a switch is off: False, None, 0 or an empty list."""
    return value is None or (isinstance(value, int | list | tuple) and not value)


def is_on(entry: Mapping[Any, object], key: str, what: str) -> bool:
    """Whether a known switch is True. Raises CheckpointError: it is neither True nor off."""
    value = entry.get(key)
    if value is not True and not is_off(value):
        raise CheckpointError(f"{what}: {key} is {shown(value)}; True or False belongs there")
    return value is True


def refuse_other_shape(entry: Mapping[Any, object], shape: tuple[int, ...], what: str) -> None:
    """Raises CheckpointError: the entry's `shape` is not the tensor's."""
    declared = entry.get("shape")
    if declared is None:
        return
    if not isinstance(declared, list | tuple) or tuple(declared) != shape:
        raise CheckpointError(
            f"{what} has the shape {list(shape)}, and is said to have {shown(declared)}"
        )
