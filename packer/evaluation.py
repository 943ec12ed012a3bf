"""Scores of several models on the same tokens, paired."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch

from packer.errors import PackerError
from packer.eval import compare, score, shards, text, token_bytes
from packer.eval.batches import Setting, ignore
from packer.eval.errors import EvalError, ScoreError
from packer.eval.foreign_state import unchanged
from packer.eval.forward import (
    VOCAB_MULTIPLE,
    AnyModel,
    TokenNats,
    are_sound,
    device_of,
    scoring,
    tail_logits,
)
from packer.eval.ranks import gathered
from packer.eval.score import ByteCounter, Score
from packer.eval.shards import TokenStream
from packer.eval.text_tokenizer import CountedText
from packer.huggingface.tokenizer import open_tokenizer, table_of

T = TypeVar("T")
PathLike = str | Path
Progress = Callable[[int, int], None]
SHARD = ".bin"
PROBE = 8  # tokens of the trial forward


@dataclass(frozen=True, eq=False)
class Data:
    """Tokens to score, and the bytes they stand for.

    vocab_size: of the tokenizer or table, None with a sidecar alone. text_bytes: UTF-8 bytes of the
    text itself, None for shards. tokenizer: a sentencepiece processor or a `TextTokenizer`, if
    there is one.
    counted_bytes: of all the text's tokens, None for shards. warnings: probable mistakes in the
    text or in its byte counts, in words.
    """

    stream: TokenStream
    counter: ByteCounter
    vocab_size: int | None
    text_bytes: int | None
    tokenizer: Any | None
    counted_bytes: int | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Subject:
    """A model to score. size_bytes: on disk."""

    name: str
    kind: str
    model: AnyModel
    size_bytes: int


@dataclass(frozen=True, eq=False)
class Evaluated:
    """The score of one subject, and its difference and divergence from the reference.

    difference is None for the reference itself; divergence also for models that only give losses.
    """

    subject: Subject
    score: Score
    difference: compare.Difference | None
    divergence: compare.Divergence | None

    def to_json(self) -> dict[str, Any]:
        """One subject as printed by `--json`."""
        value = {
            "source": self.subject.name,
            "kind": self.subject.kind,
            "size_bytes": self.subject.size_bytes,
            **self.score.as_dict(),
        }
        if self.difference is not None:
            value["delta_bits_per_byte"] = self.difference.delta_bpb
            value["delta_stderr_bits_per_byte"] = self.difference.stderr_bits_per_byte
        if self.divergence is not None:
            value["kl_bits_per_byte"] = self.divergence.kl_bits_per_byte
            value["kl_stderr_bits_per_byte"] = self.divergence.kl_stderr_bits_per_byte
            value["top1_agreement"] = self.divergence.top1_agreement
        return value


def open_data(
    paths: Sequence[PathLike],
    *,
    tokenizer: PathLike | None = None,
    bytes_table: PathLike | None = None,
    bytes_sidecar: Sequence[PathLike] = (),
    document_separator: str | None = None,
) -> Data:
    """Shards (.bin) or plain text, by path or glob, as tokens with their bytes.

    Raises EvalError: data, tokenizer or table is damaged or missing. PackerError: shards together
    with text, or no source for the bytes of a token.
    """
    files = _files(paths)
    processor = None if tokenizer is None else open_tokenizer(tokenizer)
    table = token_bytes.from_json(bytes_table) if bytes_table is not None else None
    if processor is not None and table is None:
        table = table_of(processor)
    vocab_size = None if table is None else table.vocab_size
    counter: ByteCounter | None = table
    text_bytes, warnings = None, tuple[str, ...]()
    if files[0].suffix == SHARD:
        stream: TokenStream = shards.read_shards(files, vocab_size)
    elif processor is None:
        raise PackerError(
            f"{files[0]} is text: name its sentencepiece model or tokenizer.json with --tokenizer "
            "(token shards have a .bin name)"
        )
    else:
        encoded = text.encode_files(files, processor, document_separator)
        stream, text_bytes, warnings = encoded.tokens, encoded.text_bytes, encoded.warnings
        if encoded.counts is not None and bytes_table is None:
            counter = CountedText(encoded.counts, processor)
    if len(stream) < 2:
        raise PackerError(
            f"{', '.join(map(str, files))}: there are {len(stream)} tokens, and the first is not "
            "scored; give more data"
        )
    if bytes_sidecar:
        counter = shards.read_sidecar(bytes_sidecar, len(stream))
    if counter is None:
        raise PackerError(
            "bits per byte need the bytes that tokens stand for: name the tokenizer "
            "(--tokenizer), a bytes-per-token table (--bytes-table) or a sidecar (--bytes-sidecar)"
        )
    if text_bytes is None:
        return Data(stream, counter, vocab_size, None, processor)
    counted, unknown = score.total_bytes(stream, counter), counter.unknown_count(stream[:])
    warnings += token_bytes.difference_warnings(counted, text_bytes, unknown)
    return Data(stream, counter, vocab_size, text_bytes, processor, counted, warnings)


def _files(patterns: Sequence[PathLike]) -> list[Path]:
    """All shards or all text, in the order given."""
    files = [file for pattern in patterns for file in _matches(pattern)]
    shard_files = [file for file in files if file.suffix == SHARD]
    if shard_files and len(shard_files) != len(files):
        other = next(file for file in files if file.suffix != SHARD)
        raise PackerError(
            f"{shard_files[0]} is a shard and {other} is text: score them one after the other"
        )
    return files


def _matches(pattern: PathLike) -> list[Path]:
    """The file itself, or the files of a glob by name."""
    path = Path(pattern)
    root = Path(path.anchor)
    if path.is_dir():
        raise PackerError(f"{path} is a folder: name its files, such as '{path / '*.bin'}'")
    matches = [path] if path.exists() else sorted(root.glob(str(path.relative_to(root))))
    if not matches:
        raise PackerError(f"{pattern}: no such data, and as a glob it matches no file")
    return matches


def evaluate(
    subjects: Sequence[Subject],
    data: Data,
    setting: Setting,
    reference: int = 0,
    *,
    progress: Progress,
    notice: Callable[[str], None],
) -> tuple[Evaluated, ...]:
    """Every subject on the same tokens, against subject number `reference`; in their order.

    Models that give logits are scored in one pass with their divergence; models that only give
    losses are scored one by one and compared by their losses. Under torch.distributed every rank
    scores its share and gets the whole result.
    Raises ScoreError: settings, model and data do not fit.
    """
    check_models(subjects, data, setting)
    others = [index for index in range(len(subjects)) if index != reference]
    only_losses = [subject.name for subject in subjects if isinstance(subject.model, TokenNats)]
    divergences: dict[int, compare.Divergence] = {}
    scores: dict[int, Score] = {}
    if others and not only_losses:
        ordered = [subjects[index].model for index in (reference, *others)]
        results = _divergences(ordered, data, setting, progress, notice)
        divergences = dict(zip(others, results, strict=True))
        scores = {index: part.other for index, part in divergences.items()}
        scores[reference] = divergences[others[0]].reference
    else:
        if others:
            notice(f"no divergence and no agreement: {', '.join(only_losses)} gives only losses")
        for index, subject in enumerate(subjects):
            scores[index] = _score(subject.model, data, setting, progress, notice)
    return tuple(
        Evaluated(
            subject,
            scores[index],
            compare.compare(scores[reference], scores[index]) if index != reference else None,
            divergences.get(index),
        )
        for index, subject in enumerate(subjects)
    )


def check_models(
    subjects: Sequence[Subject],
    data: Data,
    setting: Setting,
    notice: Callable[[str], None] = ignore,
) -> None:
    """Checks every model by a trial forward, so that errors name it.

    Models that only give losses are not tried. notice: called if a vocabulary is smaller or far
    larger than the tokenizer's. Raises ScoreError: a window is longer than a model allows, its
    vocabulary lacks a token of the data, or it gives no logits, or none that are finite.
    """
    highest: int | None = None
    for subject in subjects:
        check_window(subject.name, subject.model, setting.window)
        if isinstance(subject.model, TokenNats):
            continue
        tokens = torch.zeros(1, PROBE, dtype=torch.long, device=device_of(subject.model))
        try:
            with scoring([subject.model], setting.autocast), unchanged(subject.model):
                logits = tail_logits(subject.model, tokens, 1, None)
        except ScoreError as error:
            raise ScoreError(f"{subject.name}: {error}") from None
        width, pieces = logits.size(-1), data.vocab_size
        if pieces is None or width < pieces:
            highest = _highest_token(data.stream) if highest is None else highest
            if highest >= width:
                tokenizer = "" if pieces is None else f" and the tokenizer one of {pieces:,},"
                raise ScoreError(
                    f"{subject.name}: the model has a vocabulary of {width:,}{tokenizer} and the "
                    f"data a token {highest:,}: it was made with another tokenizer"
                )
        padded = -(-(pieces or 0) // VOCAB_MULTIPLE) * VOCAB_MULTIPLE
        if pieces is not None and not pieces <= width <= padded:
            notice(
                f"{subject.name}: the model has a vocabulary of {width:,} and the tokenizer one of "
                f"{pieces:,}; if it was trained with another tokenizer, the scores mean nothing"
            )
        if not are_sound(logits):
            raise ScoreError(
                f"{subject.name}: the model's logits are not finite: its weights are damaged or "
                "overflow in this precision"
            )


def check_window(name: str, model: AnyModel, window: int) -> None:
    """Raises ScoreError: the window is longer than the model's configuration allows."""
    longest = getattr(model, "longest_window", None)
    if longest is not None and window > longest:
        raise ScoreError(
            f"{name}: a window of {window:,} tokens is longer than the {longest:,} that its "
            f"configuration allows (max_position_embeddings); take a window of {longest} or less"
        )


def _divergences(
    models: Sequence[AnyModel],
    data: Data,
    setting: Setting,
    progress: Progress,
    notice: Callable[[str], None],
) -> list[compare.Divergence]:
    compared = models[0], models[1:], data.stream, data.counter, setting
    return _on_all_ranks(
        lambda: compare.divergence(*compared, progress=progress, notice=notice),
        lambda parts: [compare.combine(ranks) for ranks in zip(*parts, strict=True)],
    )


def _score(
    model: AnyModel, data: Data, setting: Setting, progress: Progress, notice: Callable[[str], None]
) -> Score:
    scored = model, data.stream, data.counter, setting
    return _on_all_ranks(
        lambda: score.score(*scored, progress=progress, notice=notice), score.combine
    )


def _on_all_ranks(share: Callable[[], T], combine: Callable[[Sequence[T]], T]) -> T:
    """The combined shares of all ranks. An error on one rank is raised on all, so none waits."""
    refusals: list[EvalError] = []
    try:
        part = share()
    except EvalError as error:
        refusals = [error]
    refusals = gathered(refusals, lambda parts: [one for ranks in parts for one in ranks])
    if refusals:
        raise refusals[0]
    return gathered(part, combine)


def _highest_token(stream: TokenStream) -> int:
    starts = range(0, len(stream), shards.SCAN)
    return max((int(stream[at : at + shards.SCAN].max()) for at in starts), default=-1)
