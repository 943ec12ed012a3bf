"""What is pure in `benchmarks.miniature`: its rows, their table, and how texts are cut."""

from __future__ import annotations

import importlib.util
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[1]


def benchmark(name: str) -> ModuleType:
    """A module of benchmarks/, which are never installed."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "benchmarks" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


rows, texts = benchmark("miniature_rows"), benchmark("miniature_texts")
ROW = rows.Row(
    60.0, 80_000, "leader-lqer-lrzip", 1, 2, 64, 205_445, 400_000, 79_999, 2.3, 2.2, 2.25, 2.35
)
OURS = replace(ROW, entry="ours", held_out=2.2, tails=2.3)


def test_rows_come_back_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    assert rows.read(path) == []
    for row in (ROW, OURS):
        rows.add(path, row)
    assert rows.read(path) == [ROW, OURS] and len(path.read_text().splitlines()) == 3


def test_differences_pair_the_seeds_that_both_have() -> None:
    leader = [ROW, replace(ROW, seed=2, held_out=2.35), replace(ROW, seed=4)]
    ours = [OURS, replace(OURS, seed=2), replace(OURS, seed=3)]
    delta, error = rows.difference(ours, leader)
    assert delta == pytest.approx(-0.075) and error == pytest.approx(0.025)
    assert rows.difference([OURS], [ROW]) == (pytest.approx(-0.05), None)


def test_the_table_has_a_line_an_entry_against_the_leader() -> None:
    lines = rows.table([ROW, OURS, replace(OURS, cap=400_000)], "leader-lqer")
    assert [line for line in lines if line.startswith("| 80,000 ")] == [
        "| 80,000 | leader-lqer-lrzip | 2 × 64 | 205,445 | 400,000 | 1 | 79,999 "
        "| 2.2000 | 2.2500 | 2.3500 | – |",
        "| 80,000 | ours | 2 × 64 | 205,445 | 400,000 | 1 | 79,999 "
        "| 2.2000 | 2.2000 | 2.3000 | -0.0500 |",
    ]
    assert next(line for line in lines if line.startswith("| 400,000 ")).endswith("| – |")


def test_ends_of_texts_are_held_out_and_nothing_is_lost(tmp_path: Path) -> None:
    corpus = [tmp_path / "a.txt", tmp_path / "b.txt"]
    corpus[0].write_text("".join(f"line {n}\n" for n in range(1000)))
    corpus[1].write_text("one line without an end")
    heads = texts._cut(corpus, tmp_path / "work")
    tails = (tmp_path / "work" / texts.TAILS).read_text()
    assert heads[0].read_text() + tails == corpus[0].read_text()
    assert 0.01 < len(tails) / len(corpus[0].read_text()) < 0.02 and tails.startswith("line ")
    assert heads[1].read_text() == corpus[1].read_text()
    with pytest.raises(SystemExit, match=r"no \.txt file"):
        texts._cut([], tmp_path / "work")
