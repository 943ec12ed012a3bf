"""`packer demo`: every step once, offline, in minutes."""

from __future__ import annotations

from pathlib import Path

import click

from packer.commands.options.types import EXISTING, JSON, cap_option, print_json, say, say_notes


@click.command(short_help="Run every step once, offline, in minutes.")
@click.option(
    "-o", "--output", default="demo", show_default=True, help="Write everything into this folder."
)
@click.option(
    "--text",
    multiple=True,
    type=EXISTING,
    metavar="PATH",
    help="Train on this text, a file or a folder of .txt files; repeat for more.",
)
@cap_option(required=False, help="Limit the artifact to SIZE bytes; default: 1.25MB.")
@click.option(
    "--seed",
    type=click.IntRange(min=0),
    default=1337,
    show_default=True,
    help="Seed weight initialization and data order.",
)
@JSON
def demo(output: str, text: tuple[str, ...], cap: int | None, seed: int, as_json: bool) -> None:
    """Train a small language model, fit it under a byte cap, and score it before and after.

    \b
    packer demo
    packer demo --text books/ --cap 900KB -o books-demo

    Needs nothing but this installation: the default text is the sources and documentation of the
    running Python. Trains a tokenizer and a model with quantization-aware training, plans, packs,
    unpacks, and writes report.html and report.png. The same text and seed give the same artifact.
    """
    from packer.progress import shown
    from packer.train import demo_report
    from packer.train.demo import DemoSettings, refuse_used, run_demo
    from packer.train.demo_text import named_text, python_text

    folder = Path(output)
    refuse_used(folder)
    settings = DemoSettings(seed=seed) if cap is None else DemoSettings(seed=seed, cap_bytes=cap)
    corpus = named_text(text) if text else python_text()
    result = run_demo(corpus, folder, settings, lambda words: say(words, err=True), shown)
    demo_report.write_report(result)
    if as_json:
        print_json(demo_report.to_json(result))
        return
    say_notes([result.note] if result.note else [])
    for line in demo_report.five_lines(result):
        say(line)
