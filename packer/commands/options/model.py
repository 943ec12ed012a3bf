"""Options for building the model of a checkpoint."""

from __future__ import annotations

from dataclasses import dataclass

import click

from packer.commands.options.groups import MODEL as MODEL_SECTION
from packer.commands.options.groups import option, with_options
from packer.commands.options.opening import Opening
from packer.commands.options.types import EXISTING_FILE

COMPANION = option(
    "--config",
    section=MODEL_SECTION,
    type=EXISTING_FILE,
    help="Read the companion model's configuration (JSON or TOML); default: the one stored with "
    "the weights, or NAME.config.json next to them.",
)
MODEL = with_options(
    option(
        "--model",
        section=MODEL_SECTION,
        metavar="FILE.py:NAME",
        help="Build the model with a class or function of your own; this runs the file.",
    ),
    option(
        "--model-config",
        section=MODEL_SECTION,
        type=EXISTING_FILE,
        help="Read the arguments of --model by name (JSON or TOML).",
    ),
    option(
        "--device",
        section=MODEL_SECTION,
        metavar="NAME",
        help="Compute on cpu, cuda or cuda:N; default: cuda if available.",
    ),
)


@dataclass(frozen=True)
class ModelOptions:
    """The companion model from `config`, or a user's class `model` with `model_config`."""

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
        """Raises UsageError: options of the companion and of a user's model together."""
        if self.model is None and self.model_config is not None:
            raise click.UsageError(
                "--model-config goes with --model; the companion model takes --config"
            )

    def check_for_scoring(self) -> None:
        """As `check`, for commands that do not store --config in an artifact. Raises UsageError."""
        self.check()
        if self.model is not None and self.config is not None:
            raise click.UsageError(
                "--config is for the companion model; with --model, use --model-config"
            )
