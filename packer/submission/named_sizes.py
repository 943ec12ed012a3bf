"""Parses a line that begins with the name of a size: `Total size: 16,270,123 bytes`.

Names are read in any capitals, with spaces, underscores or hyphens between words, with or without
the seed of the run. A size in MB or another unit is exact only where its bytes follow.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from packer.submission.claim_keys import UNITS

LEAST_SIZE = 1_000_000  # bytes; a smaller number may be anything, unless its name says what
LONGEST_LINE = 200  # characters that are searched
# 16270123, 16,270,123, 16_270_123, 16.270.123, 16'270'123, 16 270 123; and 16.27 or 16,27
DIGITS = r"\d{1,3}(?:[.'’ ]\d{3}){2,}(?![\d.])|\d[\d,_]*(?:\.\d+)?"
UNIT = r"(?:[KM]i?)?B(?:ytes?)?"
SEED = r"[(\[]?(?<![a-z])seed[ _=:#]{{0,2}}(?P<{}>\d+)[)\]]?"
SIZE = r"(?:[ _-]?(?:size|bytes))"
TOTAL = (
    rf"(?:total|final)[ _-](?:submission|model)?{SIZE}{{1,2}}"
    rf"|(?:total[ _-])?submission{SIZE}{{0,2}}"
    rf"|(?:total )?\(?(?:model ?\+ ?code|code ?\+ ?model)\)?{SIZE}{{0,2}}"
)
ARTIFACT = (
    rf"(?:[\w+\-.:]+[ _-])?artifact{SIZE}{{0,2}}"
    rf"|(?:compressed|zipped|packed|quantized|archive|zip)(?:[ _-]model)?{SIZE}{{1,2}}"
    r"|zipped|compressed"
)
SEPARATOR = r"(?: ?(?:[:=]|[-=]>|[-–—→]|\bis\b)| )"
LABEL = r"\(?(?P<label>[\w+.][\w+.\- ]*?)\)?"
NAMED = re.compile(
    rf"(?:{SEED.format('before')}[:,]? )?(?:(?P<total>{TOTAL})|(?P<artifact>{ARTIFACT}))"
    rf"(?:[ _]?(?:{SEED.format('after')})?{SEPARATOR}| ?{LABEL} ?[:=]) ?[~≈]? ?"
    rf"(?P<number>{DIGITS}) ?(?P<unit>{UNIT})?(?!\w)(?P<rest>.*)",
    re.IGNORECASE,
)
EXACT = re.compile(rf" ?[(\[=] ?(?P<number>{DIGITS}) ?B(?:ytes)?\b", re.IGNORECASE)


@dataclass(frozen=True)
class NamedSize:
    """label: of a total, empty without. seed: of the run, None where none is named. error: half a
    unit of the last digit, in bytes; 0 where the bytes are known. most_bytes: with the error, if MB
    counts MiB. written: name and number.
    """

    is_total: bool
    label: str
    seed: str | None
    size_bytes: int
    error: int
    most_bytes: int
    written: str


def named_size(line: str) -> NamedSize | None:
    """The size that a line begins with; None without one."""
    line = " ".join(line[:LONGEST_LINE].split())
    match = NAMED.match(line)
    if match is None or (match["label"] and match["total"] is None):
        return None
    name, label = match["total"] or match["artifact"], match["label"] or ""
    exact = EXACT.match(match["rest"])
    unit = "" if exact else (match["unit"] or "").lower()
    factor = UNITS[unit.removesuffix("ytes").removesuffix("yte")]
    number, decimals = _number((exact or match)["number"], decimal_comma=factor > 1)
    size, error = round(number * factor), round(factor * 10.0**-decimals / 2) if factor > 1 else 0
    says_what = match["unit"] and re.search("artifact|submission", name, re.IGNORECASE)
    if size < LEAST_SIZE and not says_what:
        return None
    if match["total"] and not label and not re.search("size|bytes|code", name, re.IGNORECASE):
        label = name.split()[-1].lower()
    most = round((size + error) * (UNITS[f"{unit[0]}ib"] / factor if error else 1))
    written = line[: match.start("rest")].strip()
    seed = match["before"] or match["after"]
    return NamedSize(match["total"] is not None, label, seed, size, error, most, written)


def _number(text: str, *, decimal_comma: bool) -> tuple[float, int]:
    """(the value, the number of its decimals)."""
    text = text.rstrip(",_")
    if decimal_comma and re.fullmatch(r"\d+,\d+", text):
        text = text.replace(",", ".")
    whole, point, fraction = text.partition(".")
    if point and fraction.isdigit():
        return float(f"{re.sub(r'[,_]', '', whole)}.{fraction}"), len(fraction)
    return float(re.sub(r"\D", "", text)), 0
