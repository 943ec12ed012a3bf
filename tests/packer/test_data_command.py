"""`packer data` as it is typed."""

import json
from pathlib import Path

import pytest
from packer.eval.shards import read_shards

TEXT = "|".join(f"the planner fits tensor {number} under a cap of bytes" for number in range(40))


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(TEXT, encoding="utf-8")
    return path


def test_text_becomes_shards_once(run, text, tmp_path):
    arguments = ("data", text, "-o", "out", "--vocab-size", 290, "--document-separator", "|")
    result = run(*arguments, "--shard-tokens", 300, "--valid-fraction", 0.1, "--prefix", "fineweb")
    assert result.exit_code == 0, result.output
    train = read_shards([tmp_path / "out" / "fineweb_train_*.bin"], 290)
    valid = read_shards([tmp_path / "out" / "fineweb_val_*.bin"], 290)
    held_out = sum(len(document) for document in TEXT.split("|")[9::10])
    assert result.stdout.splitlines() == [
        "out/tokenizer.model: 290 pieces",
        f"train: {len(train):,} tokens of {len(TEXT) - 39 - held_out:,} bytes in 36 documents, "
        f"{len(train.paths)} shards",
        f"val: {len(valid):,} tokens of {held_out} bytes in 4 documents, 1 shard",
    ]
    again = run(*arguments)
    assert again.exit_code == 1
    assert "out is finished and is not overwritten" in again.stderr


def test_json_is_the_manifest(run, text, tmp_path):
    result = run("data", text, "-o", "a", "--vocab-size", 290, "--valid-fraction", 0, "--json")
    found = json.loads(result.stdout)
    assert found.pop("output") == "a"
    assert found == json.loads((tmp_path / "a" / "manifest.json").read_text("utf-8"))
    assert found["train"]["bytes"] == len(TEXT)
    assert "val" not in found
    (tmp_path / "valid.txt").write_text("a cap")
    options = ("--tokenizer", "a/tokenizer.model", "--valid", "valid.txt", "--json")
    other = json.loads(run("data", text, "-o", "b", *options).stdout)
    assert other["tokenizer"] == found["tokenizer"]
    assert other["shards"][0]["sha256"] == found["shards"][0]["sha256"]
    assert other["val"]["bytes"] == 5


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (["--vocab-size", 70_000], 1, "larger than the 65,536 pieces"),
        (["--vocab-size", 0], 1, "a vocabulary of 0 leaves no room"),
        (["--vocab-size", 300, "--tokenizer", "text.txt"], 2, "--tokenizer has its own"),
        (["--tokenizer", "text.txt", "--valid-fraction", 0], 1, "not a sentencepiece model"),
        (["--valid", "text.txt", "--valid-fraction", 0.1], 2, "leave --valid-fraction out"),
        (["--valid", "text.txt"], 1, "text.txt is training text too"),
        (["--prefix", "../up"], 2, "letters, digits, _ and - only"),
        ([], 1, "one document cannot be divided"),
        (["--document-separator", "|", "--vocab-size", 4000], 1, "lower --vocab-size"),
        (["--shard-tokens", 0], 2, "is not in the range"),
    ],
)
def test_what_cannot_be_done_is_said(run, text, options, code, words):
    result = run("data", text.name, "-o", "out", *options)
    assert (result.exit_code, words in " ".join(result.stderr.split())) == (code, True), (
        result.output
    )


def test_a_folder_that_cannot_be_written_is_named(run, text):
    result = run("data", text, "-o", f"{text}/inside", "--valid-fraction", 0, "--vocab-size", 290)
    assert result.exit_code == 1
    assert "name another folder" in result.stderr
