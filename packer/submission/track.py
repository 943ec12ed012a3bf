"""Recognizes tracks without time limits, and runs on other hardware than the contest's."""

from __future__ import annotations

import re
from pathlib import Path

from packer.submission.claims import Claims
from packer.submission.hardware import Hardware, hardware_in
from packer.submission.training_log import TrainingLog

UNLIMITED = re.compile(r"non[-_ ]?record|unlimited", re.IGNORECASE)
RECORD = re.compile(r"10[-_ ]?min|(?<!non)[-_ ]record|^record", re.IGNORECASE)
# In a README the words must refer to this submission: records are compared with such runs.
THESE = r"(?<!not a )(?:non[-_ ]?record|unlimited[-_ ]compute)\b"
README = re.compile(
    rf"\A\s*# [^\n]*{THESE}|"
    rf"^[\s>*_#]*{THESE}(?=\W*(?:$|[:,.(—–]|submission|track|entry|16))|"
    rf"\b(?:this (?:is|was)|as|is) (?:an? )?(?:(?!the )\w+ ){{0,2}}{THESE}|"
    r"\b(?:submitted|submission|intended|meant) (?:is )?(?:intended )?(?:to|for|in|under) "
    rf"(?:the )?{THESE}|"
    r"(?:track|category|type|status)\W{1,8}(?:non[-_ ]record|unlimited)",
    re.IGNORECASE | re.MULTILINE,
)
README_START = 4_000  # characters


def unlimited_by(folder: str, claims: Claims | None, readme: str | None) -> str | None:
    """The evidence that the track has no time limits; None for records and without evidence.

    submission.json decides; else the names of the folder and its two parents, or the README.
    """
    if claims is not None and UNLIMITED.search(claims.track):
        return f"submission.json ({claims.track})"
    if claims is not None and RECORD.search(claims.track):
        return None
    for part in Path(folder).resolve().parts[-3:]:
        if UNLIMITED.search(part):
            return f"the folder {part}"
    texts = {"README.md": readme or ""}
    if claims is not None:
        texts |= {key: str(claims.value.get(key, "")) for key in ("name", "blurb")}
    for where, text in texts.items():
        match = README.search(text[:README_START])
        if match is not None:
            return f"{where} ({match[0].strip()[:60]!r})"
    return None


def other_hardware(log: TrainingLog | None, claims: Claims | None) -> str | None:
    """A machine other than the contest's, in words, by the log or else by submission.json; None
    without evidence.
    """
    claimed = claims.hardware if claims is not None else Hardware()
    gpus = log.world_size if log is not None and log.world_size is not None else claimed.gpus
    model = log.gpu if log is not None and log.gpu is not None else None
    named = claimed.model if model is None else hardware_in(model).model
    return Hardware(gpus, named).other
