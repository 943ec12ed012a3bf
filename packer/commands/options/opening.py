"""Options for reading a checkpoint, or another author's artifact."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from packer.commands.options.groups import OptionGroup
from packer.commands.options.types import DROP, MAX_MEMORY, TEMPLATE, WEIGHTS, say_notes
from packer.printable import spelled

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

    def load(self, source: str, *, artifact: bool = False) -> Checkpoint:
        """Read the checkpoint, with progress. Raises PackerError."""
        from packer.checkpoint.checkpoint import read_checkpoint
        from packer.progress import shown

        with shown(f"reading {spelled(source)}"):
            return read_checkpoint(source, **self.arguments, artifact=artifact)

    def read(self, source: str) -> Checkpoint:
        """Read the checkpoint, and print its notes on stderr. Raises PackerError."""
        loaded = self.load(source)
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
