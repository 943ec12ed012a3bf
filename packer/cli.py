"""The `packer` command: its subcommands, and how every failure is shown."""

from __future__ import annotations

import errno
import io
import re
import sys
from typing import Any

import click

from packer.artifact.reader import ArtifactError
from packer.commands.bundle import bundle
from packer.commands.calibrate import calibrate
from packer.commands.check import check
from packer.commands.code import code
from packer.commands.compare import compare
from packer.commands.data import data
from packer.commands.demo import demo
from packer.commands.diff import diff
from packer.commands.eval import evaluate
from packer.commands.fix import fix
from packer.commands.inspect import inspect
from packer.commands.measure import measure
from packer.commands.pack import pack
from packer.commands.plan import plan
from packer.commands.report import report
from packer.commands.size import size
from packer.commands.train import train
from packer.commands.unpack import unpack
from packer.commands.verify import verify
from packer.errors import STOPPED, PackerError, one_paragraph

OUT_OF_MEMORY = (
    "out of memory; no existing file was modified. Close other programs, or use a machine with "
    "more memory"
)


def _is_out_of_memory(error: Exception) -> bool:
    """numpy's and Python's own error, and RuntimeErrors: torch's on a CPU, and a thread's, which
    had no room for its stack.
    """
    words = "can(?:'t|not) (?:allocate memory|start new thread)|out of memory"
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and re.search(words, str(error), re.I) is not None
    )


class Manual(click.Group):
    """Help in sections; every failure one paragraph and exit code 1, never a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except PackerError as error:
            raise click.ClickException(one_paragraph(str(error))) from None
        except KeyboardInterrupt:
            raise click.ClickException(STOPPED) from None
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise
            where = f"{error.filename}: " if error.filename else ""
            raise click.ClickException(one_paragraph(f"{where}{error.strerror or error}")) from None
        except click.ClickException as error:  # wrong usage, reported by click
            error.message = one_paragraph(error.message)  # type: ignore[misc]
            raise
        except Exception as error:
            if _is_out_of_memory(error):
                raise click.ClickException(OUT_OF_MEMORY) from None
            if not isinstance(error, ArtifactError):
                raise
            raise click.ClickException(one_paragraph(str(error))) from None

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The commands by what they are for, in the order of a job."""
        del ctx
        width = max(len(name) for name in self.commands)
        for title, listed in SECTIONS.items():
            with formatter.section(title):
                rows = [(one.name or "", one.get_short_help_str(80)) for one in listed]
                formatter.write_dl([(name.ljust(width), text) for name, text in rows])


@click.group(cls=Manual, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="bytecap", prog_name="packer")
def main() -> None:
    """Fit a trained language model under a hard byte cap.

    \b
    Run every step once, offline, in minutes:
      packer demo

    \b
    Turn a checkpoint into an artifact:
      packer plan model.pt --cap 16000000 --code train_gpt.py -o plan.json
      packer pack model.pt --plan plan.json -o model.pack
      packer verify model.pack --against model.pt --plan plan.json
      packer report plan.json --html plan.html

    \b
    Calibrate on text, for damage in bits per byte and better rounding:
      packer plan model.pt --cap 16MB --calibration train.txt \\
          --tokenizer bpe.model -o plan.json

    A checkpoint is a .pt, a .safetensors, a .gguf, a folder of shards (as of Hugging Face), or an
    artifact of another author; no code in it is run. A plan fits only the weights it was made for;
    to make the same choices for other weights, use it as a --policy.

    Sizes are decimal: 16MB is 16,000,000 bytes; 16MiB is 16,777,216. With --json, a command prints
    one JSON object on stdout; progress goes to stderr. Files are written whole or not at all. Exit
    codes: 0 done and fits, 1 refused with a reason, 2 wrong usage.

    \b
    Enable tab completion, in ~/.bashrc, ~/.zshrc (after compinit), config.fish:
      eval "$(_PACKER_COMPLETE=bash_source packer)"
      eval "$(_PACKER_COMPLETE=zsh_source packer)"
      _PACKER_COMPLETE=fish_source packer | source
    """
    # Names in a checkpoint, and × and ±, may have letters that a terminal or a log cannot show.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


SECTIONS = {
    "Start here": (demo,),
    "A checkpoint to an artifact": (
        *(inspect, calibrate, measure, plan, pack, bundle, unpack, verify),
    ),
    "What it costs": (report, evaluate, compare, diff),
    "Submissions": (check, fix, code, size),
    "Training": (data, train),
}
for commands in SECTIONS.values():
    for command in commands:
        main.add_command(command)
