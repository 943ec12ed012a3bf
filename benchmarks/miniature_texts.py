"""The texts of benchmarks.miniature: shards of all but the ends of a corpus, and two to score."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from packer.train.data import make_data
from packer.train.data_job import DataOptions

from packer.evaluation import Data, open_data

TAIL = 0.02  # of every training text
TAILS = "tails.txt"


@dataclass(frozen=True, eq=False)
class Texts:
    """folder: of the shards; the tails validate. held_out, tails: texts that are scored."""

    folder: Path
    held_out: Data
    tails: Data


def prepared(corpus: Path, held_out: Path, tokenizer: str | None, work: Path) -> Texts:
    """Cut, tokenized and sharded in the work folder, once."""
    folder = work / "data"
    if not (folder / "finished").exists():
        texts = _cut(sorted(corpus.glob("*.txt")), work)
        options = DataOptions(tokenizer=tokenizer)
        make_data(texts, folder, options, valid=[work / TAILS])
        (folder / "finished").touch()
    model = folder / "tokenizer.model"
    scored = (open_data([text], tokenizer=model) for text in (held_out, work / TAILS))
    return Texts(folder, *scored)


def _cut(files: Sequence[Path], work: Path) -> list[Path]:
    """Every text up to a line's end at 98 % of it; what comes after goes into one file."""
    if not files:
        raise SystemExit("the corpus has no .txt file; name a folder of texts with --corpus")
    (work / "texts").mkdir(parents=True, exist_ok=True)
    tails, heads = [], []
    for file in files:
        text = file.read_text("utf-8")
        end = text.find("\n", int((1 - TAIL) * len(text))) + 1 or len(text)
        heads.append(work / "texts" / file.name)
        heads[-1].write_text(text[:end], "utf-8")
        tails.append(text[end:])
    (work / TAILS).write_text("".join(tails), "utf-8")
    return heads
