"""`packer eval`: bits per byte of checkpoints and artifacts, paired."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from packer.commands.options import (
    EXISTING,
    JSON,
    WEIGHTS,
    WRITABLE,
    print_json,
    read_config,
    say_notes,
    with_options,
)
from packer.errors import PackerError

if TYPE_CHECKING:
    from packer.eval.forward import AnyModel
    from packer.evaluation import Data, Evaluated, Subject
    from packer.weights import NamedWeights

DATA = with_options(
    click.option("--data", multiple=True, required=True, help="Text, .bin shards, or a glob."),
    click.option("--tokenizer", type=EXISTING, help="The sentencepiece model of the data."),
    click.option("--bytes-table", type=EXISTING, help="Bytes per token (JSON), other tokenizers."),
    click.option("--bytes-sidecar", multiple=True, help="Bytes behind each token (.bin)."),
    click.option("--document-separator", help="Text between the documents of one file."),
)
WINDOWS = with_options(
    click.option("--window", type=click.IntRange(min=1), help="Tokens the model sees at once."),
    click.option("--stride", type=click.IntRange(min=1), help="Scored per window; default: all."),
    click.option("--tokens", type=click.IntRange(min=1), help="Score only so many tokens."),
    click.option("--batch", type=click.IntRange(min=1), help="Windows at a time."),
)
MODEL = with_options(
    click.option("--config", type=EXISTING, help="The model's configuration (JSON or TOML)."),
    click.option("--model", metavar="FILE.py:NAME", help="Somebody's model class or factory."),
    click.option("--model-config", type=EXISTING, help="Its arguments by name (JSON or TOML)."),
    click.option("--device", help="cpu, cuda or cuda:N; default: cuda where there is one."),
)


@click.command("eval", short_help="Bits per byte of checkpoints and artifacts.")
@click.argument("sources", nargs=-1, required=True, type=EXISTING)
@with_options(DATA, WINDOWS, MODEL)
@click.option("--reference", help="The source to compare with; default: the first.")
@click.option("--sample", metavar="PROMPT", help="Print a continuation of PROMPT by each.")
@click.option("--plot", type=WRITABLE, help="Write a picture of bits per byte against bytes.")
@click.option("--markdown", is_flag=True, help="Print the table as Markdown.")
@with_options(WEIGHTS, JSON)
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
    as_json: bool,
) -> None:
    """Bits per byte of each of SOURCES (checkpoints, artifacts) on the same tokens.

    \b
    packer eval model.pt model.pack --data valid.txt --tokenizer bpe.model --window 1024 --stride 64

    With several sources, also the difference to the first with its standard error, the KL
    divergence in bits per byte, and how often both find the same token likeliest. Under torchrun
    the windows are divided over the processes.
    """
    from packer import evaluation
    from packer.eval.errors import EvalError
    from packer.train.config import ConfigError

    if reference is not None and reference not in sources:
        raise click.UsageError(f"--reference {reference} is none of the sources")
    try:
        opened = evaluation.open_data(
            data,
            tokenizer=tokenizer,
            bytes_table=bytes_table,
            bytes_sidecar=bytes_sidecar,
            document_separator=document_separator,
        )
        subjects = _subjects(sources, weights, config, model, model_config, device)
        setting = _setting(subjects, window, stride, tokens, batch)
        found = _run(subjects, opened, setting, sources.index(reference) if reference else 0)
        continuations = _continue(subjects, opened, sample, setting.window)
    except (EvalError, ConfigError) as error:
        raise PackerError(str(error)) from None
    if setting.rank == 0:
        _show(found, opened, continuations, plot, markdown, as_json)


def _subjects(
    sources: Sequence[str],
    weights: str | None,
    config: str | None,
    model: str | None,
    model_config: str | None,
    device: str | None,
) -> list[Subject]:
    from packer.evaluation import Subject
    from packer.weights import load_weights

    loaded = [load_weights(source, weights=weights) for source in sources]
    place = _device(device)
    fallback = _settings(config) if config else _beside(loaded)
    subjects = []
    for one in loaded:
        say_notes(one.notes)
        if model is not None:
            built = _foreign(model, model_config, one)
        else:
            settings = fallback if config else one.config or fallback
            built = _companion(settings, one)
        on_device: AnyModel = built.to(place)  # type: ignore[union-attr]
        subjects.append(Subject(one.source, one.kind, on_device, one.size_bytes))
    return subjects


def _settings(path: str) -> dict[str, Any]:
    from packer.train.config import read_config

    return read_config(path)


def _beside(loaded: Sequence[NamedWeights]) -> dict[str, Any]:
    """Settings carried by any of the sources, or lying beside one as NAME.config.json."""
    for one in loaded:
        if one.config is not None:
            return one.config
        beside = Path(one.source).with_suffix(".config.json")
        if beside.is_file():
            say_notes([f"the model's configuration is taken from {beside}"])
            return _settings(str(beside))
    return {}


def _companion(settings: Mapping[str, Any], weights: NamedWeights) -> AnyModel:
    from packer.eval.foreign_model import load_strictly
    from packer.train.config import infer_config
    from packer.train.model import GPT

    model = GPT(infer_config(weights.weights).complete(settings))
    load_strictly(model, weights.weights)
    return model.eval()


def _foreign(spec: str, model_config: str | None, weights: NamedWeights) -> AnyModel:
    from packer.eval.foreign_model import load_foreign_model

    settings = json.loads(read_config(model_config)["config"]) if model_config else {}
    return load_foreign_model(spec, settings, weights.weights)


def _device(name: str | None) -> Any:
    import torch

    if name is None:
        local = os.environ.get("LOCAL_RANK", "0")  # set by torchrun, one GPU a process
        name = f"cuda:{local}" if torch.cuda.is_available() else "cpu"
    try:
        return torch.zeros(1, device=name).device
    except (RuntimeError, AssertionError) as error:
        raise PackerError(f"--device {name} cannot be used here: {error}") from None


def _setting(
    subjects: Sequence[Subject],
    window: int | None,
    stride: int | None,
    tokens: int | None,
    batch: int | None,
) -> Any:
    import torch

    from packer.eval.batches import Setting
    from packer.eval.forward import device_of

    on_gpu = device_of(subjects[0].model).type == "cuda"
    world_size = int(os.environ.get("WORLD_SIZE", "1"))  # set by torchrun
    if world_size > 1 and not torch.distributed.is_initialized():
        torch.distributed.init_process_group("nccl" if on_gpu else "gloo")
    rank = torch.distributed.get_rank() if world_size > 1 else 0
    trained = getattr(getattr(subjects[0].model, "config", None), "train_seq_len", None)
    return Setting(
        window=window or trained or 1024,
        stride=stride,
        tokens=tokens,
        batch=batch,
        autocast=on_gpu,
        rank=rank,
        world_size=world_size,
    )


def _run(
    subjects: Sequence[Subject], data: Data, setting: Any, reference: int
) -> tuple[Evaluated, ...]:
    from packer.evaluation import evaluate as run
    from packer.progress import shown

    with shown("scoring") as tell:
        return run(
            subjects,
            data,
            setting,
            reference,
            progress=lambda done, total: tell("tokens", done, total),
            notice=lambda text: say_notes([text]),
        )


def _continue(
    subjects: Sequence[Subject], data: Data, prompt: str | None, window: int
) -> list[str]:
    from packer.eval.sample import continue_text

    if prompt is None:
        return []
    if data.tokenizer is None:
        raise PackerError("--sample needs the sentencepiece model: --tokenizer")
    return [
        continue_text(subject.model, data.tokenizer, prompt, context=window) for subject in subjects
    ]


def _show(
    found: Sequence[Evaluated],
    data: Data,
    continuations: Sequence[str],
    plot: str | None,
    markdown: bool,
    as_json: bool,
) -> None:
    from packer import score_tables
    from packer.plots import plot_scores

    warning = score_tables.byte_warning(found[0], data)
    if plot is not None:
        plot_scores(plot, found)
    if as_json:
        print_json(
            {
                "scores": [one.to_json() for one in found],
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
