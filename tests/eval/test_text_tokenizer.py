"""Bytes of text behind the tokens of tokenizer.json, however it changes a text before."""

from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
from packer.eval.errors import TokenBytesError
from packer.eval.text import encode_documents
from packer.eval.text_tokenizer import TextTokenizer, read_text_tokenizer

tokenizers = pytest.importorskip("tokenizers")
from tokenizers import decoders, models, normalizers, pre_tokenizers, processors, trainers  # noqa: E402

ENGLISH = "The cat sat on the mat, and the hat was on the cat. " * 8
ODD = "  Zoë\tnaïve 日本語 😀😀  end \r\n\r\n  ﬁne Ⅷ ½ ＡＢＣ\n"


def trained(tokenizer: Any, **options: Any) -> Any:
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<s>", "</s>", "<unk>"], show_progress=False, **options
    )
    tokenizer.train_from_iterator([ENGLISH], trainer)
    return tokenizer


def byte_level(prefix: bool = False, trim: bool = True) -> Any:
    made = tokenizers.Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    made.decoder = decoders.ByteLevel()
    made.post_processor = processors.ByteLevel(trim_offsets=trim)
    return trained(made, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())


def with_word_marks(normalizer: Any = None) -> Any:
    """As Llama's: spaces are word marks, one in front of a text, and bytes where letters lack."""
    made = tokenizers.Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    if normalizer is not None:
        made.normalizer = normalizer
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Sequence(
        [decoders.ByteFallback(), decoders.Metaspace(), decoders.Fuse()]
    )
    return trained(made)


def opened(made: Any, **beside: bytes) -> TextTokenizer:
    files = {name.replace("_json", ".json"): data for name, data in beside.items()}
    return read_text_tokenizer(made.to_str().encode(), files, "tokenizer.json")


@pytest.mark.parametrize("text", [ENGLISH, ODD])
@pytest.mark.parametrize("prefix", [False, True])
@pytest.mark.parametrize("trim", [False, True])
def test_bytes_of_byte_level_tokens_are_those_of_the_text(
    text: str, prefix: bool, trim: bool
) -> None:
    tokenizer = opened(byte_level(prefix, trim))
    tokens, counts = tokenizer.encode_counted(text)
    assert len(tokens) == len(counts) and counts.min() >= 0
    assert counts.sum() == len(text.encode())


@pytest.mark.parametrize("text", [ENGLISH, "  the  mat ", "a"])
def test_a_word_mark_in_front_of_a_text_counts_nothing(text: str) -> None:
    tokenizer = opened(with_word_marks())
    tokens, counts = tokenizer.encode_counted(text)
    assert counts.sum() == len(text.encode()) and len(tokens) == len(counts)


@pytest.mark.parametrize("text", [ENGLISH, "The cat", "the  mat on the hat"])
@pytest.mark.parametrize("made", [byte_level(), with_word_marks()])
def test_a_table_of_tokens_alone_counts_as_much(made: Any, text: str) -> None:
    tokenizer = opened(made)
    tokens, counts = tokenizer.encode_counted(text)
    with_start = np.array([tokenizer._tokenizer.token_to_id("<s>"), *tokens])
    assert tokenizer.token_bytes().target_bytes(with_start, 1).sum() == counts.sum()


def test_byte_tokens_of_one_letter_count_it_once() -> None:
    pieces = [
        "<unk>",
        "\N{LOWER ONE EIGHTH BLOCK}",
        "a",
        *(f"<0x{byte:02X}>" for byte in range(256)),
    ]
    vocabulary = {piece: token for token, piece in enumerate(pieces)}
    made = tokenizers.Tokenizer(models.BPE(vocabulary, [], byte_fallback=True, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer = opened(made)
    tokens, counts = tokenizer.encode_counted("a 😀a")
    assert counts.tolist() == [1, 0, 1, 4, 0, 0, 0, 1] and len(tokens) == 8
    assert tokenizer.token_bytes().base[tokens].tolist() == [0, 1, 0, 1, 1, 1, 1, 1]


def test_what_the_library_cannot_encode_is_refused_in_words() -> None:
    made = tokenizers.Tokenizer(models.WordLevel({"cat": 1}, "[UNK]"))
    with pytest.raises(TokenBytesError, match="the tokenizer cannot encode the text"):
        opened(made).encode("dog")


def test_bytes_of_a_normalized_text_are_its_own_and_both_numbers_are_said() -> None:
    made = byte_level()
    made.normalizer = normalizers.NFKC()
    encoded = encode_documents([ODD], opened(made))
    assert encoded.counts is not None
    assert encoded.counts.sum() == encoded.text_bytes == len(ODD.encode())
    import unicodedata

    kept = len(unicodedata.normalize("NFKC", ODD).encode())
    assert (
        f"{kept:,} bytes" in encoded.warnings[0] and f"{len(ODD.encode()):,}" in encoded.warnings[0]
    )
    assert encode_documents([ENGLISH], opened(made)).warnings == ()


def test_unknown_tokens_count_nothing() -> None:
    made = tokenizers.Tokenizer(models.WordLevel({"[UNK]": 0, "cat": 1, "the": 2}, "[UNK]"))
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = opened(made)
    tokens, counts = tokenizer.encode_counted("the zebra cat")
    assert tokens == [2, 0, 1] and counts.tolist() == [3, 0, 4]
    assert tokenizer.unknown_count(np.array(tokens)) == 1


def test_a_special_token_spelled_in_the_text_counts_its_letters() -> None:
    tokenizer = opened(byte_level())
    tokens, counts = tokenizer.encode_counted("cat</s>cat")
    at = tokens.index(tokenizer._tokenizer.token_to_id("</s>"))
    assert counts[at] == len("</s>") and counts.sum() == len("cat</s>cat")


@pytest.mark.parametrize(
    ("beside", "start"),
    [
        ({}, -1),
        ({"tokenizer_config_json": b'{"bos_token": "</s>"}'}, 1),
        ({"tokenizer_config_json": b'{"bos_token": {"content": "<s>"}}'}, 0),
        ({"config_json": b'{"bos_token_id": 7, "eos_token_id": [1, 2]}'}, 7),
        ({"config_json": b'{"bos_token_id": null, "eos_token_id": [1, 2]}'}, 1),
    ],
)
def test_files_beside_name_what_a_text_begins_with(beside: dict[str, bytes], start: int) -> None:
    tokenizer = opened(byte_level(), **beside)
    assert tokenizer.bos_id() == start
    tokens = encode_documents(["cat", "mat"], tokenizer).tokens
    assert (tokens == start).sum() == (0 if start < 0 else 2)


def test_what_the_tokenizer_itself_puts_in_front_counts_first() -> None:
    made = byte_level()
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 0)]
    )
    tokenizer = opened(made, config_json=b'{"bos_token_id": 7}')
    assert tokenizer.bos_id() == 0
    assert tokenizer.encode("cat")[0] != 0


def test_what_is_no_tokenizer_is_refused() -> None:
    for spelled in (b"{}", b'{"model": 1, "post_processor": null}', b"\xff"):
        with pytest.raises(TokenBytesError, match=r"x\.json is not a tokenizer of the library"):
            read_text_tokenizer(spelled, {}, "x.json")
    with pytest.raises(TokenBytesError, match=r"config\.json beside .* is not JSON"):
        opened(byte_level(), config_json=b"{")


def test_without_the_library_its_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(TokenBytesError, match=r"pip install 'bytecap\[hf\]'"):
        read_text_tokenizer(b"{}", {}, "tokenizer.json")
