"""Writing files and folders so that nothing is lost, and reading our JSON files."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from packer.errors import OutputError, PlanError

MAX_PREFIX = 32  # letters of a name, of up to four bytes each, kept in that of a temporary file


@contextlib.contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary sibling to write; on success it is synced and takes the place of `path`.

    A link is followed: the file that it leads to is replaced, and the link stays. On any failure,
    Ctrl-C included, the temporary file is removed and `path` is as it was.
    Raises OutputError: not a file, or the folder is missing, not writable, or full.
    """
    target = Path(os.path.realpath(path))
    try:
        _refuse_other_than_files(path, target)
        # A long name must leave room for what makes the temporary one different.
        prefix = f".{target.name[:MAX_PREFIX]}."
    except OSError as error:
        raise OutputError(_refusal(path, target, error)) from None
    # Named before it is made: Ctrl-C on the way back from making it must find it.
    temporary = target.with_name(f"{prefix}{secrets.token_hex(8)}.tmp")
    try:
        temporary.touch(0o600, exist_ok=False)
        yield temporary
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        temporary.chmod(_mode(target))
        temporary.replace(target)
    except Exception as error:
        refused = _refused_by_system(error)
        if refused is None:
            raise
        raise OutputError(_refusal(path, target, refused)) from None
    finally:
        with contextlib.suppress(NotADirectoryError):  # where the folder is none
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def replacing_folder(path: str | os.PathLike[str]) -> Iterator[Path]:
    """Yields a temporary sibling folder to fill; on success it takes the place of `path`, which
    must not exist or be empty. On any failure it is removed. Raises OutputError.
    """
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.name[:MAX_PREFIX]}.{secrets.token_hex(8)}.tmp")
    try:
        if target.exists() and (not target.is_dir() or any(target.iterdir())):
            raise OutputError(f"{path}: exists and is not empty; name a new folder")
        temporary.mkdir()
        yield temporary
        if target.exists():
            target.rmdir()
        temporary.rename(target)
    except OSError as error:
        raise OutputError(
            f"{path}: cannot be written: {error.strerror or error}; nothing was written. Name "
            "another folder"
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _refused_by_system(error: Exception) -> OSError | None:
    """What the system refused: torch chains its error, safetensors spells its number."""
    if isinstance(error, OSError):
        return error
    if isinstance(error, RuntimeError) and isinstance(error.__context__, OSError):
        return error.__context__
    spelled = re.search(r"os error (\d+)", str(error))
    return OSError(int(spelled[1]), os.strerror(int(spelled[1]))) if spelled else None


def _refuse_other_than_files(path: str | os.PathLike[str], target: Path) -> None:
    """A rename would put a plain file in the place of a device, for whoever may write there."""
    if target.is_dir():
        raise OutputError(f"{path} is a folder; name a file to write")
    if target.exists() and not target.is_file():
        raise OutputError(f"{path} is a device or a pipe, which is not replaced; name a file")


def _mode(target: Path) -> int:
    """The permissions a plain open() would give, or those of the file that is replaced."""
    if target.exists():
        return target.stat().st_mode & 0o777
    mask = os.umask(0)
    os.umask(mask)
    return 0o666 & ~mask


def _refusal(path: str | os.PathLike[str], target: Path, error: OSError) -> str:
    if error.errno == errno.ENAMETOOLONG:
        return f"{path}: the name is too long; nothing was written. Choose a shorter one."
    untouched = "what stood there is untouched" if target.exists() else "nothing was written"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"{path}: the disk is full; {untouched}. Free some space or name another folder."
    if error.errno == errno.EFBIG:
        return f"{path}: no file may grow so large here (ulimit -f); {untouched}. Allow it more."
    if error.errno == errno.ENOENT and not target.parent.exists():
        return f"{path}: the folder {target.parent} does not exist; {untouched}. Create it first."
    if error.errno == errno.ENOTDIR:
        return f"{path}: {target.parent} is a file, not a folder; {untouched}. Name another folder."
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOENT):
        return f"{path}: writing there is not allowed; {untouched}. Name another folder."
    return f"{path}: {error.strerror or error}; {untouched}. Name another place."


@contextlib.contextmanager
def spelled_as_text(path: Path) -> Iterator[str]:
    """A spelling of a file's path for libraries that want UTF-8, which names need not be.

    Raises OSError: the file cannot be opened.
    """
    if os.fsencode(path).decode("utf-8", "replace") == str(path):
        yield str(path)
        return
    with path.open("rb") as file:
        yield f"/dev/fd/{file.fileno()}"


def write_bytes(path: str | os.PathLike[str], data: bytes) -> None:
    """`data` as the whole content of `path`, all or nothing. Raises OutputError."""
    with replacing(path) as temporary:
        temporary.write_bytes(data)


def write_json(path: str | os.PathLike[str], value: dict[str, Any]) -> None:
    """One value a line at the first two levels, so that a plan can be read and compared by eye."""
    write_bytes(path, describe_json(value).encode())


def describe_json(value: dict[str, Any]) -> str:
    fields = []
    for key, entry in value.items():
        if isinstance(entry, list) and entry:
            rows = ",\n".join("    " + json.dumps(row) for row in entry)
            fields.append(f"  {json.dumps(key)}: [\n{rows}\n  ]")
        else:
            fields.append(f"  {json.dumps(key)}: {json.dumps(entry)}")
    return "{\n" + ",\n".join(fields) + "\n}\n"


def read_json(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The object in a JSON file. Raises PlanError: missing, unreadable, or not an object."""
    source = Path(path)
    try:
        value = json.loads(source.read_text(encoding="utf-8"))
    except OSError as error:
        raise PlanError(f"{source} cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise PlanError(
            f"{source} is not a JSON file ({error}); name one that packer plan or measure wrote"
        ) from None
    if not isinstance(value, dict):
        raise PlanError(
            f"{source} holds a {type(value).__name__} where an object belongs; name a file that "
            "packer plan or measure wrote"
        )
    return value


def is_json(path: str | os.PathLike[str]) -> bool:
    """Whether a file starts like a JSON object: our candidates and plans do. Pipes are not read."""
    try:
        if not Path(path).is_file():
            return False
        with Path(path).open("rb") as file:
            return file.read(64).lstrip()[:1] == b"{"
    except OSError:
        return False
