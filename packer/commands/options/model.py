"""How a command was told to build the model of its checkpoint."""

from __future__ import annotations

from dataclasses import dataclass

import click

from packer.commands.options import sections
from packer.commands.options.opening import Opening
from packer.commands.options.sections import option
from packer.commands.options.types import EXISTING_FILE, with_options

COMPANION = option(
    "--config",
    section=sections.MODEL,
    type=EXISTING_FILE,
    help="The companion model's configuration (JSON or TOML); default: the one that the "
    "weights carry, or NAME.config.json beside them.",
)
MODEL = with_options(
    option(
        "--model",
        section=sections.MODEL,
        metavar="FILE.py:NAME",
        help="Build the model by somebody's class or factory instead; this runs their file.",
    ),
    option(
        "--model-config",
        section=sections.MODEL,
        type=EXISTING_FILE,
        help="Its arguments by name (JSON or TOML).",
    ),
    option(
        "--device",
        section=sections.MODEL,
        metavar="NAME",
        help="cpu, cuda or cuda:N; default: cuda where there is one.",
    ),
)


@dataclass(frozen=True)
class ModelOptions:
    """The companion by `config`, or somebody's class `model` by `model_config`."""

    config: str | None
    model: str | None
    model_config: str | None
    device: str | None
    opening: Opening = Opening()  # noqa: RUF009  (frozen)

    @property
    def inputs(self) -> tuple[str | None, ...]:
        """Every file that is read, to be checked against what is written."""
        return (self.config, self.model_config, self.opening.template)

    def check(self) -> None:
        """Raises UsageError: options of the companion and of somebody's model together."""
        if self.model is None and self.model_config is not None:
            raise click.UsageError("--model-config goes with --model; the companion takes --config")

    def check_for_scoring(self) -> None:
        """As `check`, where a --config is not carried inside an artifact. Raises UsageError."""
        self.check()
        if self.model is not None and self.config is not None:
            raise click.UsageError("--config is the companion's; with --model, use --model-config")
