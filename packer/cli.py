"""The `packer` command: its subcommands, and how every failure is shown."""

from __future__ import annotations

import errno
import io
import sys
from typing import Any

import click

from packer.commands.data import data
from packer.commands.demo import demo
from packer.commands.diff import diff
from packer.commands.eval import evaluate
from packer.commands.inspect import inspect
from packer.commands.measure import measure
from packer.commands.pack import pack
from packer.commands.plan import plan
from packer.commands.report import report
from packer.commands.train import train
from packer.commands.unpack import unpack
from packer.commands.verify import verify
from packer.errors import PackerError


class Refusals(click.Group):
    """A group whose commands end in one paragraph and exit code 1, never in a traceback."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except PackerError as error:
            raise click.ClickException(str(error)) from None
        except KeyboardInterrupt:
            raise click.ClickException("stopped; files that stood there are untouched") from None
        except MemoryError:
            raise click.ClickException(
                "out of memory; close other programs, or pack on a machine with more"
            ) from None
        except OSError as error:
            if error.errno == errno.EPIPE:
                raise
            where = f"{error.filename}: " if error.filename else ""
            raise click.ClickException(f"{where}{error.strerror or error}") from None
        except Exception as error:
            from packer.stream_decoder import ArtifactError

            if not isinstance(error, ArtifactError):
                raise
            raise click.ClickException(str(error)) from None


@click.group(cls=Refusals, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="bytecap", prog_name="packer")
def main() -> None:
    """Fit a trained language model under a hard byte cap.

    \b
    Everything once, offline, in minutes:
      packer demo

    \b
    A checkpoint to an artifact:
      packer plan model.pt --cap 16000000 --code train_gpt.py -o plan.json
      packer pack model.pt --plan plan.json -o model.pack
      packer verify model.pack --against model.pt --plan plan.json
      packer report model.pack

    Sizes are decimal: 16MB is 16,000,000 bytes; 16MiB is 16,777,216. Every command that reports
    prints one JSON object with --json. Exit codes: 0 done and fits, 1 refused with a reason,
    2 wrong usage.
    """
    # Names in a checkpoint, and × and ±, may have letters that a terminal or a log cannot show.
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


COMMANDS = (demo, inspect, measure, plan, pack, unpack, verify, report, diff, evaluate, data, train)
for command in COMMANDS:
    main.add_command(command)
