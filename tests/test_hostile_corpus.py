"""Every file in tests/hostile gets the answer that its manifest says."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from packer.eval.shards import read_shards
from packer.eval.token_bytes import from_json, from_sentencepiece
from packer.train.config import config_from, read_config

from packer.artifact.decoder import read_weights
from packer.checkpoint.checkpoint import read_checkpoint
from packer.planning.account import Limits
from packer.planning.plan import make_plan, read_measurement

HERE = Path(__file__).parent / "hostile"
MANIFEST: dict[str, dict[str, str]] = json.loads((HERE / "manifest.json").read_text())


def read_index(path: Path) -> Any:
    """A folder of shards whose index the file is."""
    folder = path.parent / "folder"
    folder.mkdir()
    shutil.copy(path, folder / "model.safetensors.index.json")
    return read_checkpoint(folder)


READERS: dict[str, Callable[[Path], Any]] = {
    "artifact": lambda path: read_weights(path.read_bytes()),
    "candidates": lambda path: make_plan(read_measurement(path)[0], Limits(10_000), {}),
    "checkpoint": lambda path: read_checkpoint(path, max_memory=1 << 20),
    "shard": lambda path: read_shards([path], vocab_size=1024),
    "table": from_json,
    "tokenizer": from_sentencepiece,
    "settings": lambda path: config_from(read_config(path)),
    "index": read_index,
}


@pytest.mark.parametrize("name", MANIFEST)
def test_a_hostile_file_is_refused_in_its_own_words(name: str, tmp_path: Path) -> None:
    told = MANIFEST[name]
    path = Path(shutil.copy(HERE / name, tmp_path / name))
    with pytest.raises(Exception, match=re.escape(told["says"])) as refused:
        READERS[told["reader"]](path)
    assert type(refused.value).__name__ == told["error"], refused.value


def test_the_corpus_is_complete_and_small() -> None:
    files = {path.name for path in HERE.iterdir() if path.is_file()} - {"manifest.json", "build.py"}
    assert files == set(MANIFEST) and len(files) > 70
    assert sum((HERE / name).stat().st_size for name in files) < 100_000
