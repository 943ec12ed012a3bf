"""Options that belong together, handed to a command as one value."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator
from typing import Any

import click

from packer.commands.options.types import Command, with_options

Part = Callable[[Any], Any]


class OptionGroup:
    """A decorator: the command gets `made` of the parts' values, by their names, as `name`.

    A part is an option, several options as one decorator, or another group; --help lists them in
    this order. What has no part keeps the default of `made`.
    """

    def __init__(self, name: str, made: Callable[..., Any], *parts: Part) -> None:
        self.name = name
        self.made = made
        self.parts = parts

    def __call__(self, command: Command) -> Command:
        names = [name for part in self.parts for name in _names_of(part)]

        @functools.wraps(command)
        def gathering(**given: Any) -> Any:
            values = {name: given.pop(name) for name in names}
            return command(**given, **{self.name: self.made(**values)})

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
