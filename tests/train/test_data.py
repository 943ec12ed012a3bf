"""Text to shards: what is written reads back, and an interrupted run ends as one that was not."""

import hashlib
import itertools
import json
import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from packer.eval.errors import DataError, TokenBytesError
from packer.eval.shards import read_shards
from packer.eval.text import encode_documents
from packer.eval.token_bytes import from_sentencepiece, load_sentencepiece
from packer.train import data as data_module
from packer.train import documents as documents_module
from packer.train.data import make_data
from packer.train.data_job import DataOptions
from packer.train.documents import CorpusError
from packer.train.tokenizer import TokenizerError, train_tokenizer

from packer.errors import OutputError

SEPARATOR = "<|end|>"
ODD = [
    "  two  spaces\n\n\ttab ",
    "naïve café — 雪 🙂",
    " leading",
    "\r\nline ends\r\n",
    "\x00\x07",
    "e",
]
OPTIONS = DataOptions(vocab_size=300, document_separator=SEPARATOR, shard_tokens=250)


@pytest.fixture(scope="module")
def documents() -> list[str]:
    chance = random.Random(0)
    words = ["the", "planner", "fits", "every", "tensor", "under", "a", "cap", "of", "bytes"]
    plain = [" ".join(chance.choices(words, k=chance.randrange(5, 60))) for _ in range(24)]
    return [*plain[:12], *ODD, *plain[12:]]


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory, documents: list[str]) -> Path:
    """Two files in a folder, an empty document between others."""
    folder = tmp_path_factory.mktemp("corpus")
    half = len(documents) // 2
    for name, part in (("a", documents[:half]), ("b", [*documents[half:], ""])):
        text = (2 * SEPARATOR if name == "a" else SEPARATOR).join(part)
        (folder / f"{name}.txt").write_bytes(text.encode())
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, corpus: Path) -> tuple[Path, dict]:
    folder = tmp_path_factory.mktemp("made") / "data"
    return folder, make_data([corpus], folder, OPTIONS)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def split_documents(tokens: np.ndarray, tokenizer) -> list[str]:
    starts = [*np.flatnonzero(tokens == tokenizer.bos_id()).tolist(), len(tokens)]
    pieces = itertools.pairwise(starts)
    return [tokenizer.decode(tokens[start + 1 : stop].tolist()) for start, stop in pieces]


def test_every_document_comes_back_from_one_split(made, documents):
    folder, manifest = made
    tokenizer = load_sentencepiece(folder / "tokenizer.model")
    back = {}
    for split in ("train", "val"):
        shards = read_shards([f"{folder}/corpus_{split}_*.bin"], tokenizer.vocab_size())
        back[split] = split_documents(shards[:], tokenizer)
        total = manifest[split]
        assert (total["documents"], total["tokens"]) == (len(back[split]), len(shards))
        assert total["bytes"] == sum(len(document.encode()) for document in back[split])
    assert len(back["val"]) == 1
    assert [*back["train"], *back["val"]] == documents


def test_tokens_are_those_that_scoring_makes_of_the_same_documents(made, documents):
    folder, _ = made
    tokenizer = load_sentencepiece(folder / "tokenizer.model")
    expected = encode_documents(documents[:-1], tokenizer).tokens
    assert np.array_equal(read_shards([f"{folder}/corpus_train_*.bin"])[:], expected)


def test_bytes_are_counted_as_scoring_counts_them(made, documents):
    folder, _ = made
    tokens = read_shards([f"{folder}/corpus_train_*.bin"])[:]
    counted = from_sentencepiece(folder / "tokenizer.model").target_bytes(tokens, 0)
    assert counted.sum() == sum(len(document.encode()) for document in documents[:-1])


def test_the_manifest_says_what_is_there(made, corpus):
    folder, manifest = made
    assert json.loads((folder / "manifest.json").read_text("utf-8")) == manifest
    files = {entry["file"] for entry in manifest["shards"]}
    assert {path.name for path in folder.iterdir()} == {*files, "manifest.json", "tokenizer.model"}
    for entry in (*manifest["shards"], manifest["tokenizer"]):
        data = (folder / entry["file"]).read_bytes()
        assert hashlib.sha256(data).hexdigest() == entry["sha256"]
    sizes = [entry["tokens"] for entry in manifest["shards"] if entry["split"] == "train"]
    assert len(sizes) > 3
    assert sizes[:-1] == [250] * (len(sizes) - 1)
    assert manifest["options"]["vocab_size"] == manifest["tokenizer"]["vocab_size"] == 300
    texts = [path.read_bytes() for path in sorted(corpus.iterdir())]
    assert [entry["sha256"] for entry in manifest["texts"]] == [
        hashlib.sha256(text).hexdigest() for text in texts
    ]


def test_the_same_texts_give_the_same_folder(made, corpus, tmp_path):
    make_data([corpus / "a.txt", corpus / "b.txt"], tmp_path, OPTIONS)
    assert contents(tmp_path) == contents(made[0])


class Stop(BaseException):
    """As abrupt as a kill: nothing catches it."""


@pytest.mark.parametrize("writes", range(1, 12, 2))
def test_an_interrupted_run_continues(made, corpus, tmp_path, monkeypatch, writes):
    """Stopped before one of its writes, of shards and of the manifest in turn."""
    left = iter(range(writes))
    encoded: list[str] = []

    def limited(write):
        def stop_or_write(path, *arguments):
            if next(left, None) is None:
                (tmp_path / ".corpus_train_000000.bin.abc.tmp").write_bytes(b"cut sh")
                raise Stop
            return write(path, *arguments)

        return stop_or_write

    with monkeypatch.context() as patch:
        for name in ("replacing", "write_bytes", "write_json"):
            patch.setattr(data_module, name, limited(getattr(data_module, name)))
        with pytest.raises(Stop):
            make_data([corpus], tmp_path, OPTIONS)
    whole = list(tmp_path.glob("corpus_*.bin"))
    before = {path.name: path.stat().st_mtime_ns for path in whole}
    make_data([corpus], tmp_path, OPTIONS, progress=lambda what, *_: encoded.append(what))
    assert contents(tmp_path) == contents(made[0])
    kept = [name for name, time in before.items() if (tmp_path / name).stat().st_mtime_ns == time]
    assert len(kept) >= len(before) - 1
    if writes > 9:
        assert kept


def test_a_damaged_shard_is_written_anew(made, corpus, tmp_path):
    folder, manifest = made
    for name, data in contents(folder).items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "manifest.json").write_text(json.dumps({**manifest, "complete": False}))
    (tmp_path / "corpus_train_000001.bin").write_bytes(b"damaged")
    make_data([corpus], tmp_path, OPTIONS)
    assert contents(tmp_path) == contents(folder)


def test_other_options_or_texts_do_not_continue(made, corpus, tmp_path):
    _, manifest = made
    unfinished = json.dumps({**manifest, "complete": False, "shards": []})
    (tmp_path / "manifest.json").write_text(unfinished)
    with pytest.raises(CorpusError, match="begun with shard_tokens 250, not 251"):
        make_data([corpus], tmp_path, replace(OPTIONS, shard_tokens=251))
    with pytest.raises(CorpusError, match="begun with other texts"):
        make_data([corpus / "a.txt"], tmp_path, OPTIONS)
    assert (tmp_path / "manifest.json").read_text() == unfinished


def test_what_stands_there_is_not_overwritten(made, corpus, tmp_path):
    before = contents(made[0])
    with pytest.raises(CorpusError, match="is finished and is not overwritten"):
        make_data([corpus], made[0], OPTIONS)
    assert contents(made[0]) == before
    (tmp_path / "tokenizer.model").write_bytes(b"mine")
    with pytest.raises(CorpusError, match=r"holds tokenizer\.model but no manifest\.json"):
        make_data([corpus], tmp_path, OPTIONS)
    for text in ("{", "[]", '{"complete": true}', '{"complete": false, "shards": [3]}'):
        (tmp_path / "manifest.json").write_text(text)
        with pytest.raises(CorpusError, match="is none of packer data's"):
            make_data([corpus], tmp_path, OPTIONS)
    with pytest.raises(OutputError, match="is a file"):
        make_data([corpus], corpus / "a.txt", OPTIONS)
    assert contents(tmp_path)["tokenizer.model"] == b"mine"


def test_a_tokenizer_and_validation_files_of_ones_own(made, corpus, tmp_path):
    (tmp_path / "valid.txt").write_text("a cap", encoding="utf-8")
    tokenizer = made[0] / "tokenizer.model"
    options = replace(OPTIONS, vocab_size=None, tokenizer=str(tokenizer), prefix="own")
    manifest = make_data([corpus], tmp_path / "out", options, valid=[tmp_path / "valid.txt"])
    assert (tmp_path / "out" / "tokenizer.model").read_bytes() == tokenizer.read_bytes()
    assert manifest["train"]["documents"] == made[1]["train"]["documents"] + 1
    processor = load_sentencepiece(tokenizer)
    valid = read_shards([tmp_path / "out" / "own_val_000000.bin"])[:]
    assert valid.tolist() == [1, *processor.encode("a cap")]
    with pytest.raises(CorpusError, match="is training text too"):
        make_data([corpus], tmp_path / "again", options, valid=[corpus / "b.txt"])


@pytest.mark.parametrize(("fraction", "held_out"), [(0.0, 0), (0.001, 1), (0.25, 3), (0.99, 9)])
def test_documents_are_held_out_evenly(tmp_path, made, fraction, held_out):
    documents = [f"the cap {number}" for number in range(10)]
    (tmp_path / "a.txt").write_text(SEPARATOR.join(documents))
    tokenizer = str(made[0] / "tokenizer.model")
    options = replace(OPTIONS, vocab_size=None, tokenizer=tokenizer, valid_fraction=fraction)
    manifest = make_data([tmp_path / "a.txt"], tmp_path / "out", options)
    processor = load_sentencepiece(tokenizer)
    back = {
        split: split_documents(read_shards([f"{tmp_path}/out/corpus_{split}_*"])[:], processor)
        for split in ("train", "val")
        if split in manifest
    }
    valid = back.get("val", [])
    assert len(valid) == min(held_out, round(10 * fraction) or held_out)
    assert sorted([*back["train"], *valid]) == documents
    if fraction == 0.25:
        assert valid == ["the cap 4", "the cap 9"]


def test_separators_across_blocks_and_the_place_of_a_bad_byte(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    path.write_bytes("é<|end|>bc<|end|><|end|>d<|en".encode())
    for size in range(1, 12):
        monkeypatch.setattr(documents_module, "BLOCK", size)
        read: Iterator[str] = documents_module.read_documents(path, SEPARATOR)
        assert list(read) == ["é", "bc", "d<|en"]
    path.write_bytes(b"ab<|end|>cd<|end|>e\xff")
    with pytest.raises(CorpusError, match="not UTF-8 text: byte 19 is 0xff"):
        make_data([path], tmp_path / "out", OPTIONS)


def test_text_that_cannot_be_used_is_refused_before_anything_is_made(tmp_path):
    (tmp_path / "empty.txt").write_text(2 * SEPARATOR)
    (tmp_path / "one.txt").write_text("one document of text")
    (tmp_path / "folder").mkdir()
    wrong = {
        "empty.txt": "every document is empty",
        "absent.txt": "no such file of text",
        "folder": "a folder without any .txt",
        "one.txt": "one document cannot be divided",
    }
    for name, words in wrong.items():
        with pytest.raises(CorpusError, match=words):
            make_data([tmp_path / name], tmp_path / "out", OPTIONS)
    assert list((tmp_path / "out").iterdir()) == []


def test_after_a_refused_tokenizer_other_options_may_follow(made, corpus, tmp_path):
    with pytest.raises(TokenizerError, match="too short"):
        make_data([corpus], tmp_path, replace(OPTIONS, vocab_size=5000))
    make_data([corpus], tmp_path, OPTIONS)
    assert contents(tmp_path) == contents(made[0])


@pytest.mark.parametrize(
    ("vocab_size", "text", "words"),
    [
        (65_537, "text", "larger than the 65,536 pieces that are trained here"),
        (259, "text", "ask for at least 260"),
        (2000, "a short text", "too short for a vocabulary of 2,000: it gives at most"),
        (280, "".join(map(chr, range(0x4E00, 0x4E80))), "too small for the letters of this text"),
        (300, "\n", "no line of text"),
    ],
)
def test_a_vocabulary_that_does_not_fit_is_explained(tmp_path, vocab_size, text, words):
    (tmp_path / "a.txt").write_text(text, encoding="utf-8")
    options = replace(OPTIONS, vocab_size=vocab_size, valid_fraction=0.0)
    with pytest.raises(TokenizerError, match=words):
        make_data([tmp_path / "a.txt"], tmp_path / "out", options)


def test_a_tokenizer_is_trained_on_no_more_text_than_asked():
    first, second = "the planner fits " * 40 + "\n", "unseen words here " * 40
    whole = train_tokenizer([first, second], 275, 10**6)
    assert train_tokenizer([first, second], 275, len(first)) == train_tokenizer([first], 275, 10**6)
    assert whole != train_tokenizer([first], 275, 10**6)


def test_a_tokenizer_that_cannot_be_used_is_refused(corpus, tmp_path):
    (tmp_path / "bad.model").write_bytes(b"no model")
    options = replace(OPTIONS, vocab_size=None, tokenizer=str(tmp_path / "bad.model"))
    with pytest.raises(TokenBytesError, match="not a sentencepiece model"):
        make_data([corpus], tmp_path / "out", options)
    with (tmp_path / "bare.model").open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(["a cap of bytes"] * 9),
            model_writer=file,
            vocab_size=15,
            model_type="bpe",
            bos_id=-1,
            minloglevel=2,
        )
    options = replace(options, tokenizer=str(tmp_path / "bare.model"))
    with pytest.raises(TokenizerError, match="no BOS piece"):
        make_data([corpus], tmp_path / "bare", options)


@pytest.mark.parametrize("change", [{"valid_fraction": 1.0}, {"shard_tokens": 0}])
def test_options_that_cannot_be_are_refused(change):
    with pytest.raises(CorpusError, match="found"):
        replace(OPTIONS, **change)


def test_a_shard_cut_short_is_seen_by_its_reader(made, tmp_path):
    data = (made[0] / "corpus_train_000000.bin").read_bytes()
    (tmp_path / "cut.bin").write_bytes(data[:-2])
    with pytest.raises(DataError, match="cut short"):
        read_shards([tmp_path / "cut.bin"])


LONG = "a line that is long enough to be compared with other lines, number "


@pytest.mark.parametrize(
    "valid",
    [
        f"{LONG}3\r\n{LONG}4\r\n",  # lines of a longer training document, other line ends
        f"\ufeff{LONG}5",
        "short  words\n",
    ],
)
def test_validation_files_within_training_text_are_refused(made, tmp_path, valid):
    (tmp_path / "train.txt").write_text("\n".join(f"{LONG}{n}" for n in range(9)), "utf-8")
    (tmp_path / "more.txt").write_text("short words", "utf-8")
    (tmp_path / "valid.txt").write_bytes(valid.encode())
    options = replace(OPTIONS, vocab_size=None, tokenizer=str(made[0] / "tokenizer.model"))
    texts, held_out = [tmp_path / "train.txt", tmp_path / "more.txt"], [tmp_path / "valid.txt"]
    with pytest.raises(CorpusError, match=r"1 of 1 validation document is .*valid\.txt, in .*txt"):
        make_data(texts, tmp_path / "out", options, valid=held_out)
    held_out[0].write_bytes(valid.encode() + SEPARATOR.encode() + b"news")
    (warning,) = make_data(texts, tmp_path / "out", options, valid=held_out)["warnings"]
    assert "1 of 2 validation document is training text too" in warning and "valid.txt" in warning


def test_documents_on_both_sides_of_the_split(made, tmp_path):
    tokenizer = str(made[0] / "tokenizer.model")
    options = replace(OPTIONS, vocab_size=None, tokenizer=tokenizer, valid_fraction=0.2)
    (tmp_path / "a.txt").write_text(SEPARATOR.join(["the cap"] * 8 + ["a", "every tensor"]))
    (warning,) = make_data([tmp_path / "a.txt"], tmp_path / "one", options)["warnings"]
    assert "1 of 2 validation" in warning and "a.txt" in warning
    with pytest.raises(CorpusError, match=r"4 of 4 .* --valid-fraction 0"):
        make_data([tmp_path / "a.txt"] * 3, tmp_path / "two", replace(options, valid_fraction=0.14))
    none_held_out = replace(options, valid_fraction=0)
    assert make_data([tmp_path / "a.txt"] * 2, tmp_path / "two", none_held_out)["warnings"] == []


def test_bytes_that_the_tokenizer_changes_are_told(tmp_path):
    """The shards' tokens count other bytes than the text has."""
    model = tmp_path / "folded.model"
    with model.open("wb") as file:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(["the planner fits every tensor"] * 9),
            model_writer=file,
            vocab_size=300,
            hard_vocab_limit=False,
            byte_fallback=True,
            normalization_rule_name="nmt_nfkc",
            minloglevel=2,
        )
    (tmp_path / "a.txt").write_text("the \N{VULGAR FRACTION ONE HALF}\N{LATIN SMALL LIGATURE FI}")
    options = DataOptions(vocab_size=None, tokenizer=str(model), valid_fraction=0)
    manifest = make_data([tmp_path / "a.txt"], tmp_path / "out", options)
    (warning,) = manifest["warnings"]
    assert (manifest["train"]["bytes"], manifest["train"]["token_bytes"]) == (9, 11)
    assert warning.startswith("train: ") and "11 bytes" in warning and "itself has 9" in warning


def test_separators_that_cannot_be(made, corpus, tmp_path):
    options = replace(OPTIONS, vocab_size=None, tokenizer=str(made[0] / "tokenizer.model"))
    for separator in ("", "\udcff"):
        with pytest.raises(CorpusError, match="document separator"):
            make_data([corpus], tmp_path / "a", replace(options, document_separator=separator))
    (warning,) = make_data([corpus], tmp_path / "b", replace(options, document_separator=r"\n\n"))[
        "warnings"
    ]
    assert "occurs nowhere" in warning and "line feed" in warning
