"""A sentencepiece BPE tokenizer with byte fallback, trained so that every text comes back whole."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

import sentencepiece
from packer.eval.token_bytes import load_sentencepiece

from packer.errors import PackerError

MAX_VOCAB = 1 << 16  # tokens of larger ones take 32 bits in shards
SPECIAL = 3 + 256  # <unk>, <s>, </s> and the byte pieces
LINE_LETTERS = 1000  # of up to four bytes each, below the 4,192 at which sentencepiece skips a line
QUIET = 2  # sentencepiece's log level for errors alone


class TokenizerError(PackerError):
    """A tokenizer that cannot be trained on this text, or not with this vocabulary."""


def train_tokenizer(
    documents: Iterable[str], vocab_size: int, max_bytes: int, *, space_runs: bool = False
) -> bytes:
    """A sentencepiece model as the bytes of its file; equal text gives equal bytes.

    Nothing is normalized: white space and line ends are kept, what the vocabulary
    lacks as bytes. <unk>, <s> (BOS) and </s> are 0, 1 and 2, as in the contest's tokenizers.

    Args:
        documents: lines are taken from the first documents, until `max_bytes` of UTF-8.
        vocab_size: 260 to 65,536 pieces, special and byte pieces included.
        space_runs: pieces of several spaces, such as indentation, which contest tokenizers lack.

    Raises TokenizerError: a vocabulary outside that range, or too large or small for the text.
    """
    check_vocab_size(vocab_size)
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=_lines(documents, max_bytes),
            model_writer=model,
            model_type="bpe",
            vocab_size=vocab_size,
            byte_fallback=True,
            normalization_rule_name="identity",
            remove_extra_whitespaces=False,
            allow_whitespace_only_pieces=space_runs,
            shuffle_input_sentence=False,
            num_threads=1,
            minloglevel=QUIET,
        )
    except (RuntimeError, OSError) as error:
        raise TokenizerError(_in_words(str(error), vocab_size)) from None
    return model.getvalue()


def check_vocab_size(vocab_size: int) -> None:
    """Raises TokenizerError: not in 260 to 65,536."""
    if vocab_size > MAX_VOCAB:
        raise TokenizerError(
            f"a vocabulary of {vocab_size:,} is larger than the {MAX_VOCAB:,} pieces that are "
            "trained here, whose tokens take 16 bits; ask for fewer"
        )
    if vocab_size <= SPECIAL:
        raise TokenizerError(
            f"a vocabulary of {vocab_size:,} leaves no room beside {SPECIAL} special and byte "
            f"pieces; ask for at least {SPECIAL + 1}"
        )


def usable_model(path: str) -> bytes:
    """The bytes of an existing sentencepiece model that can make shards.

    Raises TokenizerError: too many pieces, no BOS. TokenBytesError: not a sentencepiece model.
    """
    tokenizer = load_sentencepiece(path)
    if tokenizer.bos_id() < 0:
        raise TokenizerError(f"{path} has no BOS piece, which starts every document; name another")
    return Path(path).read_bytes()


def _lines(documents: Iterable[str], max_bytes: int) -> Iterator[str]:
    taken = 0
    for document in documents:
        for line in document.split("\n"):
            for start in range(0, len(line), LINE_LETTERS):
                piece = line[start : start + LINE_LETTERS]
                taken += len(piece.encode())
                if taken > max_bytes:
                    return
                yield piece


def _in_words(error: str, vocab_size: int) -> str:
    allowed = re.search(r"value <= (\d+)", error)
    if allowed:
        return (
            f"the text is too short for a vocabulary of {vocab_size:,}: it gives at most "
            f"{int(allowed[1]):,} pieces; lower --vocab-size or give more text"
        )
    needed = re.search(r"required_chars.*?(\d+) vs (\d+)", error, re.DOTALL)
    if needed:
        return (
            f"a vocabulary of {vocab_size:,} is too small for the letters of this text, which need "
            f"{max(int(needed[1]), int(needed[2])):,} pieces; raise --vocab-size"
        )
    if "sentences_.empty()" in error:
        return "there is no line of text to train a tokenizer on; give more text"
    return f"sentencepiece cannot train a tokenizer on this text: {error}"
