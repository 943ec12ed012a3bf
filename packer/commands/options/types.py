"""Options that several commands share, and the types that parse them."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Callable, Sequence
from decimal import Decimal
from pathlib import Path
from typing import Any

import click

from packer.commands.options.groups import MAIN, MODEL, OUTPUT, option
from packer.planning.account import MAX_SIZE_BYTES
from packer.planning.options import MeasureOptions, PathLike, PlanLimits
from packer.printable import printable_lines, spelled

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

# Commas only group thousands; underscores as in Python.
_SIZE = re.compile(r"([0-9]{1,3}(?:,[0-9]{3})+|[0-9]+(?:_[0-9]+)*)(\.[0-9]+)?\s*([a-zA-Z]*)")
_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9}
_UNITS |= {"kib": 2**10, "mib": 2**20, "gib": 2**30}


class Size(click.ParamType):  # type: ignore[type-arg]
    """A number of bytes: 16000000, 16_000_000, 16MB (decimal), 15.5MB, 16MiB."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        if isinstance(value, int):
            return value
        match = _SIZE.fullmatch(value.strip())
        unit = _UNITS.get(match[3].lower()) if match else None
        if match is None or unit is None:
            hint = "; commas only group thousands" if "," in value else ""
            self.fail(
                f"{value!r} is not a size; write 16000000, 16MB, 15.5MB or 16MiB{hint}", param, ctx
            )
        size = Decimal(match[1].replace(",", "").replace("_", "") + (match[2] or "")) * unit
        if size >= MAX_SIZE_BYTES:
            self.fail(
                f"{value!r} is more than the {MAX_SIZE_BYTES - 1:,} bytes allowed", param, ctx
            )
        if size != int(size):
            self.fail(f"{value!r} is not a whole number of bytes", param, ctx)
        return int(size)


class Finite(click.FloatRange):
    """A number in a range, neither NaN nor infinite."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        number = super().convert(value, param, ctx)
        if not math.isfinite(number):
            self.fail(f"{value!r} is not a finite number", param, ctx)
        return number


class Assignment(click.ParamType):  # type: ignore[type-arg]
    """Two texts joined by an equals sign, such as SELECTOR=CHOICE; what follows the last one."""

    def __init__(self, form: str, example: str) -> None:
        self.name, self.example = form.lower(), f"{form}, such as {example}"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        key, equals, text = str(value).rpartition("=")
        if not equals or not key or not text:
            self.fail(f"{value!r} is not {self.example}", param, ctx)
        return key, text


EXISTING = click.Path(exists=True)
EXISTING_FILE = click.Path(exists=True, dir_okay=False)
WRITABLE = click.Path(dir_okay=False)
POSITIVE = click.IntRange(min=1)


def positive(ctx: click.Context, param: click.Parameter, value: int | None) -> int | None:
    if value is not None and value <= 0:
        raise click.BadParameter(f"{value} bytes; a cap is at least 1 byte", ctx, param)
    return value


def cap_option(
    *, required: bool, help: str = "Limit code and artifact together to SIZE bytes."
) -> Callable[[Any], Any]:
    return option(
        "--cap", section=MAIN, type=Size(), required=required, callback=positive, help=help
    )


CODE = click.option(
    "--code", "code", multiple=True, type=EXISTING_FILE, help="Count FILE as code; repeat for more."
)
MARGIN = click.option(
    "--margin", type=Size(), default=0, help="Leave SIZE bytes unused.", metavar="SIZE"
)
PINS = click.option(
    "--pin",
    "pins",
    multiple=True,
    type=Assignment("SELECTOR=CHOICE", "embeddings=fp16"),
    help="Fix tensors to a choice. A selector is a name or glob, a role (mlp-in), embeddings, "
    "late-k or late-k:2: --pin embeddings=fp16 --pin 'blocks.*.attn.c_k.weight=int6.row'. "
    "If several match a tensor, the last one wins.",
)
CODER = click.option(
    "--coder",
    type=click.Choice(["numpy"]),
    help="Choose the entropy coder for all tensors. Files written with numpy can be decoded "
    "without constriction. Default: whichever is smallest.",
)
TRELLIS = click.option(
    "--trellis",
    is_flag=True,
    help="Also try trellis-coded quantization, where curvature is known: about 5 % fewer bytes, at "
    "some 25 microseconds a weight. Related methods may be patented: see docs/methods.md.",
)
CONFIG = option(
    "--config",
    section=MODEL,
    type=EXISTING_FILE,
    help="Store FILE, the model's configuration (JSON or TOML), inside the artifact.",
)
WEIGHTS = option(
    "--weights",
    section=MODEL,
    metavar="KEY",
    help="Read the weights from this entry of the checkpoint, such as ema or model.encoder; . "
    "reads every entry, with dotted names.",
)
DROP = option(
    "--drop",
    section=MODEL,
    multiple=True,
    metavar="GLOB",
    help="Leave out tensors whose names match, such as 'mtp_heads.*'; repeat for more.",
)
TEMPLATE = option(
    "--template",
    section=MODEL,
    type=EXISTING,
    metavar="CKPT",
    help="Take the dtypes that another author's artifact does not store from CKPT, a checkpoint "
    "of the same model; default: float32.",
)
MAX_MEMORY = click.option(
    "--max-memory",
    type=Size(),
    metavar="SIZE",
    help="Refuse compressed files that expand beyond SIZE; default: 256 times the file's size, at "
    "most 8 GiB.",
)
JSON = option(
    "--json", "as_json", section=OUTPUT, is_flag=True, help="Print one JSON object on stdout."
)


def plan_limits(cap: int | None, margin: int = 0, **others: Any) -> PlanLimits:
    """cap: 0 in the limits where none is given. others: fields of PlanLimits by name."""
    return PlanLimits(cap or 0, margin_bytes=margin, **others)


def measure_options(
    pins: tuple[tuple[str, str], ...] = (), coder: str | None = None, trellis: bool = False
) -> MeasureOptions:
    """pins: (selector, choice); the last on a selector wins."""
    return MeasureOptions(dict(pins), {}, coder, trellis)


def read_config(path: str | None) -> dict[str, str]:
    """Metadata that carries a model configuration; empty without one.

    Raises BadParameter: neither JSON nor TOML, no settings, or values that JSON cannot represent.
    """
    if path is None:
        return {}
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise click.BadParameter(f"{path} is not UTF-8 text: {error}") from None
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = _read_toml(path, text)
    if not isinstance(value, dict) or not value:
        raise click.BadParameter(f"{path} holds no settings; name a configuration in JSON or TOML")
    try:
        text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    except (TypeError, ValueError) as error:  # dates and NaN
        raise click.BadParameter(f"{path} cannot be written as JSON: {error}") from None
    return {"config": text}


def _read_toml(path: str, text: str) -> Any:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise click.BadParameter(f"{path} is neither JSON nor TOML: {error}") from None


def refuse_overwriting(inputs: Sequence[PathLike | None], output: str | None) -> None:
    """Raises UsageError: the output is one of the inputs, or a shard in a folder that is one."""
    if output is None:
        return
    target = Path(output).resolve()
    for source in (Path(path).resolve() for path in inputs if path is not None):
        torch_shard = target.suffix in (".bin", ".pt", ".pth") and target.exists()
        in_folder = source.is_dir() and source == target.parent
        shard = in_folder and (target.suffix == ".safetensors" or torch_shard)
        if source == target or shard:
            raise click.UsageError(f"{output} is an input; name another file to write")


def print_json(value: dict[str, Any]) -> None:
    click.echo(json.dumps(value))


def say(text: str, *, err: bool = False, lines: bool = False) -> None:
    """Print a line, with unprintable characters escaped. lines: its line feeds are kept."""
    click.echo(printable_lines(text) if lines else spelled(text), err=err)


def say_notes(notes: Sequence[str]) -> None:
    """Print on stderr which entries of a checkpoint were read, stripped or left out."""
    for note in notes:
        say(f"note: {note}", err=True)


def say_warnings(warnings: Sequence[str]) -> None:
    """Print warnings on stderr."""
    for warning in warnings:
        say(f"warning: {warning}", err=True)
