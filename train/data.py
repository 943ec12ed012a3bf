"""Text to a folder of token shards, a tokenizer and a manifest, as contest trainers read them.

Documents are encoded one by one, BOS in front, and cut into shards of a fixed number of tokens; a
document may go on in the next shard. An interrupted run continues after its last whole shard.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from packer.eval.score import total_bytes
from packer.eval.shards import SCAN, read_shards, shard_header
from packer.eval.token_bytes import difference_warnings, from_processor, load_sentencepiece
from packer.train.data_job import (
    MANIFEST,
    TOKENIZER,
    DataOptions,
    Entry,
    Split,
    begun,
    job_of,
    refuse_another_job,
    remove_leftovers,
    text_warnings,
)
from packer.train.documents import sha256_of
from packer.train.tokenizer import train_tokenizer, usable_model

from packer.files import replacing, write_bytes, write_json
from packer.progress import Progress, ignore_progress


def make_data(
    texts: Sequence[str | Path],
    folder: str | Path,
    options: DataOptions,
    *,
    valid: Sequence[str | Path] = (),
    progress: Progress = ignore_progress,
) -> Entry:
    """Write tokenizer, shards and manifest into `folder`, or continue what was begun there.

    Args:
        texts: UTF-8 files; a folder stands for its .txt files, in order of their paths.
        valid: likewise, for validation; without them `valid_fraction` of the documents is held out.
        progress: called with what is read, bytes of text done, bytes in all.

    Returns the manifest: complete, options, texts, valid, tokenizer (file, sha256, vocab_size),
    shards (file, split, tokens, documents and bytes of text that start in it, sha256, and where the
    next one begins), per split the totals, with the bytes that its tokens count, and warnings.

    Raises CorpusError: no text, not UTF-8, too few documents to hold one out, validation text that
    is also training text, a separator that cannot be, a folder that is finished or belongs to other
    options or files. TokenizerError: a vocabulary that does not fit the text or the shards, a model
    without BOS. TokenBytesError: an existing tokenizer that is not a sentencepiece model.
    OutputError: the folder cannot be written.
    """
    target = Path(folder)
    manifest = begun(target, options)
    job, splits = job_of(texts, valid, options)
    warnings = text_warnings(splits)
    if manifest is None or manifest["tokenizer"] is None:  # nothing that other options could spoil
        manifest = {"complete": False, **job, "tokenizer": None, "shards": []}
        _save(target, manifest)
    refuse_another_job(target, manifest, job)
    remove_leftovers(target, options.prefix)
    total = sum(file.size_bytes for file in {*splits[0].files, *splits[-1].files})
    progress("tokenizer", 0, total)
    tokenizer = _tokenizer(target, manifest, splits[0], options)
    manifest["shards"] = _whole_shards(target, manifest, [split.name for split in splits], options)
    done = 0
    for split in splits:
        writer = _Writer(target, manifest, split, options, tokenizer.vocab_size())
        for size in writer.write(tokenizer):
            done += size
            progress(split.name, done, total)
        manifest[split.name] = _totals(target, manifest["shards"], split.name, tokenizer)
        counts = (manifest[split.name][key] for key in ("token_bytes", "bytes", "unknown_tokens"))
        warnings += [f"{split.name}: {warning}" for warning in difference_warnings(*counts)]
    manifest["warnings"] = warnings
    manifest["shards"].sort(key=lambda entry: str(entry["file"]))
    manifest["complete"] = True
    _save(target, manifest)
    return manifest


def _tokenizer(folder: Path, manifest: Entry, train: Split, options: DataOptions) -> Any:
    """The sentencepiece processor; its file is in the folder and in the manifest from here on."""
    path = folder / TOKENIZER
    known = manifest["tokenizer"] or {}
    if not path.is_file() or sha256_of(path) != known.get("sha256"):
        if options.tokenizer is None:
            documents = (document for _, _, document in train.read())
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
    """The entries of each split whose files are complete, up to its first incomplete one."""
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

    def __init__(
        self, folder: Path, manifest: Entry, split: Split, options: DataOptions, vocab_size: int
    ) -> None:
        self.folder, self.manifest, self.split, self.options = folder, manifest, split, options
        mine = [entry for entry in manifest["shards"] if entry["split"] == split.name]
        self.index = len(mine)
        self.next = (mine[-1]["next_document"], mine[-1]["next_token"]) if mine else (0, 0)
        self.vocab_size, (_, dtype) = vocab_size, shard_header(vocab_size, 0)
        self.tokens = np.empty(options.shard_tokens, dtype)  # touched as it fills
        self.filled = self.documents = self.text_bytes = 0

    def write(self, tokenizer: Any) -> Iterator[int]:
        """Writes the shards that are missing; yields the bytes of each document once it is in."""
        first, offset = self.next
        bos = tokenizer.bos_id()
        for number, _, document in self.split.read(first):
            tokens = np.array([bos, *tokenizer.encode(document)], self.tokens.dtype)
            size = len(document.encode())
            self._add(number, tokens, offset if number == first else 0, size)
            yield size
        if self.filled:
            self._flush(self.split.documents, 0)

    def _add(self, number: int, tokens: NDArray[np.integer[Any]], offset: int, size: int) -> None:
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
        header, _ = shard_header(self.vocab_size, self.filled)
        digest = hashlib.sha256()
        with replacing(self.folder / name) as temporary, temporary.open("wb") as file:
            for part in (header, self.tokens[: self.filled].data):
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


def _totals(folder: Path, shards: Sequence[Entry], split: str, tokenizer: Any) -> Entry:
    """Sums over the shards of a split, and the bytes that scoring counts on their tokens."""
    mine = [entry for entry in shards if entry["split"] == split]
    counts = {key: sum(entry[key] for entry in mine) for key in ("tokens", "documents", "bytes")}
    stream = read_shards([folder / entry["file"] for entry in mine])
    table = from_processor(tokenizer)
    counts["token_bytes"] = total_bytes(stream, table)
    counts["unknown_tokens"] = sum(
        table.unknown_count(stream[start : start + SCAN]) for start in range(0, len(stream), SCAN)
    )
    return {"shards": len(mine), **counts}


def _save(folder: Path, manifest: Entry) -> None:
    write_json(folder / MANIFEST, manifest)
