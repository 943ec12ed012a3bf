"""Validation text that is training text too.

Documents are compared by their passages, the lines of 40 letters or more, with runs of white space
taken as one space: line ends, and where one file was cut into documents, make no difference. A
document without such a line is one passage.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path

PASSAGE_LETTERS = 40


@dataclass(frozen=True)
class SharedText:
    """Validation documents of whose passages more than half are training text too.

    Attributes:
        documents: validation documents in all.
        shared: how many of them are training text.
        file: of the first that is, None without any.
        train_file: a training file that holds a passage of it.
    """

    documents: int
    shared: int
    file: Path | None = None
    train_file: Path | None = None

    def describe(self) -> str:
        """A sentence on the shared text."""
        are = "document is" if self.shared == 1 else "documents are"
        return (
            f"{self.shared:,} of {self.documents:,} validation {are} training text too, the first "
            f"of {self.file}, in {self.train_file}"
        )


def shared_text(train: Iterable[tuple[Path, str]], valid: Iterable[tuple[Path, str]]) -> SharedText:
    """Compare (file, document) of both splits; the hashes of validation passages are held."""
    files: list[Path] = []
    passages: list[set[bytes]] = []
    for file, document in valid:
        files.append(file)
        passages.append(set(_passages(document)))
    file_of: dict[bytes, Path | None] = {one: None for document in passages for one in document}
    for file, document in train:
        for one in _passages(document):
            if one in file_of and file_of[one] is None:
                file_of[one] = file
    shared = [
        number
        for number, document in enumerate(passages)
        if 2 * sum(file_of[one] is not None for one in document) > len(document)
    ]
    if not shared:
        return SharedText(len(files), 0)
    sources = (file_of[one] for one in passages[shared[0]])
    return SharedText(
        len(files), len(shared), files[shared[0]], next(one for one in sources if one is not None)
    )


def _passages(document: str) -> Iterator[bytes]:
    """Hashes of the passages of a document, none of white space alone."""
    lines = [" ".join(line.split()) for line in document.removeprefix("\ufeff").splitlines()]
    long = [line for line in lines if len(line) >= PASSAGE_LETTERS]
    for passage in long or [" ".join(filter(None, lines))]:
        if passage:
            yield blake2b(passage.encode(), digest_size=16).digest()
