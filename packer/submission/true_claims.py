"""The claims of submission.json: read as they are, and with true sizes in them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from packer.errors import SubmissionError
from packer.texts import read_text

CLAIMS = "submission.json"
TOTAL_KEYS = ("bytes_total", "total_bytes")
CODE_KEYS = ("bytes_code", "code_bytes")
EITHER_KEYS = ("artifact_bytes", "artifact_size_bytes", "artifact_bytes_max", "artifact_bytes_mean")


def read_claims(path: Path) -> Mapping[str, Any] | None:
    """None without a file. Raises SubmissionError: not a JSON object."""
    if not path.is_file():
        return None
    try:
        value = json.loads(read_text(path).text)
    except (ValueError, RecursionError, OSError) as error:
        raise SubmissionError(f"{path}: is not JSON ({error}); correct it by hand first") from None
    if not isinstance(value, dict):
        raise SubmissionError(f"{path}: is no object; correct it by hand first")
    return value


def corrected_claims(
    claims: Mapping[str, Any],
    old_artifact_bytes: int,
    code_bytes: int,
    artifact_bytes: int,
    cap_bytes: int,
) -> tuple[dict[str, Any], dict[str, tuple[Any, Any]]]:
    """(the claims with true sizes, claim -> (old, new)); scores and everything else stay.

    artifact_bytes and its like mean the model alone in some submissions and the total in others:
    which of the two is told by the old value.
    """
    total = code_bytes + artifact_bytes
    wanted: dict[str, Any] = {"bytes_total": total}
    for key in claims:
        if key in TOTAL_KEYS:
            wanted[key] = total
        elif key in CODE_KEYS:
            wanted[key] = code_bytes
        elif key.startswith("bytes_model"):
            wanted[key] = artifact_bytes
        elif key in EITHER_KEYS:
            wanted[key] = artifact_bytes if claims[key] == old_artifact_bytes else total
    if "total_bytes" in claims and "bytes_total" not in claims:
        del wanted["bytes_total"]
    found = {**claims, **wanted}
    changed = {
        key: (claims.get(key), value) for key, value in wanted.items() if claims.get(key) != value
    }
    compliance = claims.get("compliance")
    if isinstance(compliance, dict) and "artifact_under_16mb" in compliance:
        fits = total <= cap_bytes
        if compliance["artifact_under_16mb"] is not fits:
            changed["compliance.artifact_under_16mb"] = (compliance["artifact_under_16mb"], fits)
        found["compliance"] = {**compliance, "artifact_under_16mb": fits}
    return found, changed
