"""PGRP, the frame of the contest's last leaders, in both of its versions.

A u32 follows the magic: version 1 has its number of streams there, which is 9; version 2 a 2.
"""

from __future__ import annotations

from packer.foreign.lrzip_groups import Load, read_groups
from packer.foreign.sorted_frame import VERSION, read_sorted_frame

PGRP = b"PGRP"


def read_pgrp(data: bytes, source: str, limit: int, load: Load) -> dict[str, object]:
    """The dict {"w", "m"} of the artifact. load: reads the container inside.

    Raises CheckpointError: lengths that do not add up, lrzip is not installed, damaged streams.
    """
    sorted_rows = len(data) >= 8 and int.from_bytes(data[4:8], "little") == VERSION
    read = read_sorted_frame if sorted_rows else read_groups
    return read(data, source, limit, load)
