"""Parses the sizes in a training log, in all the forms that scripts print.

`Total submission size` without a label is the floating-point checkpoint's in the contest's scripts,
and counts only if other numbers contradict this. Labels are those printed by the script, which may
not describe the file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from packer.submission.named_sizes import NamedSize, named_size

NUMBER = r"(\d[\d,_]*)"
LABEL = r"([\w+\-. ]*?)"
MODELS = tuple(
    re.compile(rf"{name}:\s*{NUMBER} bytes", re.IGNORECASE)
    for name in (
        rf"Serialized model ?{LABEL}",
        r"Serialized ([\w\-.]+\+[\w+\-.]+)",
        r"serialized_model_(\w+)",
    )
)
CODE = re.compile(rf"Code size(?: \((uncompressed|compressed)\))?:\s*{NUMBER} bytes", re.IGNORECASE)
BUDGET = re.compile(rf"budget:\s*{NUMBER}\s*/\s*{NUMBER}\b")
TRIPLE = re.compile(rf"model:\s*{NUMBER} code:\s*{NUMBER} total:\s*{NUMBER}")
# artifact:0.87MB code:N total:N/16000000, with other sizes in MB between them
PARTS = re.compile(rf"artifact:\s*[\d.]+ ?MB\b.*?\bcode:\s*{NUMBER}.*?\btotal:\s*{NUMBER}\s*/")
# compressed_model_bytes:N code_bytes:N total_artifact_bytes:N, in any order
PAIR = (
    r"(compressed_model|quantized_model|code|total_artifact|total_submission|submission|artifact|"
    r"total)_bytes"
)
PAIRS = re.compile(rf"(?<!\w){PAIR}[:=]\s*{NUMBER}")
WITH_MB = re.compile(rf"{NUMBER} bytes \(((\d+)\.(\d+)) ?MB\)")
LARGEST_TOTAL = 24_000_000  # bytes, without a label and a parameter count; more is a checkpoint
BYTES_PER_WEIGHT = 1.3  # more is a checkpoint


@dataclass
class Sizes:
    """Bytes by label, in the order of their last lines. code: by its kind. artifact: by the seed
    that its line names. rounded: by whether it is a total, and by seed. mib: a printed number that
    counts MiB as MB.
    """

    models: dict[str, int] = field(default_factory=dict)
    totals: dict[str, int] = field(default_factory=dict)
    code: dict[str, int] = field(default_factory=dict)
    artifact: dict[str | None, int] = field(default_factory=dict)
    rounded: dict[tuple[bool, str | None], NamedSize] = field(default_factory=dict)
    mib: str | None = None


def integer(text: str) -> int:
    return int(text.replace(",", "").replace("_", ""))


def parse_sizes(lines: Iterable[str], parameters: int | None) -> dict[str, Any]:
    """Facts by their names in TrainingLog. parameters: of the model, if the log has them."""
    sizes = Sizes()
    for line in lines:
        _read(line, sizes)
        if match := WITH_MB.search(line):
            size, error = integer(match[1]), 0.51 * 10.0 ** -len(match[4])
            written = float(match[2])
            if abs(size / 2**20 - written) < error < abs(size / 1e6 - written):
                sizes.mib = f"{match[2]} MB"
    largest = BYTES_PER_WEIGHT * parameters if parameters else LARGEST_TOTAL
    code = sizes.code.get("compressed", sizes.code.get("plain", sizes.code.get("uncompressed")))
    checkpoint = sizes.models.pop("", None)
    unlabelled = sizes.totals.pop("", None)
    if unlabelled is not None and not sizes.totals:
        sums = {model + (code or 0) for model in sizes.models.values()}
        checkpoints = (checkpoint, (checkpoint or 0) + (code or 0))
        likely = not sizes.models and unlabelled not in checkpoints and unlabelled <= largest
        if unlabelled in sums or likely:
            sizes.totals["unlabelled"] = unlabelled
    # Some scripts call the model the artifact, others the total.
    artifact = max(sizes.artifact.values(), default=0)
    if not sizes.totals and artifact > max(sizes.models.values(), default=0):
        sizes.totals["artifact"] = artifact
    return {
        "rounded": None if sizes.models or sizes.totals else _rounded(sizes, largest),
        "models": tuple(sizes.models.items()),
        "totals": tuple(sizes.totals.items()),
        "checkpoint_bytes": checkpoint,
        "code_bytes": code,
        "raw_code_bytes": sizes.code.get("uncompressed") if "compressed" in sizes.code else None,
        "mib": sizes.mib,
    }


def _rounded(sizes: Sizes, largest: float) -> NamedSize | None:
    """The largest of all seeds' totals, or else of their artifacts; None without any. largest:
    bytes that an unlabelled total may have.
    """
    named = [
        one
        for one in sizes.rounded.values()
        if one.label or not one.is_total or one.size_bytes <= largest
    ]
    return max(named, key=lambda one: (one.is_total, one.size_bytes), default=None)


def has_size(line: str) -> bool:
    """Whether a line has the size of an artifact, as scripts print after writing one."""
    sizes = Sizes()
    _read(line, sizes)
    return bool(sizes.totals or sizes.artifact or sizes.rounded or set(sizes.models) - {""})


def _read(line: str, sizes: Sizes) -> None:
    for pattern in MODELS:
        if match := pattern.match(line):
            _put(sizes.models, match[1].strip().replace("_", "+"), integer(match[2]))
    if match := CODE.match(line):
        sizes.code[(match[1] or "plain").lower()] = integer(match[2])
    elif match := BUDGET.match(line):
        _put(sizes.totals, "budget", integer(match[1]))
    elif match := TRIPLE.match(line):
        _put_parts(sizes, "model", integer(match[1]), integer(match[2]), integer(match[3]))
    elif match := PARTS.match(line):
        code, total = integer(match[1]), integer(match[2])
        _put_parts(sizes, "artifact", total - code, code, total)
    elif PAIRS.match(line):
        for key, number in PAIRS.findall(line):
            if key == "artifact":
                sizes.artifact[None] = integer(number)
                continue
            kind = sizes.models if key.endswith("model") else sizes.totals
            _put(sizes.code if key == "code" else kind, "plain", integer(number))
    elif named := named_size(line):
        if named.error:
            sizes.rounded[named.is_total, named.seed] = named
        elif named.is_total and named.seed is None:
            _put(sizes.totals, named.label, named.size_bytes)
        else:
            sizes.artifact[named.seed] = named.size_bytes


def _put_parts(sizes: Sizes, label: str, model: int, code: int, total: int) -> None:
    _put(sizes.models, label, model)
    _put(sizes.totals, label, total)
    sizes.code["plain"] = code


def _put(sizes: dict[str, int], label: str, size: int) -> None:
    """Sets a label's size and moves it to the end."""
    sizes.pop(label, None)
    sizes[label] = size
