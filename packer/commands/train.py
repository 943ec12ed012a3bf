"""`packer train`: the companion trainer."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from packer.commands.options.groups import with_options
from packer.commands.options.types import (
    CODE,
    JSON,
    Finite,
    Size,
    print_json,
    refuse_overwriting,
    say,
)
from packer.devices import choose_device, joined
from packer.errors import PackerError

if TYPE_CHECKING:
    from packer.train.finish import Ending, Finished
    from packer.train.loop import Trainer
    from packer.train.settings import TrainConfig

LOG = "train.log"
LIMITS = with_options(
    click.option("--cap", type=Size(), help="Pack under this many bytes at the end."),
    click.option("--size-cap", type=Size(), help="Warn while the predicted size is larger."),
    click.option(
        "--max-wallclock",
        type=Finite(min=0),
        metavar="SECONDS",
        help="Stop after SECONDS of work on training data, calibration included; 0: no limit.",
    ),
    CODE,
)


@click.command(short_help="Train the companion model, with or without quantization.")
@click.argument("config", required=False, metavar="[CONFIG]")
@click.option(
    "-o", "--output", default="run", show_default=True, help="Write the run into this folder."
)
@click.option(
    "--data", metavar="DIR", help="Train on the shards in a folder that `packer data` wrote."
)
@click.option(
    "--set",
    "changes",
    multiple=True,
    metavar="KEY=VALUE",
    help="Change a setting, such as schedule.iterations=500; repeat for more.",
)
@LIMITS
@click.option("--resume", is_flag=True, help="Continue the run in the folder.")
@click.option(
    "--device", metavar="NAME", help="Train on cpu, cuda or cuda:N; default: cuda if available."
)
@click.option("--show", is_flag=True, help="Print all settings as JSON, and train nothing.")
@JSON
def train(
    config: str | None,
    output: str,
    data: str | None,
    changes: tuple[str, ...],
    cap: int | None,
    size_cap: int | None,
    max_wallclock: float | None,
    code: tuple[str, ...],
    resume: bool,
    device: str | None,
    show: bool,
    as_json: bool,
) -> None:
    """Train the companion model on token shards.

    \b
    packer data books/*.txt -o data
    packer train small-6l --data data --set schedule.iterations=500 \\
        --cap 2MB -o run

    CONFIG is a TOML or JSON file, or a preset: demo (the default), small-6l, baseline-9l,
    11l-backout-int6, 11l-xsa4-ema-int5mlp, 11l-vrl-leaky-gptq. Writes raw, ema and swa
    weights, each packed under the cap and scored, metrics.jsonl, curves.png, and state.pt to
    --resume from. Under torchrun the batch is divided among the processes.
    """
    from packer.train.run_config import run_settings

    options = {
        "data.folder": data,
        "pack.cap": cap,
        "pack.size_cap": size_cap,
        "schedule.max_wallclock": max_wallclock,
        "pack.code": list(code) or None,
    }
    named = [f"{key}={json.dumps(value)}" for key, value in options.items() if value is not None]
    settings = _configured(config, output, named, changes, resume)
    if show:
        print_json(run_settings(settings))
        return
    refuse_overwriting([config, *code], str(Path(output) / "raw.safetensors"))
    torch_device = choose_device(device)
    with joined(torch_device) as (rank, world_size):
        trainer = _trainer(settings, output, resume, torch_device, rank, world_size)
        ending = _ending(trainer)
        trainer.train()
        _finish(trainer, ending, as_json)


def _configured(
    config: str | None, output: str, named: Sequence[str], changes: Sequence[str], resume: bool
) -> TrainConfig:
    """The settings of a run, from its file and options, or from its folder if it is resumed.

    Raises PackerError: the folder holds a run already, or none to resume; invalid settings.
    """
    from packer.train.config import ConfigError
    from packer.train.run_config import read_run

    folder = Path(output)
    saved = folder / "config.json"
    if resume:
        if config is not None or changes:
            raise click.UsageError("--resume uses the run's own settings; give only -o")
        if not saved.is_file():
            raise PackerError(f"{folder}: there is no run to resume; start one without --resume")
        config = str(saved)
    elif (folder / "state.pt").exists():
        raise PackerError(
            f"{folder} holds a run already; continue it (--resume -o {folder}), or name another "
            "folder with -o"
        )
    try:
        return read_run(config, (*named, *changes))
    except ConfigError as error:
        raise PackerError(str(error)) from None


def _trainer(
    settings: TrainConfig, output: str, resume: bool, device: Any, rank: int, world_size: int
) -> Trainer:
    from packer.files import write_json
    from packer.train.attention import attention_name
    from packer.train.batches import windows_of_each
    from packer.train.gradients import autocast_dtype
    from packer.train.log_line import start_line
    from packer.train.loop import STATE, Trainer
    from packer.train.run_config import run_settings
    from packer.train.run_state import read_state
    from packer.train.training_data import open_training_data

    # What cannot be is said before data is read.
    autocast_dtype(settings.run.precision, device)
    windows_of_each(settings.batch, world_size)
    folder = Path(output)
    data = open_training_data(settings)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise PackerError(
            f"{folder} cannot be created: {error.strerror}; name another folder with -o"
        ) from None

    say = _logger(folder / LOG, rank, resume)
    trainer = Trainer(settings, data, folder, device, rank=rank, world_size=world_size, say=say)
    if resume:
        trainer.restore(read_state(folder / STATE))
        say(f"continuing after step {trainer.step}")
    elif rank == 0:
        write_json(folder / "config.json", run_settings(settings))
    parameters = sum(weight.numel() for weight in trainer.weights.values())
    precision = "float32" if trainer.gradients.autocast is None else "bfloat16"
    attention = attention_name(trainer.model.attend)
    say(
        f"{start_line(parameters, settings.run.seed, len(data.train))}, "
        f"{settings.batch.tokens:,} a step, {precision} on {device} x {world_size}, "
        f"{attention}"
    )
    return trainer


def _logger(path: Path, rank: int, resume: bool) -> Callable[[str], None]:
    """A function that prints a line on stderr and adds it to the log; rank 0 only."""

    def log(text: str) -> None:
        if rank == 0:
            say(text, err=True)
            _log(path, text)

    if rank == 0 and not resume:
        path.unlink(missing_ok=True)
    return log


def _log(path: Path, text: str) -> None:
    """Add a line; a full disk does not stop training, which warns when it saves its state."""
    with contextlib.suppress(OSError), path.open("a", encoding="utf-8") as file:
        file.write(text + "\n")


def _ending(trainer: Trainer) -> Ending:
    """What the run will end with; says how long its scores will take."""
    from packer.train.finish import Ending
    from packer.train.log_line import evaluation_line
    from packer.train.validation import Validation

    config, data, ranks = trainer.config, trainer.data, trainer.ranks
    validation = Validation(config, data, trainer.device, ranks)
    if data.validates:
        seconds = validation.seconds(trainer.weights)
        trainer.say(evaluation_line(config, seconds, validation.tokens))
    return Ending(config, data, trainer.folder, trainer.ledger, validation, ranks)


def _finish(trainer: Trainer, ending: Ending, as_json: bool) -> None:
    """Every rank comes here, and the first prints and draws."""
    from packer.progress import ignore_progress, shown

    weights, pins, config = trainer.final_weights(), trainer.pins(), trainer.config
    if trainer.rank == 0:
        with shown("finishing") as progress:
            finished = ending.finish(weights, pins, progress)
        _report(trainer, finished, as_json)
    else:
        finished = ending.finish(weights, pins, ignore_progress)
    if config.pack.cap and all(one.artifact is None for one in finished):
        raise PackerError(
            f"no artifact fits {config.pack.cap:,} bytes; the weights are in {trainer.folder}. "
            f"{finished[0].note}"
        )


def _report(trainer: Trainer, finished: list[Finished], as_json: bool) -> None:
    from packer.train.curves import plot_curves
    from packer.train.finish import best_of
    from packer.train.log_line import best_line, seconds_line

    config, folder = trainer.config, trainer.folder
    picture = folder / "curves.png"
    plot_curves(picture, trainer.metrics.lines, config.pack.size_cap or config.pack.cap)
    best = best_of(finished)
    _log(folder / LOG, seconds_line(trainer.ledger))
    if best is not None:
        _log(folder / LOG, best_line(best))
    if not as_json:
        _show(trainer, finished, best)
        say(f"picture: {picture}")
        return
    print_json(
        {
            "output": str(folder),
            "steps": trainer.step,
            "tokens": trainer.step * config.batch.tokens,
            "averages": [one.to_json() for one in finished],
            "best": None if best is None else best.name,
            "ledger": [vars(row) for row in trainer.ledger.rows()],
            "predicted_size_bytes": trainer.size.estimate,
            "size_share": trainer.size.spent / max(trainer.ledger.training_budget, 1e-9),
            "picture": str(picture),
        }
    )


def _show(trainer: Trainer, finished: list[Finished], best: Finished | None) -> None:
    from packer.reports.tables import number, print_table
    from packer.train.log_line import best_line

    rows = [
        (
            one.name,
            number(None if one.before is None else one.before.bits_per_byte, ".4f"),
            number(None if one.account is None else one.account.total_bytes, ",d"),
            number(None if one.after is None else one.after.bits_per_byte, ".4f"),
            str(one.artifact or one.checkpoint),
        )
        for one in finished
    ]
    print_table(("weights", ">bpb", ">bytes", ">bpb packed", "file"), rows)
    for one in finished:
        if one.note:
            say(f"{one.name}: {one.note}")
    say("")
    budget = {"none": "not charged"}
    print_table(
        ("part", ">seconds", "counts against"),
        [
            (row.part, f"{row.seconds:.1f}", budget.get(row.budget, row.budget))
            for row in trainer.ledger.rows()
        ],
    )
    limit = trainer.config.schedule.max_wallclock
    if limit:
        spent = trainer.ledger.training_budget
        say(f"training budget: {spent:.1f} of {limit:.0f} s, {limit - spent:.1f} left")
    if best is not None:
        say(best_line(best))
