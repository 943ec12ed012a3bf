"""Text files whatever wrote them: UTF-8, what Windows shells write, Latin-1; long ones in part."""

from __future__ import annotations

import codecs
import os
from dataclasses import dataclass
from pathlib import Path

# The longer marks first: the one of UTF-32 begins with that of UTF-16.
MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
SAMPLE_BYTES = 4096
HEAD_BYTES = 4 * 2**20
TAIL_BYTES = 8 * 2**20
CONTROLS = frozenset(map(chr, range(32))) - set("\t\n\r\f\b\x1b")
MAX_CONTROL_SHARE = 0.05


@dataclass(frozen=True)
class Text:
    """text: without a byte order mark and NUL characters. encoding: as the bytes declare.

    left_out: bytes in the middle of a long file that were not read.
    """

    text: str
    encoding: str
    left_out: int = 0

    @property
    def is_binary(self) -> bool:
        """Whether these are no letters at all, such as a picture called train.log."""
        sample = self.text[:SAMPLE_BYTES]
        return sum(one in CONTROLS for one in sample) > MAX_CONTROL_SHARE * len(sample)


def decode_text(data: bytes) -> Text:
    """The text in some bytes; never fails. What is no UTF is taken for Latin-1."""
    encoding, mark = encoding_of(data)
    return Text(_decoded(data[mark:], encoding), encoding)


def read_text(path: Path, head: int = HEAD_BYTES, tail: int = TAIL_BYTES) -> Text:
    """A file's text; of one longer than head + tail bytes these alone, with a line end between.

    Raises OSError.
    """
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size
        if size <= head + tail:
            return decode_text(file.read(head + tail))
        start = file.read(head)
        at = (size - tail) // 4 * 4  # a whole number of characters of every width
        file.seek(at)
        end = file.read(tail + 4)
    encoding, mark = encoding_of(start)
    text = f"{_decoded(start[mark:], encoding)}\n{_decoded(end, encoding)}"
    return Text(text, encoding, size - head - tail)


def encoding_of(data: bytes) -> tuple[str, int]:
    """(encoding, bytes of its mark), by the mark or by where the NUL bytes lie."""
    for mark, encoding in MARKS:
        if data.startswith(mark):
            return encoding, len(mark)
    sample = data[: min(len(data), SAMPLE_BYTES) // 4 * 4]
    zeros = [sample[at::4].count(0) for at in range(4)]
    most = 0.7 * len(sample) / 4
    is_zero = tuple(count > most for count in zeros)
    by_zeros = {
        (False, True, False, True): "utf-16-le",
        (True, False, True, False): "utf-16-be",
        (False, True, True, True): "utf-32-le",
        (True, True, True, False): "utf-32-be",
    }
    if len(sample) >= 16 and is_zero in by_zeros:
        return by_zeros[is_zero], 0
    try:
        codecs.getincrementaldecoder("utf-8")().decode(data)  # the end may cut a character
    except UnicodeDecodeError:
        return "latin-1", 0
    return "utf-8", 0


def _decoded(data: bytes, encoding: str) -> str:
    return data.decode(encoding, errors="replace").replace("\0", "")
