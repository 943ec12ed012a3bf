"""Keys of an artifact's tables and entries: which change no weight, and refusal of unknown ones."""

from __future__ import annotations

import re
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
# Words about how codes were chosen or laid out, one scale for each row or one in all.
WORDS = frozenset(
    (
        *("gptq", "lite", "rtn", "naive", "simple", "percentile", "mse", "clip", "clipsearch"),
        *("sdclip", "fallback", "qat", "sym", "symmetric", "embed", "mlp", "attn", "matrix"),
        *("gate", "row", "rowwise", "per", "perrow", "tensor", "pertensor", "mixed", "precision"),
        *(
            "full",
            "hessian",
            "ar",
            "selfgen",
            "calib",
            "absmax",
            "quantile",
            "std",
            "kstd",
            "search",
        ),
        *("other", "head", "bigram", "lm", "tok", "emb", "proj", "fc", "control", "none"),
    )
)
CODES = re.compile(r"int([2-8])")
CLIP = re.compile(r"clip\d{1,3}")  # the largest code
# Words about tensors that are kept as they are, and about the dtype that they are kept in.
KEPT = re.compile(
    r"passthrough|ctrl|control|small|tiny|raw|exact|non|orig|original|dtype|kept|as|is|embed|norm|"
    r"scalar|vector|bias|int|(?:b?f|b?float|int)\d{0,2}|fp16|fp32"
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
        f"{key} {shown(value)}" if key in INFORMATIVE else str(key)
        for key, value in entry.items()
        if key not in known and not _harmless(key, value)
    )
    if odd:
        raise CheckpointError(
            f"{what} has {', '.join(odd)}, which may change its weights and is not known here; "
            f"{OWN_READER}"
        )


def _harmless(key: object, value: object) -> bool:
    if key in SWITCHES:
        return is_off(value)
    if isinstance(value, str):
        return key in INFORMATIVE and not odd_words(value)
    return key in INFORMATIVE and (value is None or isinstance(value, int | float))


def words_of(text: str) -> list[str]:
    return [word for word in re.split(r"[ _(),.:-]+", text.lower()) if word]


def odd_words(text: str) -> list[str]:
    """The words that may say how weights are computed: none that is known to say how codes were
    chosen, no number of bits and no number.
    """
    known = (CODES, CLIP, re.compile(r"\d+"))
    return [
        word
        for word in words_of(text)
        if word not in WORDS and not any(pattern.fullmatch(word) for pattern in known)
    ]


def is_kept(text: str, what: str) -> bool:
    """Whether a type says that a tensor is kept as it is.

    Raises CheckpointError: it says more about such a tensor than its dtype.
    """
    if not text.startswith("passthrough"):
        return False
    if odd := [word for word in words_of(text) if not KEPT.fullmatch(word)]:
        raise CheckpointError(
            f"{what} is called {shown(text)}, and {', '.join(odd)} is not known here; {OWN_READER}"
        )
    return True


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
