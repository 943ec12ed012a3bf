"""What torch.save wrote, in either of its two containers, to Python values; nothing is executed."""

from __future__ import annotations

import _codecs
import contextlib
import mmap
import re
import warnings
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, BinaryIO

import torch

from packer.checkpoint.known_files import known_by_records, not_a_checkpoint
from packer.errors import CheckpointError, reason
from packer.files import spelled_as_text

if not hasattr(torch.serialization, "safe_globals"):
    # What newer versions than 2.4 allow by themselves: how pickles of protocol 2 spell bytes.
    torch.serialization.add_safe_globals([_codecs.encode])

RESAVE = "re-save the weights alone, torch.save(model.state_dict(), 'weights.pt'), and use that"
# The pickled integer that files began with before torch.save wrote zip files.
LEGACY_MAGIC = bytes.fromhex("8a0a6cfc9c46f9206aa85019")
BLOCK_BYTES = 1 << 20


def is_torch(head: bytes) -> bool:
    """Whether a file starts as torch.save writes it."""
    return head.startswith(b"PK\x03\x04") or (head[:1] == b"\x80" and LEGACY_MAGIC in head)


def load_torch(file: Path | BinaryIO, head: bytes, source: str = "") -> object:
    """What torch.save wrote, in either of its two containers; a path is mapped into memory."""
    source = source or str(file)
    if head.startswith(b"PK\x03\x04"):
        _check_zip(file, source)
        return _torch_load(file, source, mapped=isinstance(file, Path))
    if not isinstance(file, Path):
        return _torch_load(file, source, mapped=False)
    # A pickle declares lengths of texts, and an open file allocates that much before it reads.
    with file.open("rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as whole:
        return _torch_load(whole, source, mapped=False)


def _check_zip(file: Path | BinaryIO, source: str) -> None:
    """Refuse zip files that torch.save did not write or that are damaged.

    Loading maps the records into memory without a look at their CRC, so they are read once here.
    """
    try:
        with zipfile.ZipFile(file) as archive:
            records = archive.infolist()
            _check_torch_archive(source, records)
            for record in records:
                # torch writes 0 where its checksums are switched off (set_crc32_options).
                if record.CRC != 0:
                    with archive.open(record) as stream:
                        while stream.read(BLOCK_BYTES):
                            pass
    except (CheckpointError, OSError, MemoryError):
        raise
    except Exception as error:  # zipfile raises a dozen types on damaged files
        raise CheckpointError(
            f"{source}: the file is truncated or damaged ({reason(error)}); copy or save it again"
        ) from error


def _check_torch_archive(source: str, records: Sequence[zipfile.ZipInfo]) -> None:
    names = [record.filename.partition("/")[2] for record in records]
    if "constants.pkl" in names:
        raise CheckpointError(f"{source}: is a TorchScript program, not a state dict; {RESAVE}")
    known = None if "data.pkl" in names else known_by_records(one.filename for one in records)
    if known is not None:
        raise CheckpointError(not_a_checkpoint(Path(source), *known))
    if "data.pkl" not in names:
        raise CheckpointError(
            f"{source}: is a zip file, but torch.save did not write it (it has no data.pkl); "
            f"{RESAVE}"
        )
    if any(record.compress_type != zipfile.ZIP_STORED for record in records):
        raise CheckpointError(
            f"{source}: its records are compressed, which torch.save never does; load it where it "
            f"was made and {RESAVE}"
        )


def _torch_load(file: Path | BinaryIO | mmap.mmap, source: str, *, mapped: bool) -> object:
    if not isinstance(file, Path):
        file.seek(0)  # a mmap reads like a file
    try:
        with contextlib.ExitStack() as stack:
            opened: Any = file
            if isinstance(file, Path):
                opened = stack.enter_context(spelled_as_text(file))
            stack.enter_context(warnings.catch_warnings())
            # torch warns about its own internals here; a user can do nothing about them.
            warnings.simplefilter("ignore")
            loaded: object = torch.load(opened, map_location="cpu", weights_only=True, mmap=mapped)
            return loaded
    except MemoryError:
        raise
    except Exception as error:  # damaged pickles raise nearly every type there is
        if "Cannot allocate memory" in str(error):  # a map of the file itself
            raise MemoryError(str(error)) from None
        needed = re.search(r"GLOBAL ([\w.]+)", str(error))
        if needed:
            raise CheckpointError(
                f"{source}: to open it, the object {needed[1]} would have to be unpickled, which "
                f"can run any code, so it is refused. Where you trust it, load it and {RESAVE}"
            ) from error
        raise CheckpointError(
            f"{source}: torch cannot read it ({reason(error)}); it is damaged, or holds more than "
            f"tensors: copy it again, or {RESAVE}"
        ) from error
