"""`packer eval`: bits per byte of checkpoints and artifacts, paired."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from packer.commands.models import load_subjects, refusals, running_foreign
from packer.commands.options import (
    DROP,
    EXISTING,
    EXISTING_FILE,
    JSON,
    MAX_MEMORY,
    TEMPLATE,
    WEIGHTS,
    WRITABLE,
    print_json,
    refuse_overwriting,
    say_notes,
    with_options,
)
from packer.commands.processes import choose_device, joined
from packer.errors import PackerError

if TYPE_CHECKING:
    from packer.commands.models import Say
    from packer.eval.batches import Setting
    from packer.evaluation import Data, Evaluated, Subject

DEFAULT_WINDOW = 1024  # what the contest's models were trained with
POSITIVE = click.IntRange(min=1)
DATA = with_options(
    click.option(
        "--data",
        multiple=True,
        required=True,
        metavar="PATH",
        help="Text, or token shards named .bin: a file or a glob; repeat for more.",
    ),
    click.option("--tokenizer", type=EXISTING_FILE, help="The data's sentencepiece model."),
    click.option(
        "--bytes-table", type=EXISTING_FILE, help="Bytes per token of another tokenizer (JSON)."
    ),
    click.option(
        "--bytes-sidecar",
        multiple=True,
        metavar="PATH",
        help="Bytes of text behind each token of the shards, in shards of their own.",
    ),
    click.option(
        "--document-separator", metavar="TEXT", help="What stands between documents in a text."
    ),
)
WINDOWS = with_options(
    click.option(
        "--window",
        type=POSITIVE,
        metavar="TOKENS",
        help="What a model sees at once; default: its rope_train_length, or 1024.",
    ),
    click.option(
        "--stride",
        type=POSITIVE,
        metavar="TOKENS",
        help="Score the last so many of each window; default: all, windows back to back.",
    ),
    click.option("--tokens", type=POSITIVE, metavar="TOKENS", help="Score only the first so many."),
    click.option(
        "--batch", type=POSITIVE, metavar="WINDOWS", help="Windows at a time; for speed only."
    ),
)
MODEL = with_options(
    click.option(
        "--config",
        type=EXISTING_FILE,
        help="The companion model's configuration (JSON or TOML); default: the one that a source "
        "carries, or NAME.config.json beside it.",
    ),
    click.option(
        "--model",
        metavar="FILE.py:NAME",
        help="Build models by somebody's class or factory instead; this runs their file.",
    ),
    click.option(
        "--model-config", type=EXISTING_FILE, help="Its arguments by name (JSON or TOML)."
    ),
    click.option(
        "--device", metavar="NAME", help="cpu, cuda or cuda:N; default: cuda where there is one."
    ),
)


@click.command("eval", short_help="Bits per byte of checkpoints and artifacts.")
@click.argument("sources", nargs=-1, required=True, type=EXISTING)
@with_options(DATA, WINDOWS, MODEL)
@click.option(
    "--reference", metavar="SOURCE", help="The source to compare with; default: the first."
)
@click.option("--sample", metavar="PROMPT", help="Print a continuation of PROMPT by each.")
@click.option("--plot", type=WRITABLE, help="Write a picture of bits per byte against bytes.")
@click.option("--markdown", is_flag=True, help="Print the table as Markdown.")
@with_options(WEIGHTS, DROP, TEMPLATE, MAX_MEMORY, JSON)
def evaluate(
    sources: tuple[str, ...],
    data: tuple[str, ...],
    tokenizer: str | None,
    bytes_table: str | None,
    bytes_sidecar: tuple[str, ...],
    document_separator: str | None,
    window: int | None,
    stride: int | None,
    tokens: int | None,
    batch: int | None,
    config: str | None,
    model: str | None,
    model_config: str | None,
    device: str | None,
    reference: str | None,
    sample: str | None,
    plot: str | None,
    markdown: bool,
    weights: str | None,
    drop: tuple[str, ...],
    template: str | None,
    max_memory: int | None,
    as_json: bool,
) -> None:
    """Bits per byte of each of SOURCES (checkpoints, artifacts, also others') on the same tokens.

    \b
    packer eval model.pt model.pack --data valid.txt --tokenizer bpe.model --window 1024 --stride 64

    With several sources, also the difference to the first with its standard error, the KL
    divergence from it in bits per byte, and how often both find the same token likeliest. Under
    torchrun the windows are divided over the processes.
    """
    from packer import evaluation
    from packer.eval.batches import ignore

    chosen = _reference(sources, reference)
    _check_usage(tokenizer, config, model, model_config, sample)
    refuse_overwriting([*sources, *data, tokenizer, bytes_table, config, model_config], plot)
    _check_picture(plot)
    place = choose_device(device)
    with refusals(), joined(place) as (rank, world_size):
        say = say_notes if rank == 0 else ignore
        opened = evaluation.open_data(
            data,
            tokenizer=tokenizer,
            bytes_table=bytes_table,
            bytes_sidecar=bytes_sidecar,
            document_separator=document_separator,
        )
        with running_foreign(model):
            subjects = load_subjects(
                sources,
                device=place,
                weights=weights,
                drop=drop,
                template=template,
                max_memory=max_memory,
                config=config,
                model=model,
                model_config=model_config,
                say=say,
            )
            setting = setting_of(subjects[chosen], window, stride, tokens, batch, rank, world_size)
            evaluation.check_models(subjects, opened, setting)  # before a sample trips over it
            continuations = _continue(subjects, opened, sample, setting.window)
            found = _run(subjects, opened, setting, chosen, say)
        if rank == 0:
            _show(found, opened, setting, chosen, continuations, plot, markdown, as_json)


def _reference(sources: Sequence[str], reference: str | None) -> int:
    """Its number among the sources."""
    if reference is None:
        return 0
    resolved = [Path(source).resolve() for source in sources]
    if Path(reference).resolve() not in resolved:
        raise click.UsageError(
            f"--reference {reference} is none of the sources: {', '.join(sources)}"
        )
    return resolved.index(Path(reference).resolve())


def _check_usage(
    tokenizer: str | None,
    config: str | None,
    model: str | None,
    model_config: str | None,
    sample: str | None,
) -> None:
    if model is None and model_config is not None:
        raise click.UsageError("--model-config goes with --model; the companion takes --config")
    if model is not None and config is not None:
        raise click.UsageError("--config is the companion's; with --model, use --model-config")
    if sample is not None and tokenizer is None:
        raise click.UsageError("--sample needs the sentencepiece model: name it with --tokenizer")


def _check_picture(plot: str | None) -> None:
    """Refuse before minutes of scoring what would be refused after them."""
    if plot is None:
        return
    from packer.reports.plots import axes_of

    axes_of(plot, panels=1)
    if not Path(plot).resolve().parent.is_dir():
        raise PackerError(f"{plot}: the folder {Path(plot).parent} does not exist; create it first")


def setting_of(
    subject: Subject,
    window: int | None,
    stride: int | None,
    tokens: int | None,
    batch: int | None,
    rank: int,
    world_size: int,
) -> Setting:
    from packer.eval.batches import Setting
    from packer.eval.forward import device_of

    trained = getattr(getattr(subject.model, "config", None), "rope_train_length", None)
    return Setting(
        window=window or trained or DEFAULT_WINDOW,
        stride=stride,
        tokens=tokens,
        batch=batch,
        autocast=device_of(subject.model).type == "cuda",
        rank=rank,
        world_size=world_size,
    )


def _run(
    subjects: Sequence[Subject], data: Data, setting: Setting, reference: int, say: Say
) -> tuple[Evaluated, ...]:
    from packer.evaluation import evaluate as run
    from packer.progress import shown

    with shown("scoring") as tell:
        started = time.monotonic()

        def progress(done: int, total: int) -> None:
            if setting.rank == 0:
                tell(f"tokens, {done / (time.monotonic() - started):,.0f} a second", done, total)

        return run(
            subjects,
            data,
            setting,
            reference,
            progress=progress,
            notice=lambda text: say([text]),
        )


def _continue(
    subjects: Sequence[Subject], data: Data, prompt: str | None, window: int
) -> list[str]:
    from packer.eval.sample import continue_text

    if prompt is None:
        return []
    return [
        continue_text(subject.model, data.tokenizer, prompt, context=window) for subject in subjects
    ]


def _show(
    found: Sequence[Evaluated],
    data: Data,
    setting: Setting,
    reference: int,
    continuations: Sequence[str],
    plot: str | None,
    markdown: bool,
    as_json: bool,
) -> None:
    from packer.reports import score_tables

    warning = score_tables.byte_warning(found[0], data)
    if plot is not None:
        from packer.reports.plots import plot_scores

        plot_scores(plot, found)
    if as_json:
        print_json(
            {
                "scores": [one.to_json() for one in found],
                "reference": found[reference].subject.name if len(found) > 1 else None,
                "precision": "bfloat16" if setting.autocast else "float32",
                "processes": setting.world_size,
                "text_bytes": data.text_bytes,
                "warnings": [warning] if warning else [],
                "samples": list(continuations),
                "plot": plot,
            }
        )
        return
    score_tables.print_scores(found, data, markdown=markdown)
    if warning:
        click.echo(f"warning: {warning}", err=True)
    for one, text in zip(found, continuations, strict=False):
        click.echo(f"\n{one.subject.name}:\n{text}")
    if plot is not None:
        click.echo(f"picture: {plot}")
