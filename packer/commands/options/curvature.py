"""Options of commands that measure with curvature: a file of it, or a text to calibrate on."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import click

from packer.commands.options.groups import CALIBRATION as CALIBRATION_SECTION
from packer.commands.options.groups import MAIN, OptionGroup, Part, option
from packer.commands.options.model import MODEL, ModelOptions
from packer.commands.options.opening import OPENING
from packer.commands.options.text import CALIBRATION_SIZE, TOKENIZER, TextOptions, calibration_text
from packer.commands.options.types import CONFIG, EXISTING_FILE, WRITABLE

if TYPE_CHECKING:
    from packer.checkpoint.checkpoint import Checkpoint
    from packer.curvature.curvature_set import CurvatureSet


@dataclass(frozen=True)
class CurvatureOptions:
    """Where curvature comes from. out: the file to write curvature made here to. no_calibration:
    without text and file, take none.
    """

    file: str | None
    text: TextOptions
    built: ModelOptions
    out: str | None = None
    no_calibration: bool = False

    @property
    def given(self) -> bool:
        return self.file is not None or self.text.given

    @property
    def may_self_generate(self) -> bool:
        """Whether the model may write the text, as there is no other and no curvature."""
        return not (self.given or self.no_calibration)

    def check(self) -> None:
        """Raises UsageError: options that need --calibration or --model, without it."""
        self.built.check()
        if self.no_calibration and self.given:
            raise click.UsageError("--no-calibration goes without --calibration and --curvature")
        if self.out is not None and (self.file is not None or not self.text.given):
            raise click.UsageError(
                "--curvature-out writes curvature made with --calibration; give that, and not "
                "--curvature"
            )

    @property
    def inputs(self) -> tuple[str | None, ...]:
        """Every file that is read, to be checked against what is written."""
        return (self.file, *self.text.inputs, *self.built.inputs)

    def writes(self, output: str | None) -> tuple[str | None, ...]:
        """Every file that the command writes, to be checked against its inputs.

        Raises UsageError: output and curvature would be the same file.
        """
        if self.file is not None or self.no_calibration:
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
        """The curvature in the file, or None without one. Raises CurvatureError."""
        from packer.curvature.file import read_curvature
        from packer.progress import shown

        with shown("reading curvature"):
            return None if self.file is None else read_curvature(self.file, loaded)


def beside(output: str) -> str:
    """The default file for the curvature of a plan: plan.curvature.safetensors."""
    return f"{output.removesuffix('.json')}.curvature.safetensors"


FILE = option(
    "--curvature",
    "file",
    section=CALIBRATION_SECTION,
    type=EXISTING_FILE,
    help="Read curvature that `packer calibrate` wrote for this checkpoint.",
)
CALIBRATION = option(
    "--calibration",
    section=MAIN,
    multiple=True,
    metavar="PATH",
    help="Calibrate on this text or these shards (unless --curvature is given), and fit the "
    "predicted damage to damage measured on their last fifth; repeat for more.",
)
NO_CALIBRATION = option(
    "--no-calibration",
    section=CALIBRATION_SECTION,
    is_flag=True,
    help="Plan from the weights alone. Default without --calibration: calibrate on text that the "
    "model writes itself, where it can be built.",
)
OUT = option(
    "--curvature-out",
    "out",
    section=CALIBRATION_SECTION,
    type=WRITABLE,
    help="Write the curvature from --calibration to FILE; default: OUTPUT's name, ending in "
    ".curvature.safetensors.",
)


def curvature_options(*more: Part) -> OptionGroup:
    """A group `curvature`: a file, a text, a model, and how the checkpoint is opened."""
    text = OptionGroup("text", calibration_text, CALIBRATION, CALIBRATION_SIZE, TOKENIZER)
    built = OptionGroup("built", ModelOptions, MODEL, CONFIG, OPENING)
    return OptionGroup("curvature", CurvatureOptions, FILE, NO_CALIBRATION, text, *more, built)


CURVATURE = curvature_options()
CURVATURE_KEPT = curvature_options(OUT)
