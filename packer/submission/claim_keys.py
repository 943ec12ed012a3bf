"""The meaning of the keys of a submission.json, for the checker and for `packer fix`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

UNITS = {"": 1, "b": 1, "bytes": 1, "kb": 10**3, "mb": 10**6, "kib": 2**10, "mib": 2**20}
SIZE_WORDS = {"bytes", "byte", "size", "kb", "mb", "mib"}
# Sizes of something else, limits, and differences.
OTHERS = frozenset(
    """raw uncompressed unzipped unpacked checkpoint fp32 fp16 bf16 float limit cap allowed budget
    headroom margin left remaining unused free over under above std stdev delta diff saved saving
    savings reduction memory gpu vram ram peak batch vocab vocabulary train val eval seq tokenizer
    tokens
    data dataset payload per param params context chunk block window hidden embedding bigram head
    baseline previous old parent sota prior ratio world pre before original seed seen
    processed scored read""".split()  # noqa: SIM905
)
ONE = {"sizes": "size", "artifacts": "artifact", "totals": "total", "models": "model"}
MEANS = {"mean", "avg", "average", "median"}
LEAST = {"min", "smallest", "best"}
PACKED = {"wrapped", "packed", "compressed", "minified", "zipped"}
ARTIFACT = {"artifact", "compressed", "zipped", "zip", "file", "archive"}
CODECS = {"zlib", "gzip", "zstd", "lzma", "xz", "brotli"}
CAMEL = re.compile(r"(?<=[a-z\d])(?=[A-Z])")


class Kind(Enum):
    """ARTIFACT: the model alone to some authors, the total to others."""

    TOTAL = "total"
    ARTIFACT = "artifact"
    MODEL = "model"
    CODE = "code"


@dataclass(frozen=True)
class SizeKey:
    """A key that holds a size. unit: bytes per unit of a bare number. of: "largest", "mean" or
    "least" of all runs. preferred: the key of the highest value is taken among those of its kind.
    """

    key: str
    kind: Kind
    unit: int
    of: str
    preferred: int


def size_key(key: str) -> SizeKey | None:
    """The meaning of a key; None for one that holds no size of the submission."""
    words = [ONE.get(word, word) for word in re.findall(r"[a-z]+\d*", CAMEL.sub("_", key).lower())]
    distinct = set(words)
    if not distinct & SIZE_WORDS or distinct & OTHERS:
        return None
    kind = _kind(distinct)
    if kind is None:
        return None
    unit = next((UNITS[word] for word in words if word in ("kb", "mb", "mib")), 1)
    of = "mean" if distinct & MEANS else "least" if distinct & LEAST else "largest"
    preferred = 2 * (unit == 1) + bool(distinct & ({"max"} | PACKED)) - 8 * (of != "largest")
    return SizeKey(key, kind, unit, of, preferred)


def _kind(words: set[str]) -> Kind | None:
    code = bool(words & {"code", "wrapper", "wrapped", "script", "source"})
    model = bool(words & {"model", "weights", "quantized"})
    if code != model:
        # A model_size may count weights.
        counts = code or (words - {"size"}) & SIZE_WORDS or words & PACKED
        return Kind.CODE if code else Kind.MODEL if counts else None
    if code or words & {"total", "submission"}:
        return Kind.TOTAL
    named = words & (ARTIFACT | CODECS) or words - {"final"} <= SIZE_WORDS
    return Kind.ARTIFACT if named else None
