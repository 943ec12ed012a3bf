"""Options and steps of the commands that calibrate: a model, a text, and the curvature of both."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from packer.commands.models import load_subjects, refusals, running_foreign
from packer.commands.options import EXISTING_FILE, WRITABLE, say_notes, with_options
from packer.commands.processes import choose_device

if TYPE_CHECKING:
    from torch import Tensor

    from packer.candidates import Measurement
    from packer.checkpoint import Checkpoint
    from packer.curvature.curvature_set import CurvatureSet
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
    template: str | None = None
    max_memory: int | None = None

    @property
    def opening(self) -> dict[str, Any]:
        """How the checkpoint is read: arguments of `read_checkpoint` by name."""
        return {
            "weights": self.weights,
            "drop": self.drop,
            "template": self.template,
            "max_memory": self.max_memory,
        }

    def check(self) -> None:
        """Raises UsageError: options of the companion and of somebody's model together."""
        if self.model is None and self.model_config is not None:
            raise click.UsageError("--model-config goes with --model; the companion takes --config")

    def load(self, checkpoint: str) -> AnyModel:
        """The model with the checkpoint's weights. Raises PackerError."""
        subjects = load_subjects(
            [checkpoint],
            device=choose_device(self.device),
            **self.opening,
            config=None if self.model else self.config,
            model=self.model,
            model_config=self.model_config,
            say=say_notes,
        )
        return subjects[0].model


@dataclass(frozen=True)
class TextOptions:
    """Which text, and how much of it, a command was told to calibrate on.

    self_generate: calibrate on so many tokens that the model writes, in place of data.
    """

    data: Sequence[str]
    tokenizer: str | None
    bytes_table: str | None
    tokens: int = DEFAULT_TOKENS
    window: int = DEFAULT_WINDOW
    seconds: float | None = None
    seed: int = 0
    self_generate: int | None = None

    @property
    def given(self) -> bool:
        """Whether there is any text, be it the model's own."""
        return bool(self.data) or self.self_generate is not None

    def open(self) -> Data:
        """The text's tokens. Raises PackerError, EvalError."""
        from packer.evaluation import open_data

        return open_data(self.data, tokenizer=self.tokenizer, bytes_table=self.bytes_table)


def curvature_of(
    model: AnyModel,
    name: str,
    checkpoint: Checkpoint,
    data: Data,
    text: TextOptions,
    kept_at: str | None = None,
) -> CurvatureSet:
    """Curvature on a text, with a progress bar. kept_at: a file to keep what is under way in, and
    to go on from. Raises PackerError, EvalError.
    """
    from packer.curvature.calibration import TextSource, calibrate, token_batches
    from packer.curvature.unfinished import UnfinishedFile
    from packer.eval.batches import Setting
    from packer.eval.forward import device_of
    from packer.eval.score import bytes_per_token
    from packer.evaluation import Subject, check_models
    from packer.progress import shown

    check_models([Subject(name, "checkpoint", model, 0)], data, Setting(text.window))
    batches = token_batches(data.stream, text.window, text.tokens, device_of(model))
    count = sum(batch.numel() for batch in batches)
    source = TextSource(", ".join(text.data), bytes_per_token(data.stream, data.counter, count))
    unfinished = None
    if kept_at is not None:
        known_by = what_makes_it(model, checkpoint, batches, text)
        unfinished = UnfinishedFile(kept_at, known_by)
        if unfinished.path.exists():
            say_notes([f"going on from {kept_at}, where a calibration was cut off"])
    with shown("calibrating") as progress:
        return calibrate(
            model,
            batches,
            seconds=text.seconds,
            seed=text.seed,
            text=source,
            checkpoint=checkpoint,
            progress=progress,
            unfinished=unfinished,
        )


def what_makes_it(
    model: AnyModel, checkpoint: Checkpoint, batches: Sequence[Tensor], text: TextOptions
) -> dict[str, str]:
    """What tells one calibration from another, in words by what they are about."""
    import hashlib

    from packer.checkpoint import contents_fingerprint
    from packer.eval.foreign_forward import named_module
    from packer.eval.forward import device_of

    module, tokens = named_module(model), hashlib.sha256()
    for batch in batches:
        tokens.update(f"{list(batch.shape)} ".encode())
        tokens.update(batch.numpy().data)
    built = f"{module!r} {getattr(module, 'config', None)!r}"
    return {
        "checkpoint": contents_fingerprint(checkpoint),
        "text, --tokens or --window": tokens.hexdigest(),
        "--seed": str(text.seed),
        "model": hashlib.sha256(built.encode()).hexdigest(),
        "--device": device_of(model).type,
    }


def written_by(model: AnyModel, text: TextOptions) -> tuple[Data, TextOptions, float]:
    """(text by the model itself, options that speak of it, the seconds it took).

    Half the seconds allowed are for writing; whole windows are kept.
    Raises PackerError, EvalError: no tokenizer, or not one window in time.
    """
    import time

    import torch

    from packer.curvature.calibration import within
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


def written_for_trials(model: AnyModel, text: TextOptions) -> tuple[Data, TextOptions, float]:
    """As `written_by`, with as much more at the end as is held out to measure damage on."""
    from packer.trials import windows_with_trials

    assert text.self_generate is not None
    windows = windows_with_trials(-(-text.self_generate // text.window))
    data, told, spent = written_by(model, replace(text, tokens=windows * text.window))
    return data, replace(told, tokens=text.self_generate), spent


CALIBRATION_SIZE = with_options(
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
)
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
    CALIBRATION_SIZE,
    TOKENIZER,
    MODEL,
)


CURVATURE_OUT = click.option(
    "--curvature-out",
    type=WRITABLE,
    help="Write the curvature that --calibration gave here; default: OUTPUT's name with "
    ".curvature.safetensors at its end.",
)


@dataclass(frozen=True)
class CurvatureOptions:
    """What a command that measures was told of curvature. out: where to write what it makes."""

    file: str | None
    text: TextOptions
    built: ModelOptions
    out: str | None = None

    @property
    def given(self) -> bool:
        return self.file is not None or self.text.given

    def check(self) -> None:
        """Raises UsageError: options that go with a text, without one."""
        self.built.check()
        if self.out is not None and (self.file is not None or not self.text.given):
            raise click.UsageError(
                "--curvature-out is where curvature made with --calibration goes; here none is made"
            )

    def writes(self, output: str | None) -> tuple[str | None, ...]:
        """Every file that the command writes, to be checked against its inputs.

        Raises UsageError: the output itself is to hold the curvature.
        """
        if self.file is not None or not self.text.given:
            return (output,)
        path = self.out or (None if output is None else beside(output))
        if (
            path is not None
            and output is not None
            and Path(path).resolve() == Path(output).resolve()
        ):
            raise click.UsageError(f"{output} cannot hold the curvature too; name another file")
        return (output, path)

    def read(self, loaded: Checkpoint) -> CurvatureSet | None:
        """From the file alone. Raises CurvatureError."""
        from packer.curvature.file import read_curvature

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
    if not text.given:
        return Felt(curvature, None)
    with refusals(), running_foreign(options.built.model):
        spent, data = 0.0, None if text.self_generate else text.open()
        model = options.built.load(source)
        if data is None:
            data, text, spent = written_for_trials(model, text)
        if curvature is None:
            first, _ = held_out_part(len(data.stream), text.tokens, text.window)
            seen = replace(text, tokens=max(min(text.tokens, first), text.window))
            curvature = curvature_of(model, source, loaded, data, seen)
            curvature = replace(curvature, seconds=curvature.seconds + spent)
            say_notes([f"calibrated on {curvature.spell()}", *curvature.warnings])
        return Felt(curvature, bench_of(model, loaded, curvature, data, text, held_out=True))


def beside(output: str) -> str:
    """Where the curvature behind a plan or measurements is written: plan.curvature.safetensors."""
    return f"{output.removesuffix('.json')}.curvature.safetensors"


def kept_curvature(felt: Felt, options: CurvatureOptions, output: str | None) -> str | None:
    """The file with the curvature that was used, written where it was made here.

    None where there is none, or nothing is written at all. Raises OutputError.
    """
    from packer.curvature.file import write_curvature

    if options.file is not None or felt.curvature is None:
        return options.file
    path = options.out or (None if output is None else beside(output))
    if path is not None:
        write_curvature(path, felt.curvature)
    return path


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
