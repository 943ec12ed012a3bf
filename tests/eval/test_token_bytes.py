"""Bytes per token: by the tokenizer's own decoding, by table, and in the plausible band."""

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from packer.eval.errors import TokenBytesError
from packer.eval.score import target_bytes, total_bytes
from packer.eval.text import encode_documents
from packer.eval.token_bytes import (
    TokenBytes,
    difference_warnings,
    from_json,
    from_processor,
    from_sentencepiece,
    load_sentencepiece,
    plausibility_warning,
)

SENTENCES = [
    "the quick brown fox jumps over the lazy dog",
    "in the beginning there was nothing, and then there was the fox",
    "Über die Brücke ging der Fuchs - naïve façade, 1234 times",
] * 20


def train(**options: Any) -> Any:
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(SENTENCES),
        model_writer=model,
        hard_vocab_limit=False,
        minloglevel=2,
        **{"model_type": "bpe", **options},
    )
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())


@pytest.fixture(scope="module")
def with_byte_pieces() -> Any:
    """Every text can be written: no unknown tokens."""
    return train(vocab_size=400, byte_fallback=True)


@pytest.fixture(scope="module")
def with_inner_marks() -> Any:
    """Pieces may span words, and white space is kept as it is."""
    return train(
        vocab_size=420,
        byte_fallback=True,
        split_by_whitespace=False,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        user_defined_symbols=["<tag>"],
    )


def counted(processor: Any, documents: list[str]) -> int:
    tokens = encode_documents(documents, processor).tokens
    return int(from_processor(processor).target_bytes(tokens, 1).sum())


def decoded(processor: Any, documents: list[str]) -> int:
    return sum(len(processor.decode(processor.encode(text)).encode()) for text in documents)


texts = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=40)
words = st.text("the fox Ü-1é ", min_size=1, max_size=40)


@settings(deadline=None)
@given(st.lists(texts | words, min_size=1, max_size=3))
def test_bytes_are_those_of_the_decoded_text(with_byte_pieces: Any, documents: list[str]) -> None:
    assert counted(with_byte_pieces, documents) == decoded(with_byte_pieces, documents)


@settings(deadline=None)
@given(st.lists(texts | words, min_size=1, max_size=3))
def test_bytes_with_marks_inside_pieces(with_inner_marks: Any, documents: list[str]) -> None:
    pieces = [with_inner_marks.id_to_piece(i) for i in range(with_inner_marks.vocab_size())]
    assert any("▁" in piece.strip("▁") for piece in pieces)
    assert counted(with_inner_marks, documents) == decoded(with_inner_marks, documents)


def test_the_kinds_of_pieces(with_byte_pieces: Any) -> None:
    table = from_processor(with_byte_pieces)
    piece = with_byte_pieces.piece_to_id
    bos, unknown, the, byte = piece("<s>"), piece("<unk>"), piece("▁the"), piece("<0xC3>")
    assert table.is_boundary[[bos, unknown, the, byte]].tolist() == [True, True, False, False]
    assert table.is_unknown.nonzero()[0].tolist() == [unknown]
    tokens = np.array([bos, the, the, unknown, the, byte, bos])
    assert table.target_bytes(tokens, 1).tolist() == [3, 4, 0, 3, 1, 0]
    assert table.unknown_count(tokens) == 1


EDGES = [
    ["the fox"],
    [" the fox ", "fox", " ", "\n over  the\n"],
    ["<tag> the", "Über <tag>", "日本 the ", "</s> the"],
]


@pytest.mark.parametrize("documents", EDGES)
@pytest.mark.parametrize("lone_space", [True, False])
@pytest.mark.parametrize("suffix", [False, True])
@pytest.mark.parametrize("own_space", [False, True])
@pytest.mark.parametrize("kind", ["bpe", "unigram", "char"])
def test_bytes_are_those_of_the_text_whatever_the_tokenizer_does_with_spaces(
    kind: str, own_space: bool, suffix: bool, lone_space: bool, documents: list[str]
) -> None:
    processor = train(
        vocab_size=360,
        model_type=kind,
        byte_fallback=True,
        add_dummy_prefix=own_space,
        treat_whitespace_as_suffix=suffix,
        remove_extra_whitespaces=False,
        normalization_rule_name="identity",
        user_defined_symbols=["<tag>"],
    )
    if not lone_space:
        proto, piece = processor.serialized_model_proto(), b"\x0a\x03" + "▁".encode()
        assert proto.count(piece) == 1
        other = proto.replace(piece, b"\x0a\x03" + "▂".encode())
        processor = sentencepiece.SentencePieceProcessor(model_proto=other)
    assert counted(processor, documents) == sum(len(document.encode()) for document in documents)
    table, tokens = from_processor(processor), encode_documents(documents, processor).tokens
    one_by_one = [target_bytes(tokens, table, at, at + 1)[0] for at in range(len(tokens) - 1)]
    assert sum(one_by_one) == total_bytes(tokens, table) == counted(processor, documents)
    assert min(one_by_one) >= 0


def test_a_difference_is_told_with_both_numbers() -> None:
    assert difference_warnings(1200, 1200) == ()
    (more,) = difference_warnings(1320, 1200)
    assert "1,320" in more and "1,200" in more and "10 % more" in more and "too low" in more
    (fewer,) = difference_warnings(1140, 1200, unknown_tokens=7)
    assert "5 % fewer" in fewer and "too high" in fewer and "7 unknown" in fewer


def test_the_contest_tokenizer(shared: Path) -> None:
    path = shared / "tokenizers" / "fineweb_1024_bpe.model"
    processor, table = load_sentencepiece(path), from_sentencepiece(path)
    assert table.vocab_size == 1024
    text = (shared / "corpus" / "valid" / "sherlock.txt").read_text(encoding="utf-8")
    encoded = encode_documents([text], processor)
    assert (len(encoded.tokens), encoded.text_bytes) == (206_352, 562_597)
    assert table.unknown_count(encoded.tokens) == 3
    assert table.target_bytes(encoded.tokens[: 102_400 + 1], 1).sum() == 277_209
    assert counted(processor, ["It is a capital mistake."]) == 24


def test_a_table_file(tmp_path: Path) -> None:
    path = tmp_path / "bytes.json"
    path.write_text(json.dumps({"bytes": [0, 3, 2], "leading_space": [1], "boundary": [0]}))
    table = from_json(path)
    assert table.target_bytes(np.array([0, 1, 1, 2]), 1).tolist() == [3, 4, 2]
    assert table.unknown_count(np.array([0, 1])) == 0


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ({"byte": [1]}, 'an object with "bytes"'),
        ({"bytes": [1], "lead": []}, "optionally leading_space"),
        ({"bytes": [1, -1]}, '"bytes" must be a list of whole numbers'),
        ({"bytes": [1.5]}, '"bytes" must be'),
        ({"bytes": [1], "boundary": [1]}, '"boundary" must be .* from 0 to 0'),
        ([1, 2], "an object"),
    ],
)
def test_damaged_tables_are_refused(tmp_path: Path, table: object, words: str) -> None:
    path = tmp_path / "bytes.json"
    path.write_text(json.dumps(table))
    with pytest.raises(TokenBytesError, match=words):
        from_json(path)


def test_what_is_no_tokenizer_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TokenBytesError, match="no such tokenizer"):
        from_sentencepiece(tmp_path / "absent.model")
    (tmp_path / "text.model").write_text("not a model")
    with pytest.raises(TokenBytesError, match="not a sentencepiece model"):
        from_sentencepiece(tmp_path / "text.model")
    with pytest.raises(TokenBytesError, match="cannot be read as JSON"):
        from_json(tmp_path / "text.model")


@pytest.mark.parametrize(("vocab", "ratio"), [(1024, 2.442), (8192, 3.727), (8192, 3.157)])
def test_ratios_seen_in_the_wild_are_plausible(vocab: int, ratio: float) -> None:
    assert plausibility_warning(ratio, vocab) is None


@pytest.mark.parametrize(
    ("vocab", "ratio"), [(1024, 2.442 * 1.1746), (1024, 3.5), (8192, 3.727 * 1.2), (50_257, 2.0)]
)
def test_known_miscounts_are_not(vocab: int, ratio: float) -> None:
    assert "bytes per token is outside" in (plausibility_warning(ratio, vocab) or "")


def test_raw_bytes_and_large_vocabularies_have_a_band() -> None:
    assert plausibility_warning(1.0, 260) is None
    assert plausibility_warning(4.6, 50_257) is None


def test_table_attributes_have_one_entry_a_token(with_byte_pieces: Any) -> None:
    table = from_processor(with_byte_pieces)
    assert isinstance(table, TokenBytes)
    sizes = {len(table.base), len(table.has_leading_space), len(table.is_boundary)}
    assert sizes == {table.vocab_size} == {with_byte_pieces.vocab_size()}
