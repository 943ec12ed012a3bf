"""`packer data`: a tokenizer and token shards from text."""

from __future__ import annotations

from typing import Any

import click

from packer.commands.options.types import (
    EXISTING,
    EXISTING_FILE,
    JSON,
    Finite,
    Size,
    print_json,
    say,
    say_warnings,
)
from packer.errors import PackerError


@click.command(short_help="Make a tokenizer and token shards from text.")
@click.argument("texts", nargs=-1, required=True, type=EXISTING)
@click.option(
    "-o",
    "--output",
    required=True,
    type=click.Path(file_okay=False),
    help="Write the shards into this folder.",
)
@click.option(
    "--vocab-size", type=int, help="Train a tokenizer of this many pieces; default: 1024."
)
@click.option("--tokenizer", type=EXISTING_FILE, help="Use this sentencepiece model; train none.")
@click.option(
    "--tokenizer-text",
    type=Size(),
    default=100_000_000,
    metavar="SIZE",
    help="Train the tokenizer on the first SIZE bytes of text; default: 100MB.",
)
@click.option("--document-separator", help="Split each file into documents at this text.")
@click.option(
    "--valid", multiple=True, type=EXISTING, help="Use this as validation text; repeat for more."
)
@click.option(
    "--valid-fraction",
    type=Finite(0, 1, max_open=True),
    help="Hold out this share of the documents for validation, evenly spaced, at least one; "
    "default: 0.01.",
)
@click.option(
    "--shard-tokens",
    type=click.IntRange(1, 2**31 - 1),
    default=100_000_000,
    show_default=True,
    help="Write this many tokens per shard.",
)
@click.option(
    "--prefix", default="corpus", show_default=True, help="Begin the shards' names with this."
)
@JSON
def data(
    texts: tuple[str, ...],
    output: str,
    vocab_size: int | None,
    tokenizer: str | None,
    tokenizer_text: int,
    document_separator: str | None,
    valid: tuple[str, ...],
    valid_fraction: float | None,
    shard_tokens: int,
    prefix: str,
    as_json: bool,
) -> None:
    """Train a tokenizer on TEXTS and write their tokens as shards into a folder.

    \b
    packer data books/*.txt --valid held_out.txt --vocab-size 1024 -o data

    A folder among TEXTS means its .txt files. The output folder holds tokenizer.model,
    PREFIX_train_000000.bin, PREFIX_val_000000.bin and so on, and manifest.json. Given the same
    command again, an interrupted run continues after its last complete shard.
    """
    from packer.eval.errors import EvalError
    from packer.progress import shown
    from packer.train.data import make_data
    from packer.train.data_job import DataOptions

    if tokenizer is not None and vocab_size is not None:
        raise click.UsageError("--vocab-size is for a tokenizer to train; --tokenizer has its own")
    if valid and valid_fraction is not None:
        raise click.UsageError("--valid names the validation text; leave --valid-fraction out")
    if not prefix or not all(letter.isalnum() or letter in "_-" for letter in prefix):
        raise click.BadParameter(
            f"{prefix!r}: letters, digits, _ and - only", param_hint="--prefix"
        )
    options = DataOptions(
        vocab_size=None if tokenizer is not None else 1024 if vocab_size is None else vocab_size,
        tokenizer=tokenizer,
        tokenizer_bytes=tokenizer_text,
        document_separator=document_separator,
        valid_fraction=0.01 if valid_fraction is None else valid_fraction,
        shard_tokens=shard_tokens,
        prefix=prefix,
    )
    try:
        with shown("encoding") as progress:
            manifest = make_data(texts, output, options, valid=valid, progress=progress)
    except EvalError as error:
        raise PackerError(str(error)) from None
    if as_json:
        print_json({"output": output, **manifest})
        return
    _show(output, manifest)
    say_warnings(manifest["warnings"])


def _show(output: str, manifest: dict[str, Any]) -> None:
    tokenizer = manifest["tokenizer"]
    say(f"{output}/{tokenizer['file']}: {tokenizer['vocab_size']:,} pieces")
    for split in ("train", "val"):
        counts = manifest.get(split)
        if counts is not None:
            say(
                f"{split}: {counts['tokens']:,} tokens of {counts['bytes']:,} bytes in "
                f"{_count(counts['documents'], 'document')}, {_count(counts['shards'], 'shard')}"
            )


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"
