"""Sections of --help, so that the few options a beginner needs stand first."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click

MAIN = "Main options"
CALIBRATION = "Calibration options"
MODEL = "Model options"
OUTPUT = "Output options"
ADVANCED = "Advanced options"
SECTIONS = (MAIN, CALIBRATION, MODEL, OUTPUT, ADVANCED)


class SectionedOption(click.Option):
    """An option that knows under which title --help lists it."""

    def __init__(self, *args: Any, section: str, **attributes: Any) -> None:
        super().__init__(*args, **attributes)
        self.section = section


def option(*names: str, section: str, **attributes: Any) -> Callable[[Any], Any]:
    """As click.option, listed under `section`, one of SECTIONS."""
    return click.option(*names, cls=SectionedOption, section=section, **attributes)


class SectionedCommand(click.Command):
    """A command whose --help lists its options by section; those without one are advanced."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows: dict[str, list[tuple[str, str]]] = {title: [] for title in SECTIONS}
        for parameter in self.get_params(ctx):
            record = parameter.get_help_record(ctx)
            if record is not None and isinstance(parameter, click.Option):
                rows[getattr(parameter, "section", ADVANCED)].append(record)
        for title, records in rows.items():
            if records:
                with formatter.section(title):
                    formatter.write_dl(records)
