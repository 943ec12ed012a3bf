"""Options and steps of the commands that calibrate: a model, a text, and the curvature of both."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import click

from packer.commands.models import load_subjects, running_foreign
from packer.commands.options import EXISTING_FILE, say_notes, with_options
from packer.commands.processes import choose_device
from packer.errors import PackerError

if TYPE_CHECKING:
    from packer.candidates import Measurement
    from packer.checkpoint import Checkpoint
    from packer.curvature_set import CurvatureSet
    from packer.eval.forward import AnyModel
    from packer.evaluation import Data
    from packer.trials import DamageBench

DEFAULT_TOKENS = 32_768
DEFAULT_WINDOW = 512
POSITIVE = click.IntRange(min=1)

TOKENIZER = with_options(
    click.option("--tokenizer", type=EXISTING_FILE, help="The text's sentencepiece model."),
    click.option(
        "--bytes-table", type=EXISTING_FILE, help="Bytes per token of another tokenizer (JSON)."
    ),
)
AMOUNT = with_options(
    click.option(
        "--tokens",
        type=POSITIVE,
        default=DEFAULT_TOKENS,
        show_default=True,
        help="How many tokens to calibrate on.",
    ),
    click.option(
        "--window",
        type=POSITIVE,
        default=DEFAULT_WINDOW,
        show_default=True,
        metavar="TOKENS",
        help="What the model sees at once.",
    ),
    click.option(
        "--seconds", type=click.FloatRange(min=0, min_open=True), help="Read no longer than this."
    ),
    click.option("--seed", type=int, default=0, help="Of the labels drawn; default 0."),
)
MODEL = with_options(
    click.option(
        "--model",
        metavar="FILE.py:NAME",
        help="Build the model by somebody's class or factory instead; this runs their file.",
    ),
    click.option(
        "--model-config", type=EXISTING_FILE, help="Its arguments by name (JSON or TOML)."
    ),
    click.option(
        "--device", metavar="NAME", help="cpu, cuda or cuda:N; default: cuda where there is one."
    ),
)


@dataclass(frozen=True)
class ModelOptions:
    """How a command was told to build the model of its checkpoint."""

    config: str | None
    model: str | None
    model_config: str | None
    device: str | None
    weights: str | None
    drop: Sequence[str]

    def check(self) -> None:
        """Raises UsageError: options of the companion and of somebody's model together."""
        if self.model is None and self.model_config is not None:
            raise click.UsageError("--model-config goes with --model; the companion takes --config")

    def load(self, checkpoint: str) -> AnyModel:
        """The model with the checkpoint's weights. Raises PackerError."""
        subjects = load_subjects(
            [checkpoint],
            device=choose_device(self.device),
            weights=self.weights,
            drop=self.drop,
            config=None if self.model else self.config,
            model=self.model,
            model_config=self.model_config,
            say=say_notes,
        )
        return subjects[0].model


@dataclass(frozen=True)
class TextOptions:
    """Which text, and how much of it, a command was told to calibrate on."""

    data: Sequence[str]
    tokenizer: str | None
    bytes_table: str | None
    tokens: int = DEFAULT_TOKENS
    window: int = DEFAULT_WINDOW
    seconds: float | None = None
    seed: int = 0

    def open(self) -> Data:
        """The text's tokens. Raises PackerError, EvalError."""
        from packer.evaluation import open_data

        return open_data(self.data, tokenizer=self.tokenizer, bytes_table=self.bytes_table)


@contextlib.contextmanager
def refusals() -> Iterator[None]:
    """What eval and train refuse, as refusals of the command."""
    from packer.eval.errors import EvalError
    from packer.train.config import ConfigError

    try:
        yield
    except (EvalError, ConfigError) as error:
        raise PackerError(str(error)) from None


def curvature_of(
    model: AnyModel, name: str, checkpoint: Checkpoint, data: Data, text: TextOptions
) -> CurvatureSet:
    """Curvature on a text, with a progress bar. Raises PackerError, EvalError."""
    from packer.calibration import TextSource, calibrate, token_batches
    from packer.eval.batches import Setting
    from packer.eval.forward import device_of
    from packer.eval.score import bytes_per_token
    from packer.evaluation import Subject, check_models
    from packer.progress import shown

    check_models([Subject(name, "checkpoint", model, 0)], data, Setting(text.window))
    batches = token_batches(data.stream, text.window, text.tokens, device_of(model))
    count = sum(batch.numel() for batch in batches)
    source = TextSource(", ".join(text.data), bytes_per_token(data.stream, data.counter, count))
    with shown("calibrating") as progress:
        return calibrate(
            model,
            batches,
            seconds=text.seconds,
            seed=text.seed,
            text=source,
            checkpoint=checkpoint,
            progress=progress,
        )


def written_by(model: AnyModel, text: TextOptions) -> tuple[Data, TextOptions, float]:
    """(text by the model itself, options that speak of it, the seconds it took).

    Half the seconds allowed are for writing; whole windows are kept.
    Raises PackerError, EvalError: no tokenizer, or not one window in time.
    """
    import time

    import torch

    from packer.calibration import within
    from packer.errors import CurvatureError
    from packer.eval.sample import sample_windows
    from packer.eval.token_bytes import from_processor, load_sentencepiece
    from packer.evaluation import Data
    from packer.progress import shown

    if text.tokenizer is None:
        raise click.UsageError("--self-generate needs the sentencepiece model: name --tokenizer")
    started = time.perf_counter()
    processor = load_sentencepiece(text.tokenizer)
    windows = sample_windows(
        model,
        windows=-(-text.tokens // text.window),
        window=text.window,
        start=max(processor.bos_id(), 0),
        vocab_size=processor.vocab_size(),
        seed=text.seed,
    )
    half = None if text.seconds is None else text.seconds / 2
    with shown("writing") as progress:
        found = list(within(windows, half, started, progress))
    if not found:
        raise CurvatureError("not one window was written in half the seconds; allow more")
    table = from_processor(processor)
    tokens = torch.cat(found).flatten().cpu().numpy()
    data = Data(tokens, table, table.vocab_size, None, processor)
    spent = time.perf_counter() - started
    told = TextOptions(
        ["text by the model itself (temperature 0.8)"],
        text.tokenizer,
        None,
        len(tokens),
        text.window,
        None if text.seconds is None else text.seconds - spent,
        text.seed,
    )
    return data, told, spent


CURVATURE = with_options(
    click.option(
        "--curvature",
        "curvature_file",
        type=EXISTING_FILE,
        help="What `packer calibrate` wrote for this checkpoint.",
    ),
    click.option(
        "--calibration",
        multiple=True,
        metavar="PATH",
        help="Text or shards: calibrate on them (unless --curvature is given), and fit the "
        "predicted damage to true measurements on their last fifth.",
    ),
    click.option(
        "--calibration-tokens",
        type=POSITIVE,
        default=DEFAULT_TOKENS,
        show_default=True,
        help="How many tokens to calibrate on.",
    ),
    click.option(
        "--calibration-window",
        type=POSITIVE,
        default=DEFAULT_WINDOW,
        show_default=True,
        help="What the model sees at once in calibration.",
    ),
    TOKENIZER,
    MODEL,
)


@dataclass(frozen=True)
class CurvatureOptions:
    """What a command that measures was told of curvature."""

    file: str | None
    text: TextOptions
    built: ModelOptions

    @property
    def given(self) -> bool:
        return self.file is not None or bool(self.text.data)

    def check(self) -> None:
        """Raises UsageError: options that go with a text, without one."""
        self.built.check()

    def read(self, loaded: Checkpoint) -> CurvatureSet | None:
        """From the file alone. Raises CurvatureError."""
        from packer.curvature_file import read_curvature

        return None if self.file is None else read_curvature(self.file, loaded)


@dataclass(frozen=True)
class Felt:
    """Curvature of a checkpoint, and with a text the bench that predictions are fitted on."""

    curvature: CurvatureSet | None
    bench: DamageBench | None

    def fitted(self, measured: Measurement) -> Measurement:
        """The measurement, fitted where there is a bench; with a progress bar."""
        from packer.progress import shown
        from packer.trials import fit_to_model

        if self.bench is None or measured.curvature is None:
            return measured
        with shown("fitting") as progress:
            return fit_to_model(measured, self.bench, progress)


def feel(source: str, loaded: Checkpoint, options: CurvatureOptions) -> Felt:
    """Reads or makes the curvature that a command was told to use.

    Raises PackerError: see `read_curvature`, `calibrate` and `open_data`.
    """
    curvature = options.read(loaded)
    from packer.trials import held_out_part

    text = options.text
    if not text.data:
        return Felt(curvature, None)
    with refusals(), running_foreign(options.built.model):
        data, model = text.open(), options.built.load(source)
        if curvature is None:
            first, _ = held_out_part(len(data.stream), text.tokens, text.window)
            seen = replace(text, tokens=max(min(text.tokens, first), text.window))
            curvature = curvature_of(model, source, loaded, data, seen)
            say_notes([f"calibrated on {curvature.spell()}", *curvature.warnings])
        return Felt(curvature, bench_of(model, loaded, curvature, data, text, held_out=True))


def bench_of(
    model: AnyModel,
    loaded: Checkpoint,
    curvature: CurvatureSet | None,
    data: Data,
    text: TextOptions,
    *,
    held_out: bool,
) -> DamageBench:
    """A bench on a text. Raises CurvatureError, EvalError."""
    from packer.trials import damage_bench

    return damage_bench(
        model,
        loaded,
        curvature,
        data,
        ", ".join(text.data),
        tokens=text.tokens,
        window=text.window,
        held_out=held_out,
    )
