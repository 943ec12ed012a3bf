"""Text to a folder of token shards, a tokenizer and a manifest, as contest trainers read them.

Documents are encoded one by one, BOS in front, and cut into shards of a fixed number of tokens; a
document may go on in the next shard. An interrupted run continues after its last whole shard.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from packer.eval.shards import HEADER_BYTES, MAGIC, VERSION
from packer.eval.token_bytes import load_sentencepiece
from packer.train.documents import CorpusError, TextFile, read_documents, scan_texts, sha256_of
from packer.train.tokenizer import check_vocab_size, train_tokenizer, usable_model

from packer.errors import OutputError
from packer.files import replacing, write_bytes, write_json

MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.model"
MAX_SHARD_TOKENS = 2**31 - 1  # the header counts in int32

JOB = {"options", "texts", "valid", "tokenizer"}
ENTRY = {"file", "split", "tokens", "documents", "bytes", "sha256", "next_document", "next_token"}

Progress = Callable[[str, int, int], None]
Entry = dict[str, Any]


@dataclass(frozen=True)
class DataOptions:
    """What decides the shards, beside the texts.

    Attributes:
        vocab_size: of the tokenizer to train; None with an existing one.
        tokenizer: an existing sentencepiece model.
        tokenizer_bytes: UTF-8 bytes of the first training documents that a tokenizer is trained on.
        space_runs: the tokenizer gets pieces of several spaces, for program text. Contest trainers
            count such a piece as more bytes than it has.
        document_separator: where one file holds several documents; None takes it as one.
        valid_fraction: of the documents, evenly spaced, at least one; 0 holds none out. Not used
            where validation files are named.
        shard_tokens: tokens of every shard but the last.
        prefix: shards are PREFIX_train_000000.bin and PREFIX_val_000000.bin.
    """

    vocab_size: int | None = 1024
    tokenizer: str | None = None
    tokenizer_bytes: int = 100_000_000
    space_runs: bool = False
    document_separator: str | None = None
    valid_fraction: float = 0.01
    shard_tokens: int = 100_000_000
    prefix: str = "corpus"

    def __post_init__(self) -> None:
        if not 0 <= self.valid_fraction < 1:
            raise CorpusError(f"valid_fraction lies in [0, 1), found {self.valid_fraction}")
        if not 1 <= self.shard_tokens <= MAX_SHARD_TOKENS:
            raise CorpusError(
                f"a shard holds 1 to {MAX_SHARD_TOKENS:,} tokens, found {self.shard_tokens:,}"
            )


@dataclass(frozen=True)
class Split:
    """name: train or val. documents: of all its files; `held_out` of them are for validation."""

    name: str
    files: tuple[TextFile, ...]
    separator: str | None
    documents: int
    held_out: int

    def read(self, start: int = 0) -> Iterator[tuple[int, str]]:
        """(number, document) of the documents of this split, from number `start` on."""
        every = (
            document
            for file in self.files
            for document in read_documents(file.path, self.separator)
        )
        for number, document in enumerate(every):
            if number >= start and self._is_mine(number):
                yield number, document

    def _is_mine(self, number: int) -> bool:
        crossed = (number + 1) * self.held_out // self.documents
        held_out = crossed > number * self.held_out // self.documents
        return held_out == (self.name == "val")


def make_data(
    texts: Sequence[str | Path],
    folder: str | Path,
    options: DataOptions,
    *,
    valid: Sequence[str | Path] = (),
    progress: Progress | None = None,
) -> Entry:
    """Write tokenizer, shards and manifest into `folder`, or continue what was begun there.

    Args:
        texts: UTF-8 files; a folder stands for its .txt files, in order of their paths.
        valid: likewise, for validation; without them `valid_fraction` of the documents is held out.
        progress: told what is read, bytes of text done, bytes in all.

    Returns the manifest: complete, options, texts, valid, tokenizer (file, sha256, vocab_size),
    shards (file, split, tokens, documents and bytes of text that start in it, sha256, and where the
    next one begins), and per split the totals.

    Raises:
        CorpusError: no text, not UTF-8, too few documents to hold one out, validation text that is
            also training text, a folder that is finished or belongs to other options or files.
        TokenizerError: a vocabulary that does not fit the text or the shards, a model without BOS.
        TokenBytesError: an existing tokenizer that is not a sentencepiece model.
        OutputError: the folder cannot be written.
    """
    target = Path(folder)
    manifest = _begun(target, options)
    job, splits = _job(texts, valid, options)
    if manifest is None or manifest["tokenizer"] is None:  # nothing that other options could spoil
        manifest = {"complete": False, **job, "tokenizer": None, "shards": []}
        _save(target, manifest)
    _refuse_another_job(target, manifest, job)
    _remove_leftovers(target, options.prefix)
    total = sum(file.size_bytes for file in {*splits[0].files, *splits[-1].files})
    tell = progress or _silent
    tell("tokenizer", 0, total)
    tokenizer = _tokenizer(target, manifest, splits[0], options)
    manifest["shards"] = _whole_shards(target, manifest, [split.name for split in splits], options)
    done = 0
    for split in splits:
        writer = _Writer(target, manifest, split, options)
        for size in writer.write(tokenizer):
            done += size
            tell(split.name, done, total)
        manifest[split.name] = _totals(manifest["shards"], split.name)
    manifest["shards"].sort(key=lambda entry: str(entry["file"]))
    manifest["complete"] = True
    _save(target, manifest)
    return manifest


def _silent(what: str, done: int, total: int) -> None:
    del what, done, total


def _begun(folder: Path, options: DataOptions) -> Entry | None:
    """The manifest of an unfinished folder, None where there is none."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        data = (folder / MANIFEST).read_text("utf-8")
    except FileNotFoundError:
        taken = [*folder.glob(f"{options.prefix}_*.bin"), *folder.glob(TOKENIZER)]
        if taken:
            raise CorpusError(
                f"{folder} holds {taken[0].name} but no {MANIFEST}: name another folder, so that "
                "it is not overwritten"
            ) from None
        return None
    except FileExistsError:
        raise OutputError(f"{folder} is a file; name a folder to write to") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8"
        raise OutputError(f"{folder} cannot be used ({reason}); name another folder") from None
    try:
        manifest = json.loads(data)
        finished = manifest["complete"]
        known = set(manifest) >= JOB and all(set(entry) >= ENTRY for entry in manifest["shards"])
    except (ValueError, RecursionError, KeyError, TypeError):
        known = finished = False
    if not known:
        raise CorpusError(f"{folder / MANIFEST} is none of packer data's; name another folder")
    if finished:
        raise CorpusError(
            f"{folder} is finished and is not overwritten; name another folder, or remove it first"
        )
    return dict(manifest)


def _job(
    texts: Sequence[str | Path], valid: Sequence[str | Path], options: DataOptions
) -> tuple[Entry, list[Split]]:
    """What must agree for a run to continue another, and the splits it reads."""
    if options.tokenizer is None:
        check_vocab_size(options.vocab_size or 0)
    separator = options.document_separator
    train_files, valid_files = (
        scan_texts(texts, separator),
        scan_texts(valid, separator) if valid else (),
    )
    shared = {file.sha256 for file in train_files} & {file.sha256 for file in valid_files}
    for file in valid_files:
        if file.sha256 in shared:
            raise CorpusError(f"{file.path} is training text too; validate on other text")
    count = sum(file.documents for file in train_files)
    held_out = 0 if valid else _held_out(options.valid_fraction, count)
    splits = [Split("train", train_files, separator, count, held_out)]
    if valid:
        count = sum(file.documents for file in valid_files)
        splits.append(Split("val", valid_files, separator, count, count))
    elif held_out:
        splits.append(Split("val", train_files, separator, count, held_out))
    settings = asdict(options)
    if options.tokenizer is not None:
        settings["tokenizer"] = sha256_of(Path(options.tokenizer))
    described = [
        [
            {"bytes": file.size_bytes, "sha256": file.sha256, "documents": file.documents}
            for file in files
        ]
        for files in (train_files, valid_files)
    ]
    return {"options": settings, "texts": described[0], "valid": described[1]}, splits


def _held_out(fraction: float, documents: int) -> int:
    if fraction and documents < 2:
        raise CorpusError(
            "one document cannot be divided into training and validation: name a "
            "--document-separator, a --valid file, or --valid-fraction 0"
        )
    return min(max(round(fraction * documents), 1), documents - 1) if fraction else 0


def _refuse_another_job(folder: Path, manifest: Entry, job: Entry) -> None:
    begun = manifest["options"] if isinstance(manifest["options"], dict) else {}
    for name, value in job["options"].items():
        if begun.get(name) != value:
            raise CorpusError(
                f"{folder} was begun with {name} {begun.get(name)!r}, not {value!r}: continue with "
                "the same options, or name another folder"
            )
    for name in ("texts", "valid"):
        if manifest[name] != job[name]:
            raise CorpusError(
                f"{folder} was begun with other {name}, or they changed since: name another folder"
            )


def _remove_leftovers(folder: Path, prefix: str) -> None:
    """Temporary files of a run that was killed."""
    for name in (MANIFEST, TOKENIZER, f"{prefix}_train_", f"{prefix}_val_"):
        for leftover in folder.glob(f".{name}*.tmp"):
            leftover.unlink(missing_ok=True)


def _tokenizer(folder: Path, manifest: Entry, train: Split, options: DataOptions) -> Any:
    """The sentencepiece processor; its file is in the folder and in the manifest from here on."""
    path = folder / TOKENIZER
    known = manifest["tokenizer"] or {}
    if not path.is_file() or sha256_of(path) != known.get("sha256"):
        if options.tokenizer is None:
            documents = (document for _, document in train.read())
            size = options.vocab_size or 0
            trained = train_tokenizer(
                documents, size, options.tokenizer_bytes, space_runs=options.space_runs
            )
            write_bytes(path, trained)
        else:
            write_bytes(path, usable_model(options.tokenizer))
    tokenizer = load_sentencepiece(path)
    entry = {"file": TOKENIZER, "sha256": sha256_of(path), "vocab_size": tokenizer.vocab_size()}
    if entry != manifest["tokenizer"]:
        manifest.update(tokenizer=entry, shards=[])
        _save(folder, manifest)
    return tokenizer


def _whole_shards(
    folder: Path, manifest: Entry, splits: Sequence[str], options: DataOptions
) -> list[Entry]:
    """The entries whose files are there as they were written, up to a split's first that is not."""
    whole = []
    for split in splits:
        entries = [entry for entry in manifest["shards"] if entry["split"] == split]
        for index, entry in enumerate(entries):
            name = _shard_name(options.prefix, split, index)
            path = folder / name
            same = entry["file"] == name and path.is_file()
            if not same or sha256_of(path) != entry["sha256"]:
                break
            whole.append(entry)
    return whole


class _Writer:
    """Fills one shard after the other with the tokens of a split."""

    def __init__(self, folder: Path, manifest: Entry, split: Split, options: DataOptions) -> None:
        self.folder, self.manifest, self.split, self.options = folder, manifest, split, options
        mine = [entry for entry in manifest["shards"] if entry["split"] == split.name]
        self.index = len(mine)
        self.next = (mine[-1]["next_document"], mine[-1]["next_token"]) if mine else (0, 0)
        self.tokens = np.empty(options.shard_tokens, dtype="<u2")  # touched as it fills
        self.filled = self.documents = self.text_bytes = 0

    def write(self, tokenizer: Any) -> Iterator[int]:
        """Writes the shards that are missing; yields the bytes of each document once it is in."""
        first, offset = self.next
        bos = tokenizer.bos_id()
        for number, document in self.split.read(first):
            tokens = np.array([bos, *tokenizer.encode(document)], dtype="<u2")
            size = len(document.encode())
            self._add(number, tokens, offset if number == first else 0, size)
            yield size
        if self.filled:
            self._flush(self.split.documents, 0)

    def _add(self, number: int, tokens: NDArray[np.uint16], offset: int, size: int) -> None:
        if offset == 0:
            self.documents += 1
            self.text_bytes += size
        while offset < len(tokens):
            taken = tokens[offset : offset + len(self.tokens) - self.filled]
            self.tokens[self.filled : self.filled + len(taken)] = taken
            self.filled += len(taken)
            offset += len(taken)
            if self.filled == len(self.tokens):
                over = offset == len(tokens)
                self._flush(number + over, 0 if over else offset)

    def _flush(self, next_document: int, next_token: int) -> None:
        name = _shard_name(self.options.prefix, self.split.name, self.index)
        header = np.zeros(HEADER_BYTES // 4, dtype="<i4")
        header[:3] = MAGIC, VERSION, self.filled
        digest = hashlib.sha256()
        with replacing(self.folder / name) as temporary, temporary.open("wb") as file:
            for part in (header.data, self.tokens[: self.filled].data):
                file.write(part)
                digest.update(part)
        self.manifest["shards"].append(
            {
                "file": name,
                "split": self.split.name,
                "tokens": self.filled,
                "documents": self.documents,
                "bytes": self.text_bytes,
                "sha256": digest.hexdigest(),
                "next_document": next_document,
                "next_token": next_token,
            }
        )
        _save(self.folder, self.manifest)
        self.index += 1
        self.filled = self.documents = self.text_bytes = 0


def _shard_name(prefix: str, split: str, index: int) -> str:
    return f"{prefix}_{split}_{index:06d}.bin"


def _totals(shards: Sequence[Entry], split: str) -> Entry:
    mine = [entry for entry in shards if entry["split"] == split]
    counts = {key: sum(entry[key] for entry in mine) for key in ("tokens", "documents", "bytes")}
    return {"shards": len(mine), **counts}


def _save(folder: Path, manifest: Entry) -> None:
    write_json(folder / MANIFEST, manifest)
