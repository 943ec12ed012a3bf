"""Text to tokens: BOS in front of each document."""

from pathlib import Path

import pytest
from packer.eval.errors import DataError
from packer.eval.text import encode_documents, encode_files


class Letters:
    """A tokenizer with a token for each byte, moved up to leave room for BOS."""

    def __init__(self, bos: int = 1) -> None:
        self.bos = bos

    def bos_id(self) -> int:
        return self.bos

    def encode(self, text: str) -> list[int]:
        return [byte + 2 for byte in text.encode()]


def test_documents_start_with_bos(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("ab<|end|>é<|end|>", encoding="utf-8")
    (tmp_path / "b.txt").write_text("c", encoding="utf-8")
    paths = [tmp_path / "a.txt", tmp_path / "b.txt"]
    split = encode_files(paths, Letters(), "<|end|>")
    assert split.tokens.tolist() == [1, 99, 100, 1, 197, 171, 1, 101]
    assert (split.documents, split.text_bytes) == (3, 5)
    whole = encode_files(paths, Letters())
    assert (whole.documents, whole.text_bytes) == (2, 19)


def test_text_that_cannot_be_read_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        encode_files([tmp_path / "absent.txt"], Letters())
    (tmp_path / "shard.bin").write_bytes(b"abc\xff")
    with pytest.raises(DataError, match="not UTF-8 text: byte 3 is 0xff"):
        encode_files([tmp_path / "shard.bin"], Letters())
    with pytest.raises(DataError, match="no text to encode"):
        encode_documents([], Letters())
    with pytest.raises(DataError, match="no BOS"):
        encode_documents(["a"], Letters(bos=-1))


@pytest.mark.parametrize(("separator", "words"), [("", "is empty"), ("\udcff", "is not UTF-8")])
def test_separators_that_cannot_be_are_refused(tmp_path: Path, separator: str, words: str) -> None:
    (tmp_path / "a.txt").write_text("ab")
    with pytest.raises(DataError, match=f"separator.* {words}"):
        encode_files([tmp_path / "a.txt"], Letters(), separator)


def test_a_separator_that_is_nowhere_is_told(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("ab\n\ncd")
    assert encode_files([tmp_path / "a.txt"], Letters(), "\n\n").warnings == ()
    (warning,) = encode_files([tmp_path / "a.txt"], Letters(), r"\n\n").warnings
    assert r"'\n\n' occurs nowhere" in warning and "line feed" in warning
    (warning,) = encode_files([tmp_path / "a.txt"], Letters(), "###").warnings
    assert "'###'" in warning and "line feed" not in warning
