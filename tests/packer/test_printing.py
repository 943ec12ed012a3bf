"""What is printed is right on every terminal: names, numbers, sizes and pictures."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import pytest
import torch
from rich.console import Console

from packer.commands.comparing import Sizes
from packer.commands.options.types import Finite, Size
from packer.errors import one_paragraph
from packer.printable import printable_lines, spelled
from packer.progress import _Lines
from packer.reports import tables

HOSTILE = ["a\x1b[2Jb", "c\r\nd", "e\u202ef", "g\u2028h", "i\x9bj", "[red]k[/blue]", "l\x7f"]
HOSTILE += ["m\udcff"]
Run = Callable[..., Any]


@pytest.mark.parametrize("text", HOSTILE)
def test_what_moves_a_cursor_is_spelled(text: str) -> None:
    assert spelled(text).isprintable()
    assert spelled("σ 1.5 × [red] \\") == "σ 1.5 × [red] \\"
    assert printable_lines(f"ours\n{text.replace(chr(10), '')}").count("\n") == 1


def test_names_in_tables_are_spelled_and_in_json_true(run: Run, tmp_path: Path) -> None:
    names = [name for name in HOSTILE if "\udcff" not in name]
    torch.save({name: torch.ones(2, 2) for name in names}, tmp_path / "m.pt")
    shown = run("inspect", "m.pt")
    assert shown.exit_code == 0 and shown.stdout.replace("\n", "").isprintable()
    lines = shown.stdout.splitlines()
    assert {spelled(name) for name in names} <= {line.split("  ")[0] for line in lines}
    found = json.loads(run("inspect", "m.pt", "--json").stdout)
    assert {one["name"] for one in found["tensors"]} == set(names)


def test_a_refusal_keeps_the_lines_of_its_list_and_no_others() -> None:
    shown = one_paragraph("2 differences:\n  missing: a\nb\n  missing: c\x1b[2J")
    assert shown.split("\n") == ["2 differences:", r"  missing: a\nb", r"  missing: c\x1b[2J"]


def test_usage_errors_are_spelled(run: Run, tmp_path: Path) -> None:
    torch.save({"w": torch.ones(2, 2)}, tmp_path / "m.pt")
    result = run("plan", "m.pt", "--cap", "1\x1b[2J\u202eMB")
    assert result.exit_code == 2 and "\x1b" not in result.stderr and "\u202e" not in result.stderr


def test_progress_takes_no_markup(capsys: pytest.CaptureFixture[str]) -> None:
    lines = _Lines("reading", Console(stderr=True))
    lines.last = float("-inf")
    lines("[/red]\x1b[2J\nw", 1, 2)
    shown = capsys.readouterr().err
    assert r"[/red]\x1b[2J\nw" in shown and shown.count("\n") == 1


@pytest.mark.parametrize("width", [40, 60, 80, 120])
def test_names_and_numbers_are_whole_on_every_terminal(
    width: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    name = "transformer.h.11.attn.c_proj.weight_and_more"
    numbers = ["16,384,000", "123.456", "99.99", "1.234e-05"]
    monkeypatch.setattr(tables, "console", lambda: Console(width=width))
    columns = ("tensor", "role", "shape", ">bytes", ">share %", ">rms", ">kurtosis")
    tables.print_table(columns, [(name, "attention-out", "768×768", *numbers)])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= width and not any("…" in line for line in lines)
    words = [word for line in lines for word in line.split()]
    assert set(numbers) <= set(words)
    first = [line.split("  ")[0].strip() for line in lines if not line.startswith("   ")]
    assert name in "".join(first)


def test_a_pipe_gets_names_of_any_length(run: Run, tmp_path: Path) -> None:
    name = "layers." * 90 + "weight"
    torch.save({name: torch.ones(2, 2)}, tmp_path / "m.pt")
    assert f"{name}  " in run("inspect", "m.pt").stdout


@pytest.mark.parametrize(
    ("text", "size"),
    [("1,500,000", 1_500_000), ("1,024kB", 1_024_000), ("2_000", 2000), ("0.5 MiB", 524_288)],
)
def test_sizes(text: str, size: int) -> None:
    assert Size().convert(text, None, None) == size


NO_SIZES = ["1,5", "0,5MB", "1,000,00", "1,0000", "15.5.0", "16 000 000", "1e6", "16M", "-1"]
NO_SIZES += ["nan", "inf", "1__0", "1_", ",100", "1,000_000", "٣", "0.3", "9" * 40]


@pytest.mark.parametrize("text", NO_SIZES)
def test_what_is_no_size_is_refused_as_it_was_read(text: str) -> None:
    with pytest.raises(click.BadParameter) as error:
        Size().convert(text, None, None)
    assert repr(text) in error.value.message


def test_decimal_commas_are_no_lists_of_sizes() -> None:
    assert Sizes().convert("1300000,1.8MB", None, None) == (1_300_000, 1_800_000)
    for text in ("15,5MB", "16,000,000"):
        with pytest.raises(click.BadParameter, match="commas separate sizes"):
            Sizes().convert(text, None, None)


def test_numbers_are_finite() -> None:
    for text in ("nan", "inf"):
        with pytest.raises(click.BadParameter):
            Finite(min=0).convert(text, None, None)


BACKEND = """
import os, sys
import packer.reports.pictures, packer.reports.plots
import matplotlib
assert os.environ["MPLBACKEND"] == sys.argv[1]
assert "matplotlib.pyplot" not in sys.modules
if sys.argv[1] != "nowhere":
    assert matplotlib.rcParams["backend"] == sys.argv[1]
with packer.reports.agg.own_style():
    figure, _ = packer.reports.plots.new_panels(1)
    packer.reports.pictures.save(figure, "p.png")
"""


@pytest.mark.parametrize("backend", ["nowhere", "tkagg", "module://not_here.backend"])
def test_pictures_need_no_backend_and_change_none(backend: str, tmp_path: Path) -> None:
    (tmp_path / "matplotlibrc").write_text("text.usetex: True\n")
    environment = {**os.environ, "MPLBACKEND": backend, "MPLCONFIGDIR": str(tmp_path)}
    command = [sys.executable, "-c", BACKEND, backend]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == "", "fonts are listed without a word"
    assert (tmp_path / "p.png").stat().st_size > 0


def test_a_matplotlibrc_that_is_no_text_is_a_refusal(tmp_path: Path) -> None:
    (tmp_path / "matplotlibrc").write_bytes(b"\xff\xfe\n")
    words = "import packer.reports.plots"
    command = [sys.executable, "-c", words]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (
        done.returncode != 0 and "OutputError: matplotlib cannot read its settings" in done.stderr
    )
