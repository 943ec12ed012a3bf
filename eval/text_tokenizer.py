"""Tokenizers of the library `tokenizers` (tokenizer.json), and the bytes of text behind each token.

Bytes are those of the text itself, by the offsets that the tokenizer reports: whatever it does to
letters and spaces before it looks them up, the tokens of a text count the text's own bytes.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import TokenBytesError
from .token_bytes import WORD_MARK, TokenBytes

INSTALL = "pip install 'bytecap[hf]'"
# Files in the folder of a tokenizer.json that may name the token that a text begins with, in order.
BESIDE = ("tokenizer_config.json", "special_tokens_map.json", "config.json")
BEGINNINGS = ("bos_token", "bos_token_id", "eos_token", "eos_token_id")


class TextTokenizer:
    """A tokenizer as the scorer uses one, with the methods of a sentencepiece processor."""

    def __init__(self, tokenizer: Any, parts: Mapping[str, Any], start: int | None) -> None:
        """tokenizer: of the library, without a post-processor. parts: what it was made of, as in
        its file. start: what a text begins with.
        """
        self._tokenizer, self._parts, self._start = tokenizer, parts, start
        self._unknown = _unknown_id(tokenizer, parts["model"])

    def vocab_size(self) -> int:
        """One more than the highest id."""
        return 1 + int(max(self._tokenizer.get_vocab(with_added_tokens=True).values()))

    def bos_id(self) -> int:
        """The token that every text begins with; −1 where there is none."""
        return -1 if self._start is None else self._start

    def encode(self, text: str) -> list[int]:
        return self.encode_counted(text)[0]

    def decode(self, tokens: Sequence[int]) -> str:
        """The text that tokens stand for, special ones left out."""
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=True))

    def given_back(self, tokens: Sequence[int]) -> str:
        """The text that tokens stand for, special ones as they are spelled."""
        return str(self._tokenizer.decode(list(tokens), skip_special_tokens=False))

    def encode_counted(self, text: str) -> tuple[list[int], NDArray[np.int64]]:
        """(tokens, int64 [tokens] bytes of the text behind each).

        A token counts everything from the end of the one before to its own end; of tokens that
        share a letter, the first counts it. What comes after the last token counts to that one,
        and an unknown token counts nothing.
        Raises TokenBytesError: the text has letters that the tokenizer knows nothing to do with.
        """
        try:
            encoding = self._tokenizer.encode(text, add_special_tokens=False)
        except Exception as error:  # the library raises bare Exceptions
            raise TokenBytesError(f"the tokenizer cannot encode the text ({error})") from None
        tokens: list[int] = encoding.ids
        if not tokens:
            return tokens, np.zeros(0, dtype=np.int64)
        ends = np.array([end for _, end in encoding.offsets], dtype=np.int64)
        ends = np.maximum.accumulate(ends)
        ends[-1] = len(text)
        counts = np.diff(_bytes_before(text)[ends], prepend=0)
        if self._unknown is not None:
            counts[np.array(tokens) == self._unknown] = 0
        return tokens, counts

    def unknown_count(self, tokens: NDArray[np.integer[Any]]) -> int:
        return 0 if self._unknown is None else int((tokens == self._unknown).sum())

    def token_bytes(self) -> TokenBytes:
        """Bytes by token alone, for tokens without their text: shards, and what a model writes."""
        return _table(self._tokenizer, self._parts, self.vocab_size(), self._unknown)


@dataclass(frozen=True, eq=False)
class CountedText:
    """Bytes of text behind every token of a stream, counted when the text was encoded.

    counts: int64 [tokens]. tokenizer: what encoded it.
    """

    counts: NDArray[np.int64]
    tokenizer: TextTokenizer

    @property
    def vocab_size(self) -> int:
        return self.tokenizer.vocab_size()

    def target_bytes(self, tokens: NDArray[np.integer[Any]], position: int) -> NDArray[np.int64]:
        """Bytes [n] of tokens[1:] given tokens [n + 1]; tokens[1] is at `position`."""
        return self.counts[position : position + len(tokens) - 1]

    def unknown_count(self, tokens: NDArray[np.integer[Any]]) -> int:
        return self.tokenizer.unknown_count(tokens)

    def after(self, start: int) -> CountedText:
        """Of the stream without its first `start` tokens."""
        return CountedText(self.counts[start:], self.tokenizer)


def read_text_tokenizer(spelled: bytes, beside: Mapping[str, bytes], source: str) -> TextTokenizer:
    """The tokenizer of a tokenizer.json.

    beside: files of its folder by name, of which `BESIDE` may name the token that a text begins
    with. source: its name, for refusals.
    Raises TokenBytesError: not a tokenizer, or the library is not installed.
    """
    try:
        import tokenizers
    except ImportError:
        raise TokenBytesError(
            f"{source} is read by the library tokenizers, which is not installed: {INSTALL}"
        ) from None
    try:
        whole = json.loads(spelled)
        first = _put_in_front(whole["post_processor"])
        # It adds special tokens, and takes spaces out of offsets.
        plain = {**whole, "post_processor": None, "truncation": None, "padding": None}
        tokenizer = tokenizers.Tokenizer.from_str(json.dumps(plain))
    except Exception as error:  # the library raises bare Exceptions
        cause = str(error).partition("\n")[0][:160]
        raise TokenBytesError(
            f"{source} is not a tokenizer of the library tokenizers {tokenizers.__version__} "
            f"({type(error).__name__}: {cause}); download it again, or take a newer library"
        ) from None
    start = None if first is None else tokenizer.token_to_id(first)
    if start is None:
        start = _named_start(tokenizer, beside, source)
    return TextTokenizer(tokenizer, plain, start)


def _unknown_id(tokenizer: Any, model: Mapping[str, Any]) -> int | None:
    """The id of the unknown token; None if there is none."""
    if model.get("type") == "Unigram":
        unknown: int | None = model.get("unk_id")
        return unknown
    unknown = model.get("unk_token")
    return None if unknown is None else tokenizer.token_to_id(str(unknown))


def _put_in_front(processor: Any) -> str | None:
    """The special token that a post-processor puts before a text, None if none."""
    if not isinstance(processor, dict):
        return None
    for inner in processor.get("processors", ()):
        token = _put_in_front(inner)
        if token is not None:
            return token
    first: Any = next(iter(processor.get("single", ())), {})
    if isinstance(first, dict) and "SpecialToken" in first:
        return str(first["SpecialToken"]["id"])
    beginning = processor.get("cls")  # of BERT and RoBERTa: [text, id]
    return str(beginning[0]) if isinstance(beginning, list) else None


def _named_start(tokenizer: Any, beside: Mapping[str, bytes], source: str) -> int | None:
    """The BOS token that files next to the tokenizer name; else the EOS token."""
    there = [name for name in BESIDE if name in beside]
    settings = [_settings(beside[name], f"{name} beside {source}") for name in there]
    for key in BEGINNINGS:
        for setting in settings:
            value = setting.get(key)
            value = value[0] if isinstance(value, list) and value else value
            value = value.get("content") if isinstance(value, dict) else value
            token = tokenizer.token_to_id(value) if isinstance(value, str) else value
            if isinstance(token, int):
                return token
    return None


def _settings(spelled: bytes, source: str) -> Mapping[str, Any]:
    try:
        value = json.loads(spelled)
    except (ValueError, RecursionError) as error:
        raise TokenBytesError(f"{source} is not JSON ({error}); download it again") from None
    return value if isinstance(value, dict) else {}


def _bytes_before(text: str) -> NDArray[np.int64]:
    """int64 [letters + 1], the UTF-8 bytes before each letter and after the last."""
    letters = np.frombuffer(text.encode("utf-32-le"), dtype="<u4")
    sizes = 1 + (letters > 0x7F) + (letters > 0x7FF).astype(np.int64) + (letters > 0xFFFF)
    return np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(sizes)])


def _table(tokenizer: Any, parts: Mapping[str, Any], size: int, unknown: int | None) -> TokenBytes:
    """Of byte-level pieces one byte a letter; of others their letters, word marks as spaces."""
    added = {one["id"]: one["special"] for one in parts["added_tokens"]}
    special = {token for token, says_so in added.items() if says_so}
    byte_level = "ByteLevel" in json.dumps([parts["decoder"], parts["pre_tokenizer"]])
    base = np.zeros(size, dtype=np.int64)
    leading, boundary, unknowns = (np.zeros(size, dtype=np.bool_) for _ in range(3))
    own_space = not byte_level and _marks_beginning(tokenizer)
    for piece, token in tokenizer.get_vocab(with_added_tokens=True).items():
        if token in special or token == unknown:
            boundary[token], unknowns[token] = own_space, token == unknown
        elif byte_level and token not in added:
            base[token] = len(piece)
        elif len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
            base[token] = 1
        else:
            leading[token] = piece.startswith(WORD_MARK)
            base[token] = len(piece.replace(WORD_MARK, " ").encode()) - leading[token]
    return TokenBytes(base, leading, boundary, unknowns)


def _marks_beginning(tokenizer: Any) -> bool:
    """Whether a text gets a word mark of the tokenizer's own in front."""
    pieces = tokenizer.encode("a", add_special_tokens=False).tokens
    return bool(pieces) and str(pieces[0]).startswith(WORD_MARK)
