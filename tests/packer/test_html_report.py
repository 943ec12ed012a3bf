"""Text of any kind stays text in a page."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packer.planning.account import Account
from packer.reports import html as html_report
from packer.reports.sources import load_report

Read = Callable[..., Any]
HOSTILE = "<script>alert('1')</script> & \"onload=x\" <img src=http://example.org/a.png> \u202e\x00"


def everything(text: str) -> str:
    """A page with the same text in every place that takes one."""
    return html_report.page(
        text,
        text,
        [
            html_report.heading(text),
            html_report.paragraph(text),
            html_report.verbatim(text),
            html_report.facts([(text, text)]),
            html_report.table([text, ">" + text], [[text, text]]),
            html_report.figure(html_report.Html("<svg/>"), text),
        ],
    )


def test_hostile_text_stays_text(read_page: Read) -> None:
    page = everything(HOSTILE)
    reader = read_page(page)
    assert "<script>alert('1')</script>" in reader.text
    assert reader.tags.count("img") == 0 and reader.tags.count("svg") == 1
    assert "\x00" not in page and "\u202e" not in page


@settings(deadline=None)
@given(text=st.text(alphabet=st.characters(), max_size=40))
def test_any_text_comes_back_in_every_place(read_page: Read, text: str) -> None:
    page = everything(text)
    shown = "".join(one if one in "\t\n" or one.isprintable() else "\ufffd" for one in text)
    assert read_page(page).text.count(shown) >= 10 or not shown.strip()
    page.encode()


def test_numbers_are_aligned_and_rows_are_whole() -> None:
    made = html_report.table(["name", ">bytes"], [["a", "1,000"]])
    assert '<td class="number">1,000</td>' in made and "<td>a</td>" in made
    assert "<th>name</th>" in made and '<th class="number">bytes</th>' in made
    with pytest.raises(ValueError, match="shorter"):
        html_report.table(["name", ">bytes"], [["a"]])


@pytest.mark.parametrize(
    ("account", "left"),
    [
        (Account(1_000, 10, 20, 30, 40), "left 900"),
        (Account(50, 10, 20, 30, 40), None),
        (Account(0, 0, 0, 0, 0), None),
    ],
)
def test_the_bar_is_the_account(read_page: Read, account: Account, left: str | None) -> None:
    page = read_page(html_report.page("", "", [html_report.account_bar(account)]))
    text = page.text
    assert str(account) in text and f"code {account.code_bytes}" in text
    assert (left is None and " left 9" not in text) or (left is not None and left in text)
    widths = [
        float(value.partition("width:")[2].partition("%")[0])
        for name, value in page.attributes
        if name == "style" and "width:" in value
    ]
    assert sum(widths) == pytest.approx(100 if account.artifact_bytes else 0, abs=0.01)


def test_every_tensor_of_a_report_is_there_to_the_byte(read_page: Read, made: Path) -> None:
    report, _ = load_report(made / "plan.json")
    page = html_report.page("", "", [html_report.byte_tables(report)])
    text = read_page(page).text
    for row in report.rows:
        assert row.name in text and row.choice in text and f"{row.size_bytes:,}" in text
