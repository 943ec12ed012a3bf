"""Scores of several models on the same tokens, paired."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from packer.errors import PackerError
from packer.eval import compare, score, shards, text, token_bytes
from packer.eval.batches import Setting
from packer.eval.forward import AnyModel, TokenNats
from packer.eval.ranks import gathered
from packer.eval.score import ByteCounter, Score
from packer.eval.shards import TokenStream

PathLike = str | Path
Progress = Callable[[int, int], None]


@dataclass(frozen=True, eq=False)
class Data:
    """Tokens to score, and the bytes they stand for.

    vocab_size: of the tokenizer or table, None with a sidecar alone. text_bytes: UTF-8 bytes of the
    text itself, None for shards. tokenizer: the sentencepiece processor, if there is one.
    """

    stream: TokenStream
    counter: ByteCounter
    vocab_size: int | None
    text_bytes: int | None
    tokenizer: Any | None


@dataclass(frozen=True, eq=False)
class Subject:
    """A model to score. size_bytes: what it takes on disk."""

    name: str
    kind: str
    model: AnyModel
    size_bytes: int


@dataclass(frozen=True, eq=False)
class Evaluated:
    """The score of one subject, and against the reference its difference and divergence.

    difference is None for the reference itself; divergence also for models that give only losses.
    """

    subject: Subject
    score: Score
    difference: compare.Difference | None
    divergence: compare.Divergence | None

    def to_json(self) -> dict[str, Any]:
        """What `--json` prints of one subject."""
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
    """Shards (.bin) or plain text as tokens with their bytes.

    Raises EvalError: data, tokenizer or table is damaged or missing. PackerError: what is given
    does not say how many bytes a token stands for.
    """
    processor = None if tokenizer is None else token_bytes.load_sentencepiece(tokenizer)
    table = token_bytes.from_json(bytes_table) if bytes_table is not None else None
    if processor is not None and table is None:
        table = token_bytes.from_processor(processor)
    vocab_size = None if table is None else table.vocab_size
    text_bytes = None
    if all(Path(path).suffix == ".bin" for path in paths):
        stream: TokenStream = shards.read_shards(paths, vocab_size)
    elif processor is None:
        raise PackerError(f"{paths[0]} is text: name its sentencepiece model with --tokenizer")
    else:
        encoded = text.encode_files(paths, processor, document_separator)
        stream, text_bytes = encoded.tokens, encoded.text_bytes
    counter: ByteCounter | None = table
    if bytes_sidecar:
        counter = shards.read_sidecar(bytes_sidecar, len(stream))
    if counter is None:
        raise PackerError(
            "bits per byte need the bytes that tokens stand for: name the sentencepiece model "
            "(--tokenizer), a bytes-per-token table (--bytes-table) or a sidecar (--bytes-sidecar)"
        )
    return Data(stream, counter, vocab_size, text_bytes, processor)


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

    Models that give logits are scored in one pass with their divergence; models that only tell
    losses are scored one by one and compared by their losses. Under torch.distributed every rank
    scores its share and gets the whole result.
    Raises ScoreError: settings, model and data do not fit.
    """
    others = [index for index in range(len(subjects)) if index != reference]
    models = [subject.model for subject in subjects]
    divergences: dict[int, compare.Divergence] = {}
    if others and not any(isinstance(model, TokenNats) for model in models):
        found = compare.divergence(
            models[reference],
            [models[index] for index in others],
            data.stream,
            data.counter,
            setting,
            progress=progress,
            notice=notice,
        )
        for index, part in zip(others, found, strict=True):
            divergences[index] = gathered(part, compare.combine)
        scores = {index: part.other for index, part in divergences.items()}
        scores[reference] = divergences[others[0]].reference
    else:
        scores = {}
        for index, model in enumerate(models):
            share = score.score(
                model, data.stream, data.counter, setting, progress=progress, notice=notice
            )
            scores[index] = gathered(share, score.combine)
    return tuple(
        Evaluated(
            subject,
            scores[index],
            compare.compare(scores[reference], scores[index]) if index != reference else None,
            divergences.get(index),
        )
        for index, subject in enumerate(subjects)
    )
