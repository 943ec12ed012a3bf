"""Text for the demonstration: the sources and documentation of Python, or the user's own.

Documents are taken in the order of a hash of their names, so that a selection of a few megabytes is
spread over all of them and is the same wherever the files are. Whole documents are held out for
validation; of a few long ones, the end of each.
"""

from __future__ import annotations

import codecs
import hashlib
import sysconfig
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from packer.train.documents import CorpusError, text_files

MAX_BYTES = 6_000_000
MIN_BYTES = 50_000
HELD_OUT_EVERY = 16
SEPARATOR = "<|document|>"  # between the documents of one file
# Tests, tables of character sets and what is generated say little in many bytes; packages beside
# the standard library differ from machine to machine.
SKIPPED = frozenset(
    ("test", "tests", "idle_test", "encodings", "pydoc_data", "site-packages", "dist-packages")
)
GENERATED = "_sysconfigdata"


@dataclass(frozen=True)
class Document:
    """A text, and the name that it is listed under."""

    name: str
    text: str

    @property
    def size_bytes(self) -> int:
        return len(self.text.encode())


@dataclass(frozen=True)
class Corpus:
    """source: where the documents come from, in words. train and valid share none."""

    source: str
    train: tuple[Document, ...]
    valid: tuple[Document, ...]


def python_text(library: Path | None = None) -> Corpus:
    """Sources and documentation of the running Python; of the library in a folder its sources.

    Files that are not UTF-8 or cannot be read are left out, as is documentation that this Python
    was installed without. Raises CorpusError: there is too little.
    """
    topics = _topics() if library is None else {}
    folder = Path(sysconfig.get_paths()["stdlib"]) if library is None else library
    files = {path.relative_to(folder).as_posix(): path for path in _sources(folder)}

    def documents() -> Iterator[Document]:
        for name in _spread([*files, *topics]):
            if name in topics:
                yield Document(name, topics[name])
                continue
            try:
                yield _read(files[name], name)
            except CorpusError:
                continue

    return corpus_of("sources and documentation of this Python", documents())


def named_text(paths: Sequence[str | Path]) -> Corpus:
    """UTF-8 files; a folder stands for its .txt files.

    Raises CorpusError: no such file, not UTF-8, or too little text.
    """
    files = {
        path.relative_to(named).as_posix() if path != named else path.name: path
        for named in map(Path, paths)
        for path in text_files([named])
    }
    source = ", ".join(str(path) for path in paths)
    return corpus_of(source, (_read(files[name], name) for name in _spread(files)))


def corpus_of(source: str, documents: Iterable[Document]) -> Corpus:
    """The first documents, up to `MAX_BYTES`; each text once, and none that is empty.

    Raises CorpusError: less than `MIN_BYTES`.
    """
    taken: dict[str, Document] = {}
    room = MAX_BYTES
    for document in documents:
        part = _begin(document, room)
        if part.text.strip() and part.text not in taken:
            taken[part.text] = part
            room -= part.size_bytes
        if room < 1_000:
            break
    size_bytes = sum(document.size_bytes for document in taken.values())
    if size_bytes < MIN_BYTES:
        raise CorpusError(
            f"{source}: {size_bytes:,} bytes of text, too little to learn from; name at least "
            f"{MIN_BYTES:,} bytes of text files with --text"
        )
    return Corpus(source, *_divided(tuple(taken.values())))


def _sources(library: Path) -> Iterator[Path]:
    for path in sorted(library.rglob("*.py")):
        folders = path.relative_to(library).parts[:-1]
        if SKIPPED.isdisjoint(folders) and not path.name.startswith(GENERATED):
            yield path


def _topics() -> Mapping[str, str]:
    """The language's documentation, as `help()` shows it; some systems leave it out."""
    try:
        from pydoc_data.topics import topics
    except ImportError:
        return {}
    return {f"help({name!r})": str(text) for name, text in topics.items()}


def _spread(names: Iterable[str]) -> list[str]:
    return sorted(names, key=lambda name: hashlib.sha256(name.encode(errors="replace")).digest())


def _read(path: Path, name: str) -> Document:
    """What of a file could be taken. Raises CorpusError: it cannot be read, or is not UTF-8."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES)
            whole = not file.read(1)
        return Document(name, codecs.getincrementaldecoder("utf-8")().decode(data, final=whole))
    except OSError as error:
        raise CorpusError(f"{path} cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise CorpusError(
            f"{path} is not UTF-8 text: byte {error.start:,} is 0x{error.object[error.start]:02x}; "
            "convert it, or leave it out"
        ) from None


def _begin(document: Document, room: int) -> Document:
    """The whole document, or the lines of it that there is room for."""
    data = document.text.encode()
    if len(data) <= room:
        return document
    text = data[: data.rfind(b"\n", 0, room) + 1 or room].decode("utf-8", errors="ignore")
    return Document(f"{document.name}, its beginning", text)


def _divided(documents: tuple[Document, ...]) -> tuple[tuple[Document, ...], tuple[Document, ...]]:
    """(for training, held out)."""
    if len(documents) >= 2 * HELD_OUT_EVERY:
        train = [one for number, one in enumerate(documents) if number % HELD_OUT_EVERY]
        return tuple(train), documents[::HELD_OUT_EVERY]
    beginnings, ends = [], []
    for document in documents:
        size = document.size_bytes
        begin = _begin(document, size - size // HELD_OUT_EVERY)
        beginnings.append(begin)
        ends.append(Document(f"{document.name}, its end", document.text[len(begin.text) :]))
    return tuple(beginnings), tuple(end for end in ends if end.text.strip())
