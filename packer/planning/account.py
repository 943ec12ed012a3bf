"""The account: where every byte under the cap goes."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from packer.errors import PackerError, PlanError

MAX_SIZE_BYTES = 2**62  # sums of a few sizes stay within 64 bits


@dataclass(frozen=True)
class CodeFile:
    """A file counted as code."""

    path: str
    size_bytes: int


@dataclass(frozen=True)
class Limits:
    """What a plan must respect: the cap, and what else counts against it.

    loader_bytes: size of the loader, 0 without one; a plan replaces it by the size of its own.
    margin_bytes: left free on purpose. encoder_bytes: what a bundle adds to its loader, 0 without
    a bundle; a plan replaces this too.
    """

    cap_bytes: int
    code: tuple[CodeFile, ...] = ()
    loader_bytes: int = 0
    margin_bytes: int = 0
    encoder_bytes: int = 0

    def __post_init__(self) -> None:
        sizes = {
            "cap": self.cap_bytes,
            "loader": self.loader_bytes,
            "margin": self.margin_bytes,
            "encoder": self.encoder_bytes,
            **{f"code file {file.path}": file.size_bytes for file in self.code},
        }
        for what, size in sizes.items():
            if not (isinstance(size, int) and 0 <= size < MAX_SIZE_BYTES):
                raise PlanError(
                    f"the {what} is {size} bytes; whole numbers from 0 to {MAX_SIZE_BYTES - 1:,} "
                    "are allowed"
                )

    @property
    def code_bytes(self) -> int:
        files = sum(file.size_bytes for file in self.code)
        return files + self.loader_bytes + self.encoder_bytes

    def describe_code(self) -> str:
        """What was counted as code, as text."""
        parts = [f"{file.path} {file.size_bytes:,}" for file in self.code]
        if self.encoder_bytes:
            parts.append(f"the bundle's decoder {self.loader_bytes:,} and encoder")
            parts[-1] += f" {self.encoder_bytes:,}"
        elif self.loader_bytes:
            parts.append(f"the loader {self.loader_bytes:,}")
        if not parts:
            return "no code is counted (name files with --code) and no loader"
        return "code: " + ", ".join(parts) + ("" if self.loader_bytes else "; no loader is counted")


def count_code(paths: Iterable[str | os.PathLike[str]]) -> tuple[CodeFile, ...]:
    """The size of every file named as code; a file named twice counts once.

    Raises PackerError: a path that is not a readable file.
    """
    sizes: dict[str, int] = {}
    for path in paths:
        try:
            sizes[str(Path(path).resolve())] = len(Path(path).read_bytes())
        except OSError as error:
            raise PackerError(f"code file {path} cannot be read: {error.strerror}") from None
    return tuple(CodeFile(path, size) for path, size in sizes.items())


@dataclass(frozen=True)
class Account:
    """code: files named as code, and the loader if there is one. header: magic, names, shapes,
    framing and checksum. side: scales. payload: codes. All in bytes; cap 0: no cap was given.
    """

    cap_bytes: int
    code_bytes: int
    header_bytes: int
    side_bytes: int
    payload_bytes: int

    @property
    def artifact_bytes(self) -> int:
        return self.header_bytes + self.side_bytes + self.payload_bytes

    @property
    def total_bytes(self) -> int:
        return self.code_bytes + self.artifact_bytes

    @property
    def unused_bytes(self) -> int:
        return self.cap_bytes - self.total_bytes

    def __str__(self) -> str:
        parts = (
            f"code {self.code_bytes:,} + header {self.header_bytes:,} + "
            f"side values {self.side_bytes:,} + payload {self.payload_bytes:,} = "
            f"{self.total_bytes:,}"
        )
        return parts + describe_rest(self.cap_bytes, self.unused_bytes)


def describe_rest(cap_bytes: int, unused_bytes: int) -> str:
    """What is left under the cap: the end of every account.

    >>> describe_rest(16_000_000, 1_234)
    ' of 16,000,000, 1,234 left'
    >>> describe_rest(16_000_000, -5)
    ' of 16,000,000, OVER by 5'
    """
    if not cap_bytes:
        return " (no cap given)"
    rest = f"{unused_bytes:,} left" if unused_bytes >= 0 else f"OVER by {-unused_bytes:,}"
    return f" of {cap_bytes:,}, {rest}"
