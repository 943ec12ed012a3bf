"""Texts on disk as documents: found, checked, hashed and read one document at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from packer.eval.errors import DataError
from packer.eval.text import check_separator

from packer.errors import PackerError

BLOCK = 1 << 24  # bytes read at a time


class CorpusError(PackerError):
    """Text that cannot be made into shards, or a folder that holds something else."""


@dataclass(frozen=True)
class TextFile:
    """A text file when first read; documents: number of documents that are not empty."""

    path: Path
    size_bytes: int
    sha256: str
    documents: int


def scan_texts(paths: Sequence[str | Path], separator: str | None) -> tuple[TextFile, ...]:
    """Reads every text once, so that errors in a text are raised before any work.

    Raises CorpusError: a text or separator that cannot be read, or no text at all.
    """
    try:
        check_separator(separator)
    except DataError as error:
        raise CorpusError(str(error)) from None
    files = []
    for path in text_files(paths):
        documents = sum(1 for _ in read_documents(path, separator))
        files.append(TextFile(path, path.stat().st_size, sha256_of(path), documents))
    if not sum(file.documents for file in files):
        names = ", ".join(str(path) for path in paths)
        raise CorpusError(f"{names}: there is no text, every document is empty; name other files")
    return tuple(files)


def text_files(paths: Iterable[str | Path]) -> Iterator[Path]:
    for path in map(Path, paths):
        if path.is_dir():
            inside = sorted(file for file in path.rglob("*.txt") if file.is_file())
            if not inside:
                raise CorpusError(f"{path} is a folder without any .txt file; name files of text")
            yield from inside
        elif path.is_file():
            yield path
        else:
            raise CorpusError(f"{path}: no such file of text")


def read_documents(path: Path, separator: str | None) -> Iterator[str]:
    """The documents of a file that are not empty, without holding more than one and a block."""
    position = 0
    for data in _cut(path, separator.encode() if separator else b""):
        try:
            document = data.decode("utf-8")
        except UnicodeDecodeError as error:
            raise CorpusError(
                f"{path} is not UTF-8 text: byte {position + error.start:,} is "
                f"0x{data[error.start]:02x}; convert it, or leave it out"
            ) from None
        position += len(data) + len((separator or "").encode())
        if document:
            yield document


def _cut(path: Path, separator: bytes) -> Iterator[bytes]:
    """A file's bytes between separators; UTF-8 can be cut so, as no letter lies inside another."""
    rest = b""
    try:
        with path.open("rb") as file:
            while separator and (block := file.read(BLOCK)):
                *whole, rest = (rest + block).split(separator)
                yield from whole
            yield rest + file.read()
    except OSError as error:
        raise CorpusError(f"{path} cannot be read ({error.strerror})") from None


def sha256_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
    return digest.hexdigest()
