"""Artifacts on disk, recognized by their magic; every error names the file."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path

from packer.artifact.reader import ArtifactError
from packer.errors import PackerError

PathLike = str | os.PathLike[str]


def is_artifact(path: PathLike) -> bool:
    """Whether a file starts with the magic of our artifacts."""
    from packer.artifact.decoder import MAGIC

    if not Path(path).is_file():
        return False
    with Path(path).open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC


@contextlib.contextmanager
def reading_artifact(path: PathLike) -> Iterator[None]:
    """Names the file in a refusal to read it as an artifact. Raises PackerError."""
    try:
        yield
    except ArtifactError as error:
        hint = "" if is_artifact(path) else "; name a file that packer pack wrote"
        raise PackerError(f"{path}: {error}{hint}") from None
    except OSError as error:
        raise PackerError(f"{path} cannot be read: {error.strerror}") from None
