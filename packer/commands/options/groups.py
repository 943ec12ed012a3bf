"""How options are declared: under a section of --help, where the few that a beginner needs stand
first, and gathered into values that a command gets as one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import click

Part = Callable[[Any], Any]
Command = TypeVar("Command", bound=Callable[..., Any])
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


def with_options(*options: Callable[[Any], Any]) -> Callable[[Command], Command]:
    """The options as one decorator, listed in --help in this order."""

    def decorate(command: Command) -> Command:
        for add in reversed(options):
            command = add(command)
        return command

    return decorate


class OptionGroup:
    """A decorator: the command gets `build` of the parts' values, by their names, as `name`.

    A part is an option, several options as one decorator, or another group; --help lists them in
    this order. What has no part keeps the default of `build`.
    """

    def __init__(self, name: str, build: Callable[..., Any], *parts: Part) -> None:
        self.name = name
        self.build = build
        self.parts = parts

    def __call__(self, command: Command) -> Command:
        names = [name for part in self.parts for name in _names_of(part)]

        @functools.wraps(command)
        def gathering(**options: Any) -> Any:
            values = {name: options.pop(name) for name in names}
            return command(**options, **{self.name: self.build(**values)})

        return with_options(*self.parts)(gathering)  # type: ignore[return-value]


def _names_of(part: Part) -> Iterator[str]:
    """Under which names the part's values arrive."""
    if isinstance(part, OptionGroup):
        yield part.name
        return

    def asked() -> None:
        """Stands for the command."""

    options: list[click.Parameter] = part(asked).__click_params__
    yield from (option.name for option in reversed(options) if option.name is not None)
