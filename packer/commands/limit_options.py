"""What a plan must respect, as a command was told: the cap, and what else counts against it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from packer.account import Limits


@dataclass(frozen=True)
class LimitOptions:
    """cap: in bytes; None: not given. loader: whether the loader's bytes count too. coder: of every
    tensor; None: the smallest. trellis: whether codes on a trellis are offered. bundle: whether a
    bundle's bytes count. inline: the script that it is put into; None: a file of its own.
    calibrate: whether a bundle calibrates too, which asks for one.
    """

    cap: int | None
    code: tuple[str, ...] = ()
    margin: int = 0
    pins: tuple[tuple[str, str], ...] = ()
    loader: bool = False
    coder: str | None = None
    trellis: bool = False
    bundle: bool = False
    inline: str | None = None
    calibrate: bool = False

    @property
    def ways(self) -> bool:
        """Whether anything says how codes are to be chosen and stored."""
        return bool(self.coder or self.trellis)

    @property
    def pinned(self) -> dict[str, str]:
        """Selector -> choice; the last pin on a selector wins."""
        return dict(self.pins)

    def count(self) -> Limits:
        """The limits in bytes, every file weighed; of a loader or bundle the most that it can be,
        in place of which a plan counts its own. Raises PackerError: a file cannot be read.
        """
        from packer.counted_code import limits_of

        assert self.cap is not None
        return limits_of(
            self.cap,
            self.code,
            self.loader,
            self.margin,
            self.bundle or bool(self.inline) or self.calibrate,
            self.inline,
            self.calibrate,
        )
