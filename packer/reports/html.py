"""Self-contained HTML pages: no network, no script, pictures inline.

Text becomes `Html` only in `escaped`, and pages consist of `Html` alone: unescaped text does not
type-check.
"""

from __future__ import annotations

import html
from collections.abc import Iterable, Mapping, Sequence
from typing import NewType

from packer.planning.account import Account
from packer.reports.colours import NAMED
from packer.reports.report import Report, by_role
from packer.reports.tables import share_rows, tensor_rows

Html = NewType("Html", str)


LIGHT = " ".join(f"--{name}: {light};" for light, (name, _) in NAMED.items())
DARK = " ".join(f"--{name}: {dark};" for name, dark in NAMED.values())
STYLE = (
    f"""
:root {{ color-scheme: light dark; {LIGHT} }}
@media (prefers-color-scheme: dark) {{ :root {{ {DARK} }} }}
"""
    + """
body { margin: 0; background: var(--wash); color: var(--ink);
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "DejaVu Sans", sans-serif; }
main { max-width: 62rem; margin: 2rem auto; padding: 1.5rem 2.5rem 3rem; background: var(--paper);
  border: 1px solid var(--line); border-radius: 8px; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0.6rem 0 0.4rem; }
h2 { font-size: 1.2rem; margin: 2.4rem 0 0.6rem; }
.lead { color: var(--soft); font-size: 1.1rem; margin: 0 0 1.6rem; }
.facts { display: flex; flex-wrap: wrap; gap: 0.8rem; }
.fact { flex: 1 1 9.5rem; padding: 0.8rem 1rem; border: 1px solid var(--line); border-radius: 6px; }
.fact b { display: block; font-size: 1.6rem; font-weight: 600; line-height: 1.3; }
.fact span { color: var(--soft); font-size: 0.88rem; }
.bar { display: flex; height: 1.6rem; border-radius: 4px; overflow: hidden;
  background: var(--line); }
.key { display: inline-block; margin: 0.5rem 1.2rem 0 0; font-size: 0.9rem; }
.key i { display: inline-block; width: 0.75rem; height: 0.75rem; margin-right: 0.4rem;
  border-radius: 2px; }
.wide { overflow-x: auto; }
table { border-collapse: collapse; font-size: 0.88rem; width: 100%; }
th, td { padding: 0.28rem 0.7rem 0.28rem 0; text-align: left; white-space: nowrap;
  border-bottom: 1px solid var(--line); font-variant-numeric: tabular-nums; }
th { color: var(--soft); font-weight: 500; }
.number { text-align: right; }
figure { margin: 0; }
figcaption { color: var(--soft); font-size: 0.9rem; margin-top: 0.4rem; max-width: 46rem; }
svg { display: block; width: 100%; height: auto; stroke-linejoin: round; }
svg .titled:hover { opacity: 0.75; }
.on-narrow { display: none; }
@media (max-width: 46rem) {
  main { margin: 0; padding: 1rem 1rem 2rem; border: 0; border-radius: 0; }
  h1 { font-size: 1.5rem; overflow-wrap: anywhere; }
  .fact { flex-basis: 8rem; }
  .on-wide { display: none; }
  .on-narrow { display: block; }
}
pre { margin: 0.4rem 0; padding: 0.8rem 1rem; background: var(--wash); border-radius: 6px;
  border: 1px solid var(--line); overflow-x: auto; white-space: pre-wrap; overflow-wrap: anywhere;
  font: 0.85rem/1.5 ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; }
"""
)
# The parts of the account, in their order in the text.
COLOURS = {
    "code": "#8c6bb1",
    "header": "#f2a541",
    "side values": "#3aa6a0",
    "payload": "#2f6db5",
    "tensors": "#2f6db5",
    "artifact": "#2f6db5",
    "weights as stored": "#2f6db5",
    "left": "var(--line)",
}


def readable(text: str) -> str:
    """The text with characters that HTML forbids replaced by U+FFFD."""
    return "".join(one if one in "\t\n" or one.isprintable() else "\ufffd" for one in text)


def escaped(text: str) -> Html:
    """Text escaped for an element or an attribute."""
    return Html(html.escape(readable(text), quote=True))


def page(title: str, lead: str, blocks: Iterable[Html]) -> str:
    """A whole page. Its content security policy forbids the browser to fetch anything."""
    body = "\n".join(blocks)
    policy = "default-src 'none'; style-src 'unsafe-inline'"
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{escaped(policy)}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escaped(title)}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n<main>\n"
        f'<h1>{escaped(title)}</h1>\n<p class="lead">{escaped(lead)}</p>\n{body}\n'
        "</main>\n</body>\n</html>\n"
    )


def heading(text: str) -> Html:
    return Html(f"<h2>{escaped(text)}</h2>")


def paragraph(text: str) -> Html:
    return Html(f"<p>{escaped(text)}</p>")


def verbatim(text: str) -> Html:
    """Preformatted text, such as commands or a sample."""
    return Html(f"<pre>{escaped(text)}</pre>")


def facts(named: Iterable[tuple[str, str]]) -> Html:
    """(number, meaning) as large figures side by side."""
    cells = (
        f'<div class="fact"><b>{escaped(number)}</b><span>{escaped(words)}</span></div>'
        for number, words in named
    )
    return Html(f'<div class="facts">{"".join(cells)}</div>')


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> Html:
    """Columns whose name starts with '>' are right-aligned numbers, as in packer.reports.tables."""
    kinds = [' class="number"' if column.startswith(">") else "" for column in columns]

    def line(tag: str, cells: Iterable[str]) -> str:
        pairs = zip(kinds, cells, strict=True)
        cells = (f"<{tag}{kind}>{escaped(cell)}</{tag}>" for kind, cell in pairs)
        return f"<tr>{''.join(cells)}</tr>"

    head = line("th", (column.lstrip(">") for column in columns))
    body = "\n".join(line("td", row) for row in rows)
    return Html(
        f'<div class="wide"><table>\n<thead>{head}</thead>\n<tbody>\n{body}\n</tbody>\n</table>'
        "</div>"
    )


def figure(picture: Html, caption: str) -> Html:
    """A picture with its caption."""
    return Html(f"<figure>{picture}<figcaption>{escaped(caption)}</figcaption></figure>")


def account_bar(account: Account) -> Html:
    """Every byte of the cap as one bar, with its key and the account in words."""
    sizes = {
        "code": account.code_bytes,
        "header": account.header_bytes,
        "side values": account.side_bytes,
        "payload": account.payload_bytes,
        "left": max(account.unused_bytes, 0) if account.cap_bytes else 0,
    }
    return bar(sizes, str(account))


def bar(sizes: Mapping[str, int], words: str) -> Html:
    """Parts of the account as one bar, with its key; words: the account."""
    whole = max(sum(sizes.values()), 1)
    shown = {name: size for name, size in sizes.items() if size or name == "code"}
    parts = "".join(
        f'<div style="width:{100 * size / whole:.3f}%;background:{COLOURS[name]}" '
        f'title="{name} {size:,}"></div>'
        for name, size in shown.items()
    )
    keys = "".join(
        f'<span class="key"><i style="background:{COLOURS[name]}"></i>{name} {size:,}</span>'
        for name, size in shown.items()
    )
    return Html(f'<div class="bar">{parts}</div>\n<div>{keys}</div>\n{paragraph(words)}')


def byte_tables(report: Report) -> Html:
    """Bytes as two tables: by role, and by tensor."""
    roles = table(*share_rows("role", by_role(report)))
    return Html(f"{roles}\n{heading('Every tensor')}\n{table(*tensor_rows(report))}")
