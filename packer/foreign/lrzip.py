"""The program lrzip, which some artifacts need: one of its streams to bytes, and back."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

from packer.errors import CheckpointError, PackerError

LRZIP_MAGIC = b"LRZI"
SECONDS = 600
SPARE_BYTES = 1 << 20


def lrzip_program() -> str | None:
    """Its path, where it is installed."""
    return shutil.which("lrzip")


def lrzip_compress(data: bytes) -> bytes:
    """One lrzip stream by zpaq at level 9, as the contest's artifacts have.

    Raises PackerError: the program is not installed, or fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        plain, packed = Path(folder) / "group", Path(folder) / "group.lrz"
        plain.write_bytes(data)
        command = [lrzip_program() or "lrzip", "-z", "-L", "9", "-q", "-o", str(packed), str(plain)]
        try:
            subprocess.run(command, capture_output=True, check=True)
        except (OSError, subprocess.CalledProcessError) as error:
            raise PackerError(f"lrzip cannot compress {len(data):,} bytes: {error}") from None
        return packed.read_bytes()


def _limit_files(length: int) -> None:
    """In the program's own process: no file of its may grow beyond what was declared."""
    import resource

    resource.setrlimit(resource.RLIMIT_FSIZE, (length + SPARE_BYTES, length + SPARE_BYTES))


def lrzip_expand(stream: bytes, length: int, limit: int, source: str) -> bytes:
    """Exactly `length` bytes out of one lrzip stream, by the program of that name.

    Raises CheckpointError: it is not installed, fails, or gives another length.
    """
    if stream[:4] != LRZIP_MAGIC:
        raise CheckpointError(f"{source}: a group of codes is no lrzip stream; the file is damaged")
    # Its header declares the size that the stream expands to, in bytes 6 to 13.
    declared = int.from_bytes(stream[6:14], "little")
    if declared != length or length > limit:
        raise CheckpointError(
            f"{source}: a group of codes would expand to {declared:,} bytes where {length:,} "
            f"belong and {limit:,} are allowed; the file is damaged, or allow more with "
            "--max-memory"
        )
    program = lrzip_program()
    if program is None:
        raise CheckpointError(
            f"{source}: its codes are compressed by lrzip, a program that is not installed; "
            "install the package lrzip (apt-get install lrzip, brew install lrzip)"
        )
    with tempfile.TemporaryDirectory() as folder:
        packed, unpacked = Path(folder) / "group.lrz", Path(folder) / "group"
        packed.write_bytes(stream)
        command = [program, "-d", "-q", "-f", "-o", str(unpacked), str(packed)]
        try:
            done = subprocess.run(
                command,
                capture_output=True,
                timeout=SECONDS,
                check=False,
                preexec_fn=lambda: _limit_files(length),
            )
        except subprocess.TimeoutExpired:
            raise CheckpointError(f"{source}: lrzip took more than {SECONDS} seconds") from None
        if done.returncode or not unpacked.is_file() or unpacked.stat().st_size != length:
            message = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
            raise CheckpointError(f"{source}: lrzip cannot read a group ({' '.join(message)})")
        return unpacked.read_bytes()
