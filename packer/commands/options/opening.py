"""Options for reading a checkpoint, or another author's artifact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from packer.commands.options.groups import OptionGroup
from packer.commands.options.types import DROP, MAX_MEMORY, TEMPLATE, WEIGHTS, say_notes

if TYPE_CHECKING:
    from packer.checkpoint.checkpoint import Checkpoint


@dataclass(frozen=True)
class Opening:
    """Arguments of `read_checkpoint` other than the path."""

    weights: str | None = None
    drop: Sequence[str] = ()
    template: str | None = None
    max_memory: int | None = None

    @property
    def arguments(self) -> dict[str, Any]:
        """By name, as `read_checkpoint` and `load_weights` take them."""
        return dict(vars(self))

    @property
    def given(self) -> bool:
        return any(self.arguments.values())

    def read(self, source: str) -> Checkpoint:
        """Read the checkpoint, and print its notes on stderr. Raises PackerError."""
        from packer.checkpoint.checkpoint import read_checkpoint

        loaded = read_checkpoint(source, **self.arguments)
        say_notes(loaded.notes)
        return loaded

    @property
    def words(self) -> list[str]:
        """The options as words of a command line."""
        words = []
        for option in ("weights", "template", "max_memory"):
            if self.arguments[option]:
                words += [f"--{option.replace('_', '-')}", str(self.arguments[option])]
        return [*words, *(part for glob in self.drop for part in ("--drop", glob))]


OPENING = OptionGroup("opening", Opening, WEIGHTS, DROP, TEMPLATE, MAX_MEMORY)
CHECKPOINT_OPENING = OptionGroup("opening", Opening, WEIGHTS, DROP)
ARTIFACT_OPENING = OptionGroup("opening", Opening, TEMPLATE, MAX_MEMORY)
