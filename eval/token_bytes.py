"""How many bytes of text each token stands for.

The table of a sentencepiece model, or of any other tokenizer from a small JSON file:

    {"bytes": [0, 0, 1, 3, ...],        one number per token, its leading space not counted
     "leading_space": [17, 18, ...],    tokens that begin with a space (optional)
     "boundary": [0, 1],                tokens after which that space is not counted (optional)
     "unknown": [0]}                    tokens whose bytes of text are unknown (optional)
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import sentencepiece
from numpy.typing import NDArray

from .errors import TokenBytesError

WORD_MARK = "\N{LOWER ONE EIGHTH BLOCK}"  # how sentencepiece writes a space inside a piece
MARK_BYTES = tuple(f"<0x{byte:02X}>" for byte in WORD_MARK.encode())  # where no piece holds it
CONTEXT = 3  # tokens on either side that decide what a token counts

# Bytes per token of contest tokenizers on web text, by vocabulary; 1 for raw bytes. In between
# and above, bytes per token grow about linearly with the logarithm of the vocabulary.
REFERENCE_BYTES_PER_TOKEN = ((256, 1.0), (1024, 2.442), (8192, 3.727))
# Around the reference line. 8,192 pieces with case operators sit at 0.847 of it and plain English
# prose with 1,024 pieces at 1.11; counting leading spaces twice gives 1.17 and counting a word
# mark as its three UTF-8 bytes 1.2, so the band must end between.
PLAUSIBLE_BELOW, PLAUSIBLE_ABOVE = 0.80, 1.15


@dataclass(frozen=True, eq=False)
class TokenBytes:
    """Bytes of every token of a vocabulary.

    Attributes:
        base: int64 [vocab], bytes of the token without its leading space.
        has_leading_space: bool [vocab]; the space counts one byte, unless the token before is a
            boundary.
        is_boundary: bool [vocab], unknown and unused tokens, and control tokens where the tokenizer
            puts a space of its own in front of a text.
        is_unknown: bool [vocab].
        has_trailing_space: bool [vocab], of tokenizers that put their own space after a text: the
            space counts one byte, unless the token after is a boundary or there is none.
        spelled_space: the three byte tokens of a space that has no token of its own.
    """

    base: NDArray[np.int64]
    has_leading_space: NDArray[np.bool_]
    is_boundary: NDArray[np.bool_]
    is_unknown: NDArray[np.bool_]
    has_trailing_space: NDArray[np.bool_] | None = None
    spelled_space: tuple[int, int, int] | None = None

    @property
    def vocab_size(self) -> int:
        return len(self.base)

    def count(
        self, tokens: NDArray[np.integer[Any]], previous: NDArray[np.integer[Any]]
    ) -> NDArray[np.int64]:
        """Bytes [n] of each of `tokens` [n], given the token before each, `previous` [n]."""
        space = self.has_leading_space[tokens] & ~self.is_boundary[previous]
        return np.asarray(self.base[tokens] + space, dtype=np.int64)

    def target_bytes(self, tokens: NDArray[np.integer[Any]], position: int) -> NDArray[np.int64]:
        """Bytes [n] of tokens[1:], given tokens [n + 1]; `position` in the stream is not used.

        A slice of a longer stream is exact but for the `CONTEXT` tokens at its ends.
        """
        del position
        counted = self.count(tokens[1:], tokens[:-1])
        at_edge = self.is_boundary & ~self.is_unknown
        followed = np.append(~at_edge[tokens[1:]], False)
        if self.has_trailing_space is not None:
            counted += self.has_trailing_space[tokens[1:]] & followed[1:]
        if self.spelled_space is not None:
            self._count_spelled(tokens, followed, counted)
        return counted

    def _count_spelled(
        self,
        tokens: NDArray[np.integer[Any]],
        followed: NDArray[np.bool_],
        counted: NDArray[np.int64],
    ) -> None:
        """One byte for each space that three byte tokens spell, none for the tokenizer's own."""
        assert self.spelled_space is not None
        first, second, third = self.spelled_space
        starts = np.flatnonzero(
            (tokens[:-2] == first) & (tokens[1:-1] == second) & (tokens[2:] == third)
        )
        if self.has_trailing_space is None:
            own = (starts > 0) & self.is_boundary[tokens[starts - 1]]
        else:
            own = ~followed[starts + 2]
        inside = starts > 0
        counted[starts[inside] - 1] = ~own[inside]
        counted[starts] = counted[starts + 1] = 0

    def unknown_count(self, tokens: NDArray[np.integer[Any]]) -> int:
        return int(self.is_unknown[tokens].sum())

    def after(self, start: int) -> TokenBytes:
        """The same: bytes do not depend on positions in a stream."""
        del start
        return self


def from_sentencepiece(path: str | Path) -> TokenBytes:
    """The table of a sentencepiece model file.

    Control, unknown and unused pieces stand for no bytes and are boundaries (control pieces only
    where the tokenizer puts a space of its own into a text, which is then not counted); byte pieces
    stand for one, and three of them that spell a word mark for the one space; every other piece for
    its UTF-8 length, a leading word mark left to `count`. A word mark further inside is the one
    space it decodes to.
    Raises TokenBytesError: no such file, or not a sentencepiece model.
    """
    try:
        return from_processor(load_sentencepiece(path))
    except UnicodeDecodeError as error:  # the library hands pieces out as they lie in the file
        raise TokenBytesError(f"{path} has a piece that is no text in UTF-8 ({error})") from error


def load_sentencepiece(path: str | Path, contents: bytes | None = None) -> Any:
    """The sentencepiece processor of a model file, or of its contents where they are at hand.

    Raises TokenBytesError: no such file, or not a sentencepiece model.
    """
    if contents is None and not Path(path).is_file():
        raise TokenBytesError(f"{path}: no such tokenizer file")
    try:
        if contents is not None:
            return sentencepiece.SentencePieceProcessor(model_proto=contents)
        return sentencepiece.SentencePieceProcessor(model_file=str(path))
    except (RuntimeError, OSError) as error:
        raise TokenBytesError(f"{path} is not a sentencepiece model ({error})") from error


def from_processor(processor: Any) -> TokenBytes:
    """The table of a loaded sentencepiece processor; see `from_sentencepiece`."""
    vocab = processor.vocab_size()
    own_before, own_after = _own_spaces(processor)
    base = np.zeros(vocab, dtype=np.int64)
    leading, trailing, boundary, unknown = (np.zeros(vocab, dtype=np.bool_) for _ in range(4))
    for token in range(vocab):
        unknown[token] = processor.is_unknown(token)
        if processor.is_control(token):
            boundary[token] = own_before or own_after
        elif unknown[token] or processor.is_unused(token):
            boundary[token] = True
        elif processor.is_byte(token):
            base[token] = 1
        else:
            piece = processor.id_to_piece(token)
            leading[token] = not own_after and piece.startswith(WORD_MARK)
            trailing[token] = own_after and piece.endswith(WORD_MARK)
            size = len(piece.replace(WORD_MARK, " ").encode())
            base[token] = size - int(leading[token]) - int(trailing[token])
    spelled = tuple(processor.piece_to_id(piece) for piece in MARK_BYTES)
    return TokenBytes(
        base,
        leading,
        boundary,
        unknown,
        trailing if own_after else None,
        spelled if all(processor.is_byte(token) for token in spelled) else None,
    )


def _own_spaces(processor: Any) -> tuple[bool, bool]:
    """Whether a tokenizer puts a space of its own in front of a text, or after it."""
    spelled = "".join(processor.encode("a", out_type=str))
    spelled = spelled.replace("".join(MARK_BYTES), WORD_MARK)
    return spelled.startswith(WORD_MARK), spelled.endswith(WORD_MARK)


def from_json(path: str | Path) -> TokenBytes:
    """The table of a bytes-per-token file; its layout is in the module's docstring.

    Raises TokenBytesError: what in the file is missing or cannot be, by name.
    """
    try:
        table = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise TokenBytesError(f"{path} cannot be read as JSON ({error})") from error
    allowed = ("bytes", "leading_space", "boundary", "unknown")
    if not isinstance(table, dict) or "bytes" not in table or not set(table) <= set(allowed):
        raise TokenBytesError(
            f'{path} must be an object with "bytes" and optionally {", ".join(allowed[1:])}'
        )
    base = _whole_numbers(table["bytes"], 2**31, f'{path}: "bytes"')
    flags = []
    for name in allowed[1:]:
        flag = np.zeros(len(base), dtype=np.bool_)
        flag[_whole_numbers(table.get(name, []), len(base), f'{path}: "{name}"')] = True
        flags.append(flag)
    leading, boundary, unknown = flags
    return TokenBytes(base, leading, boundary, unknown)


def _whole_numbers(values: object, below: int, where: str) -> NDArray[np.int64]:
    valid = isinstance(values, list) and all(type(v) is int and 0 <= v < below for v in values)
    if not valid:
        raise TokenBytesError(f"{where} must be a list of whole numbers from 0 to {below - 1:,}")
    return np.array(values, dtype=np.int64)


@dataclass(frozen=True)
class AssumedBytes:
    """Bytes of tokens whose tokenizer is unknown: the same average everywhere.

    start: tokens before the stream, see `after`.
    """

    per_token: float
    start: int = 0

    def target_bytes(self, tokens: NDArray[np.integer[Any]], position: int) -> NDArray[np.int64]:
        """Bytes [n] of tokens[1:], tokens [n + 1]: whole numbers that add up to `per_token`."""
        ends = self.per_token * (self.start + position + np.arange(len(tokens)))
        counted: NDArray[np.int64] = np.diff(np.floor(ends)).astype(np.int64)
        return counted

    def unknown_count(self, tokens: NDArray[np.integer[Any]]) -> int:
        del tokens
        return 0

    def after(self, start: int) -> AssumedBytes:
        """Of the stream without its first `start` tokens."""
        return AssumedBytes(self.per_token, self.start + start)


def usual_bytes_per_token(vocab_size: int) -> float:
    """Bytes per token of web text or prose in English, by the size of the vocabulary."""
    sizes, ratios = zip(*REFERENCE_BYTES_PER_TOKEN, strict=True)
    logs = [math.log2(size) for size in sizes]
    here = math.log2(max(vocab_size, sizes[0]))
    if here <= logs[-1]:
        return float(np.interp(here, logs, ratios))
    slope = (ratios[-1] - ratios[-2]) / (logs[-1] - logs[-2])
    return ratios[-1] + slope * (here - logs[-1])


def plausible_bytes_per_token(vocab_size: int) -> tuple[float, float]:
    """The band in which bytes per token of web text or prose in English usually lie."""
    middle = usual_bytes_per_token(vocab_size)
    return PLAUSIBLE_BELOW * middle, PLAUSIBLE_ABOVE * middle


def plausibility_warning(
    bytes_per_token: float, vocab_size: int, *, text_counted: bool = False
) -> str | None:
    """A warning in words when the ratio lies outside the plausible band, else None.

    text_counted: the bytes of the text itself are known to agree.
    """
    low, high = plausible_bytes_per_token(vocab_size)
    if low <= bytes_per_token <= high:
        return None
    words = (
        f"{bytes_per_token:.3f} bytes per token is outside {low:.2f} to {high:.2f}, usual for "
        f"English with {vocab_size:,} tokens: "
    )
    if text_counted:
        return f"{words}the text is of another kind; its bytes are counted right"
    return (
        f"{words}either the text is of another kind, or bytes are miscounted (leading spaces "
        "twice, word marks as three bytes, another tokenizer's table)"
    )


def difference_warnings(counted: int, text_bytes: int, unknown_tokens: int = 0) -> tuple[str, ...]:
    """A warning with both numbers where the tokens of a text count other bytes than it has."""
    if counted == text_bytes:
        return ()
    share = abs(counted - text_bytes) / max(text_bytes, 1)
    direction, error = ("fewer", "high") if counted < text_bytes else ("more", "low")
    words = (
        f"the tokens of the whole text count {counted:,} bytes, and the text itself has "
        f"{text_bytes:,}: {100 * share:.2g} % {direction}, so bits per byte of the text come out "
        f"too {error}. The tokenizer changes the text (white space, Unicode forms, letters it does "
        "not know), or the bytes of its tokens are miscounted"
    )
    if unknown_tokens:
        words += f"; {unknown_tokens:,} unknown tokens count no bytes"
    return (words,)
