"""Opens tokenizers: a sentencepiece model, a tokenizer.json, or one carried by an artifact."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from packer.artifact.artifact_file import is_artifact
from packer.errors import PackerError
from packer.eval.text_tokenizer import BESIDE, TextTokenizer, read_text_tokenizer
from packer.eval.token_bytes import TokenBytes, from_processor, load_sentencepiece
from packer.files import is_json
from packer.huggingface.files import Beside

NAMES = ("tokenizer.json", "tokenizer.model")  # the first that is there


def open_tokenizer(path: str | Path) -> Any:
    """A sentencepiece processor, or a `TextTokenizer`, which has the same methods.

    path: a file, or an artifact that carries one.
    Raises PackerError: no such file, or an artifact without one. TokenBytesError: damaged.
    """
    if is_artifact(path):
        beside = Beside(path)
        name = next((name for name in NAMES if name in beside), None)
        if name is None:
            raise PackerError(
                f"{path}: carries no tokenizer; name its file, or pack with --include {NAMES[0]}"
            )
        if name == NAMES[0]:
            return _of_json(beside, name)
        return load_sentencepiece(beside.spelled(name), beside.read(name))
    if is_json(path):
        return _of_json(Beside(path), Path(path).name)
    return load_sentencepiece(path)


def tokenizer_beside(sources: Iterable[str]) -> str | None:
    """The path to give to `open_tokenizer`, from the first of these sources with a tokenizer.

    sources: checkpoints and artifacts; files count only in a folder with a configuration.
    """
    for source in sources:
        beside = Beside(source)
        name = next((name for name in NAMES if name in beside), None)
        if name is not None and beside.is_model:
            return source if is_artifact(source) else beside.spelled(name)
    return None


def table_of(tokenizer: Any) -> TokenBytes:
    """Bytes by token, for both kinds of tokenizer."""
    if isinstance(tokenizer, TextTokenizer):
        return tokenizer.token_bytes()
    return from_processor(tokenizer)


def _of_json(beside: Beside, name: str) -> TextTokenizer:
    files = {other: beside.read(other) for other in BESIDE if other in beside}
    return read_text_tokenizer(beside.read(name), files, beside.spelled(name))
