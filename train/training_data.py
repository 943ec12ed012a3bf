"""The shards a run trains and validates on, opened and checked against its model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packer.eval.errors import EvalError
from packer.eval.forward import VOCAB_MULTIPLE
from packer.eval.score import ByteCounter
from packer.eval.shards import TokenStream, read_shards
from packer.eval.token_bytes import from_sentencepiece
from packer.train.data_job import MANIFEST
from packer.train.settings import DataSettings, TrainConfig

from packer.errors import PackerError


@dataclass(frozen=True, eq=False)
class TrainingData:
    """train: all training tokens. valid: tokens to score, with the bytes they stand for."""

    train: TokenStream
    valid: TokenStream | None
    counter: ByteCounter | None

    @property
    def validates(self) -> bool:
        """Whether a model can be scored on it."""
        return self.valid is not None and self.counter is not None


def open_training_data(config: TrainConfig) -> TrainingData:
    """The streams that `config.data` names.

    Raises PackerError: no data named, missing or damaged shards, an unfinished folder, a tokenizer
    of another vocabulary than the model.
    """
    data = _from_folder(config.data) if config.data.folder else config.data
    if not data.train:
        raise PackerError(
            "no training data is named: write shards with `packer data TEXT... -o DIR` and name "
            "the folder with --data DIR, or set data.train to shards"
        )
    for path in (*data.train, *data.valid):
        if Path(path).suffix == ".txt":
            raise PackerError(f"{path} is text: make shards of it first, `packer data {path} -o D`")
    try:
        train = read_shards(data.train)
        valid = read_shards(data.valid, config.model.vocab_size) if data.valid else None
        counter = from_sentencepiece(data.tokenizer) if data.tokenizer else None
    except EvalError as error:
        raise PackerError(str(error)) from None
    if counter is not None:
        _check_vocabulary(data.tokenizer, counter.vocab_size, config.model.vocab_size)
    return TrainingData(train, valid, counter)


def _from_folder(data: DataSettings) -> DataSettings:
    """What the manifest of a folder names."""
    folder = Path(data.folder)
    try:
        manifest: dict[str, Any] = json.loads((folder / MANIFEST).read_text("utf-8"))
        complete = manifest["complete"]
        shards = [(str(entry["split"]), str(entry["file"])) for entry in manifest["shards"]]
        tokenizer = str(manifest["tokenizer"]["file"]) if manifest["tokenizer"] else ""
    except OSError as error:
        raise PackerError(
            f"{folder / MANIFEST} cannot be read ({error.strerror}): {folder} is no folder of "
            "`packer data`; make one, or name shards with --set data.train"
        ) from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise PackerError(
            f"{folder / MANIFEST} is damaged ({error!r}); make it again with `packer data`"
        ) from None
    if not complete:
        raise PackerError(f"{folder} is unfinished: run the same `packer data` again to finish it")
    for _, name in shards:
        if not (folder / name).is_file():
            raise PackerError(f"{folder / name} is missing: make the folder again, `packer data`")
    return DataSettings(
        train=tuple(str(folder / name) for split, name in shards if split == "train"),
        valid=tuple(str(folder / name) for split, name in shards if split == "val"),
        tokenizer=str(folder / tokenizer) if tokenizer else "",
    )


def _check_vocabulary(path: str, tokenizer: int, model: int) -> None:
    rounded = -(-tokenizer // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
    if model not in (tokenizer, rounded):
        raise PackerError(
            f"model.vocab_size = {model:,}, and the tokenizer {path} has {tokenizer:,} pieces: "
            f"train with --set model.vocab_size={tokenizer}"
        )
