"""Plain text to tokens: documents, each with the tokenizer's BOS in front."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import DataError
from .text_tokenizer import TextTokenizer


@dataclass(frozen=True, eq=False)
class EncodedText:
    """Tokens of some documents in a row.

    Attributes:
        tokens: int32 [tokens], BOS in front of every document.
        documents: how many there are.
        text_bytes: UTF-8 bytes of the documents themselves, separators left out. A tokenizer that
            collapses white space or meets unknown characters counts fewer.
        warnings: what is probably not meant, in words for people.
        counts: int64 [tokens], bytes of text behind each, of a tokenizer that reports offsets.
    """

    tokens: NDArray[np.int32]
    documents: int
    text_bytes: int
    warnings: tuple[str, ...] = ()
    counts: NDArray[np.int64] | None = None


def encode_files(
    paths: Iterable[str | Path], tokenizer: Any, document_separator: str | None = None
) -> EncodedText:
    """Encode UTF-8 text files.

    Args:
        paths: read in the order given; a file never shares a document with another.
        tokenizer: a sentencepiece processor, or a `TextTokenizer`.
        document_separator: where one file holds several documents; None takes it as one. Empty
            documents are left out.

    Raises DataError: a file that is missing or not UTF-8, no text at all, a tokenizer without BOS,
    a separator that is empty or cannot be in UTF-8 text.
    """
    check_separator(document_separator)
    texts = [_read(Path(path)) for path in paths]
    documents = texts
    warnings: tuple[str, ...] = ()
    if document_separator is not None:
        documents = [document for text in texts for document in text.split(document_separator)]
        if len(documents) == len(texts):
            warnings = (absent_separator(document_separator),)
    encoded = encode_documents([document for document in documents if document], tokenizer)
    return replace(encoded, warnings=warnings + encoded.warnings)


def check_separator(separator: str | None) -> None:
    """Raises DataError: a separator that is empty or cannot be in UTF-8 text."""
    if separator == "":
        raise DataError(
            "the document separator is empty: name the text that stands between documents, or "
            "leave it out where every file is one document"
        )
    try:
        (separator or "").encode()
    except UnicodeEncodeError:
        raise DataError(
            f"the document separator {separator!a} is not UTF-8, so no text can contain it"
        ) from None


def absent_separator(separator: str) -> str:
    """A warning in words about a separator that is nowhere in the text."""
    words = (
        f"the document separator '{separator}' occurs nowhere in the text, so every file is one "
        "document"
    )
    if re.search(r"\\[nrt]", separator):
        words += (
            "; \\n is read as a backslash and an n: for a line feed write $'\\n' in bash and zsh"
        )
    return words


def encode_documents(documents: list[str], tokenizer: Any) -> EncodedText:
    """Encode documents, BOS in front of each; arguments and errors as in `encode_files`."""
    if not documents:
        raise DataError("there is no text to encode: every document is empty")
    if isinstance(tokenizer, TextTokenizer):
        return _counted_documents(documents, tokenizer)
    bos = tokenizer.bos_id()
    if bos < 0:
        raise DataError("the tokenizer has no BOS piece, which starts every document")
    pieces: list[int] = []
    for document in documents:
        pieces.append(bos)
        pieces += tokenizer.encode(document)
    text_bytes = sum(len(document.encode()) for document in documents)
    return EncodedText(np.array(pieces, dtype=np.int32), len(documents), text_bytes)


def _counted_documents(documents: list[str], tokenizer: TextTokenizer) -> EncodedText:
    """With the bytes behind each token. A tokenizer without BOS puts nothing in front."""
    start = [tokenizer.bos_id()] if tokenizer.bos_id() >= 0 else []
    tokens, counts, given_back = list[int](), list[NDArray[np.int64]](), 0
    same = True
    for document in documents:
        encoded, behind = tokenizer.encode_counted(document)
        tokens += [*start, *encoded]
        counts += [np.zeros(len(start), dtype=np.int64), behind]
        again = tokenizer.given_back(encoded)
        same, given_back = same and again == document, given_back + len(again.encode())
    text_bytes = sum(len(document.encode()) for document in documents)
    return EncodedText(
        np.array(tokens, dtype=np.int32),
        len(documents),
        text_bytes,
        () if same else (changed_text(given_back, text_bytes),),
        np.concatenate(counts),
    )


def changed_text(given_back: int, text_bytes: int) -> str:
    """A warning about a tokenizer whose tokens decode to another text than its input.

    given_back: UTF-8 bytes of that other text.
    """
    return (
        f"the tokenizer changes the text: its tokens stand for {given_back:,} bytes, and the text "
        f"itself has {text_bytes:,} (white space, Unicode forms or letters that it does not "
        "know); bits per byte are of the text itself, of which the model never saw the rest"
    )


def _read(path: Path) -> str:
    try:
        data = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read ({error.strerror})") from error
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise DataError(
            f"{path} is not UTF-8 text: byte {error.start:,} is 0x{data[error.start]:02x}; "
            "token shards have a .bin name"
        ) from error
