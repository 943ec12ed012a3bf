"""Scores as text tables, and as Markdown for pull requests."""

from __future__ import annotations

from collections.abc import Sequence

from packer.eval.token_bytes import plausibility_warning
from packer.evaluation import Data, Evaluated
from packer.printable import spelled
from packer.reports import tables


def print_scores(scores: Sequence[Evaluated], data: Data, *, markdown: bool) -> None:
    """Prints one line per source, and the number of tokens and bytes scored."""
    columns, rows = score_rows(scores)
    if markdown:
        print("| " + " | ".join(column.lstrip(">") for column in columns) + " |")
        print("|" + "|".join("---:" if c.startswith(">") else "---" for c in columns) + "|")
        for row in rows:
            print("| " + " | ".join(spelled(cell).replace("|", "\\|") for cell in row) + " |")
    else:
        tables.print_table(columns, rows)
    print("\n" + describe_counts(scores[0], data))


def score_rows(scores: Sequence[Evaluated]) -> tuple[list[str], list[list[str]]]:
    """(columns, rows); differences and divergences only if there is something to compare."""
    columns = ["source", ">bytes", ">bits per byte", ">± s.e.", ">perplexity"]
    paired = any(one.difference is not None for one in scores)
    divergent = any(one.divergence is not None for one in scores)
    columns += [">difference", ">± s.e."] * paired + [">KL bpb", ">same top-1 %"] * divergent
    columns += [">tokens/s"]
    rows = []
    for one in scores:
        row = [
            one.subject.name,
            f"{one.subject.size_bytes:,}",
            f"{one.score.bits_per_byte:.6f}",
            tables.number(one.score.stderr_bits_per_byte, ".4f"),
            f"{one.score.perplexity:.4g}",
        ]
        if paired:
            difference = one.difference
            row.append("-" if difference is None else f"{difference.delta_bpb:+.6f}")
            error = None if difference is None else difference.stderr_bits_per_byte
            row.append(tables.number(error, ".6f"))
        if divergent:
            divergence = one.divergence
            row.append("-" if divergence is None else f"{divergence.kl_bits_per_byte:.6f}")
            row.append("-" if divergence is None else f"{100 * divergence.top1_agreement:.2f}")
        rows.append([*row, f"{one.score.tokens_per_second:,.0f}"])
    return columns, rows


def describe_counts(one: Evaluated, data: Data) -> str:
    """The tokens, bytes and windows scored, and tokens without known bytes."""
    score = one.score
    text = (
        f"{score.tokens:,} tokens, {score.bytes:,} bytes ({score.bytes_per_token:.4f} bytes per "
        f"token), windows of {score.window}, stride {score.stride}"
    )
    if score.unknown_tokens:
        text += f"; {score.unknown_tokens:,} unknown tokens count no bytes"
    if data.text_bytes is not None and score.tokens == len(data.stream) - 1:
        text += f"; the text itself has {data.text_bytes:,} bytes"
    return text


def byte_warning(one: Evaluated, data: Data) -> str | None:
    """A warning when bytes per token are implausible for the vocabulary."""
    if data.vocab_size is None:
        return None
    agree = data.text_bytes is not None and data.counted_bytes == data.text_bytes
    return plausibility_warning(one.score.bytes_per_token, data.vocab_size, text_counted=agree)
