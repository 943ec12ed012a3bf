"""The files next to the weights in a folder, and the same files carried inside an artifact."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

from packer.artifact.artifact_file import is_artifact, reading_artifact
from packer.checkpoint.folder import CONFIGURATION, INDEX, MAIN_NAMES, QUANTIZATION, SUFFIXES
from packer.errors import CheckpointError, PackerError

CARRIED = "file:"  # before a file's name, in an artifact's metadata: a text in UTF-8
CARRIED_BYTES = "bytes:"  # the same for any other file, one Latin-1 character per byte
MAX_CARRIED_BYTES = 48_000_000  # of all files together: a header decodes to 64 MiB at most
MAX_READ_BYTES = 1 << 30  # of a file next to the weights
WEIGHTS = tuple(suffix for kind in SUFFIXES for suffix in kind)
PathLike = str | os.PathLike[str]


def carried_metadata(names: Iterable[str], checkpoint: PathLike) -> dict[str, str]:
    """Metadata that carries files inside an artifact.

    names: paths of files, or names and globs of files in the checkpoint's folder.
    Raises CheckpointError: no such file, two of one name, weights, or more than fits.
    """
    files: dict[str, bytes] = {}
    for path in (path for name in names for path in _matches(name, checkpoint)):
        if path.suffix in WEIGHTS or INDEX.fullmatch(path.name):
            raise CheckpointError(f"{path}: holds weights, which are packed and not included")
        data = _read(path)
        if path.name == CONFIGURATION and QUANTIZATION.encode() in data:
            raise CheckpointError(
                f"{path}: has a {QUANTIZATION}, which the packed weights no longer follow; include "
                "a copy without it"
            )
        if files.setdefault(path.name, data) != data:
            raise CheckpointError(f"{path}: another file called {path.name} is included already")
        total = sum(map(len, files.values()))
        if total > MAX_CARRIED_BYTES:
            raise CheckpointError(
                f"{path}: with it the included files have {total:,} bytes, and an artifact "
                f"carries {MAX_CARRIED_BYTES:,} at most; leave it out"
            )
    return dict(_metadata_entry(name, data) for name, data in files.items())


def carried_files(metadata: Mapping[str, str]) -> dict[str, bytes]:
    """The files that an artifact's metadata carries, by name.

    Raises PackerError: names or contents that `carried_metadata` does not write.
    """
    files = {}
    for key, text in metadata.items():
        kind, colon, name = key.partition(":")
        if kind + colon not in (CARRIED, CARRIED_BYTES):
            continue
        if not name or Path(name).name != name or name[0] == "." or not name.isprintable():
            raise PackerError(f"the artifact carries a file {name!r}, which is no plain name")
        if Path(name).suffix in WEIGHTS or name in files:
            raise PackerError(f"the artifact carries a file {name!r} beside its own weights")
        try:
            files[name] = text.encode("utf-8" if kind + colon == CARRIED else "latin-1")
        except UnicodeEncodeError:
            raise PackerError(f"the artifact's {name} has characters that are no bytes") from None
    return files


def without_files(metadata: Mapping[str, str]) -> dict[str, str]:
    """An artifact's metadata without the files it carries."""
    return {
        key: text for key, text in metadata.items() if not key.startswith((CARRIED, CARRIED_BYTES))
    }


class Beside:
    """Files by name: in a folder, in the folder of a file, or inside an artifact."""

    def __init__(self, source: PathLike, metadata: Mapping[str, str] | None = None) -> None:
        """source: a checkpoint's file or folder, or an artifact. metadata: of the artifact, if
        already read. Raises PackerError.
        """
        self.source = Path(source)
        self._carried: dict[str, bytes] | None = None
        if is_artifact(source):
            self._carried = carried_files(_metadata(source) if metadata is None else metadata)

    @property
    def is_model(self) -> bool:
        """Whether the files belong to this model: in an artifact, in the model's own folder, or
        next to a weight file with a standard name.
        """
        named = Path(self.source.name).stem.partition(".")[0] in MAIN_NAMES
        return self._carried is not None or self.source.is_dir() or named

    @property
    def folder(self) -> Path:
        return self.source if self.source.is_dir() else self.source.parent

    def __contains__(self, name: str) -> bool:
        if self._carried is not None:
            return name in self._carried
        return (self.folder / name).is_file()

    def read(self, name: str) -> bytes:
        """Raises CheckpointError: it cannot be read."""
        if self._carried is not None:
            return self._carried[name]
        return _read(self.folder / name)

    def spelled(self, name: str) -> str:
        """The location of a file, in words."""
        if self._carried is not None:
            return f"{self.source}'s {name}"
        return str(self.folder / name)


def _metadata(artifact: PathLike) -> Mapping[str, str]:
    from packer.artifact import decoder

    with reading_artifact(artifact):
        return decoder.parse(Path(artifact).read_bytes()).metadata


def _matches(name: str, checkpoint: PathLike) -> list[Path]:
    """The file at this path, or those of this name or glob in the checkpoint's folder."""
    if Path(name).is_file():
        return [Path(name)]
    beside = Path(checkpoint)
    folder = beside if beside.is_dir() else beside.parent
    if (folder / name).is_file():
        return [folder / name]
    globbed = [] if Path(name).is_absolute() else sorted(folder.glob(name))
    matches = [
        path
        for path in globbed
        if path.is_file() and path.suffix not in WEIGHTS and not INDEX.fullmatch(path.name)
    ]
    if not matches:
        raise CheckpointError(f"{name}: there is no such file to include, here or in {folder}")
    return matches


def _metadata_entry(name: str, data: bytes) -> tuple[str, str]:
    """(key, text) in the metadata."""
    try:
        return CARRIED + name, data.decode("utf-8")
    except UnicodeDecodeError:
        return CARRIED_BYTES + name, data.decode("latin-1")


def _read(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_READ_BYTES:
            raise CheckpointError(f"{path}: has more than {MAX_READ_BYTES:,} bytes")
        return path.read_bytes()
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
