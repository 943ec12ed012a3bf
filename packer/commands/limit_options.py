"""What a plan must respect, as a command was told: the cap, and what else counts against it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from packer.account import Limits


@dataclass(frozen=True)
class LimitOptions:
    """cap: in bytes; None: not given. loader: whether the loader's bytes count too. coder: of every
    tensor; None: the smallest. trellis: whether codes on a trellis are offered.
    """

    cap: int | None
    code: tuple[str, ...] = ()
    margin: int = 0
    pins: tuple[tuple[str, str], ...] = ()
    loader: bool = False
    coder: str | None = None
    trellis: bool = False

    @property
    def pinned(self) -> dict[str, str]:
        """Selector -> choice; the last pin on a selector wins."""
        return dict(self.pins)

    def count(self) -> Limits:
        """The limits in bytes, every file weighed; of a loader the most that it can be, in place
        of which a plan counts its own. Raises PackerError: a file cannot be read.
        """
        from packer.account import Limits, count_code
        from packer.ship import LARGEST_LOADER

        assert self.cap is not None
        return Limits(self.cap, count_code(self.code), LARGEST_LOADER * self.loader, self.margin)
