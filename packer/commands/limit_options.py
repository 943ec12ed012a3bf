"""What a plan must respect, as a command was told: the cap, and what else counts against it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from packer.account import Limits


@dataclass(frozen=True)
class LimitOptions:
    """cap: in bytes; None: not given. loader: whether the loader's bytes count too."""

    cap: int | None
    code: tuple[str, ...] = ()
    margin: int = 0
    pins: tuple[tuple[str, str], ...] = ()
    loader: bool = False

    @property
    def pinned(self) -> dict[str, str]:
        """Selector -> choice; the last pin on a selector wins."""
        return dict(self.pins)

    def count(self) -> Limits:
        """The limits in bytes, every file weighed. Raises PackerError: a file cannot be read."""
        from packer.account import Limits, count_code

        assert self.cap is not None
        loader_bytes = _loader_bytes() if self.loader else 0
        return Limits(self.cap, count_code(self.code), loader_bytes, self.margin)


def _loader_bytes() -> int:
    from packer.ship import loader_source

    return len(loader_source().encode())
