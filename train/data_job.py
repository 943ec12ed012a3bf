"""What makes a folder of token shards: options and texts, and whether a begun one may go on.

Documents are divided into training and validation by their number alone.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from packer.eval.text import absent_separator
from packer.train.documents import CorpusError, TextFile, read_documents, scan_texts, sha256_of
from packer.train.shared_text import shared_text
from packer.train.tokenizer import check_vocab_size

from packer.errors import OutputError

MANIFEST = "manifest.json"
TOKENIZER = "tokenizer.model"
MAX_SHARD_TOKENS = 2**31 - 1  # the header counts in int32

JOB = {"options", "texts", "valid", "tokenizer"}
ENTRY = {"file", "split", "tokens", "documents", "bytes", "sha256", "next_document", "next_token"}

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

    def read(self, start: int = 0) -> Iterator[tuple[int, Path, str]]:
        """(number, file, document) of the documents of this split, from number `start` on."""
        every = (
            (file.path, document)
            for file in self.files
            for document in read_documents(file.path, self.separator)
        )
        for number, (file, document) in enumerate(every):
            before, after = (n * self.held_out // self.documents for n in (number, number + 1))
            if number >= start and (after > before) == (self.name == "val"):
                yield number, file, document


def begun(folder: Path, options: DataOptions) -> Entry | None:
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


def job_of(
    texts: Sequence[str | Path], valid: Sequence[str | Path], options: DataOptions
) -> tuple[Entry, list[Split]]:
    """What must agree for a run to continue another, and the splits it reads."""
    if options.tokenizer is None:
        check_vocab_size(options.vocab_size or 0)
    separator = options.document_separator
    train_files = scan_texts(texts, separator)
    valid_files = scan_texts(valid, separator) if valid else ()
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


def text_warnings(splits: Sequence[Split]) -> list[str]:
    """What of the texts is probably not meant.

    Raises CorpusError: all validation documents are training text too.
    """
    warnings = []
    separator = splits[0].separator
    files = {file.path: file for split in splits for file in split.files}.values()
    if separator is not None and all(file.documents <= 1 for file in files):
        warnings.append(absent_separator(separator))
    if len(splits) < 2:
        return warnings
    overlap = shared_text(*(((f, text) for _, f, text in split.read()) for split in splits))
    if overlap.shared == overlap.documents:
        raise CorpusError(
            f"{overlap.describe()}: validate on other text, with --valid, or hold none out with "
            "--valid-fraction 0"
        )
    if overlap.shared:
        warnings.append(f"{overlap.describe()}: its loss says less about text that is new")
    return warnings


def _held_out(fraction: float, documents: int) -> int:
    if fraction and documents < 2:
        raise CorpusError(
            "one document cannot be divided into training and validation: name a "
            "--document-separator, a --valid file, or --valid-fraction 0"
        )
    return min(max(round(fraction * documents), 1), documents - 1) if fraction else 0


def refuse_another_job(folder: Path, manifest: Entry, job: Entry) -> None:
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


def remove_leftovers(folder: Path, prefix: str) -> None:
    """Temporary files of a run that was killed."""
    for name in (MANIFEST, TOKENIZER, f"{prefix}_train_", f"{prefix}_val_"):
        for leftover in folder.glob(f".{name}*.tmp"):
            leftover.unlink(missing_ok=True)
