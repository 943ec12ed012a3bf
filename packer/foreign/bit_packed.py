"""Codes of 2 to 7 bits as one stream of bits: w6_e8_clean_per_row_v1 and its like.

The dict of int8_clean_per_row_v1, where a tensor whose qmeta has `packed` holds uint8: the codes of
`num_bits` bits in two's complement, one behind the other, the least significant bit first, the last
byte filled up. `shape` is that of the codes. A format of another name packs in another way.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping

import numpy as np
import torch

from packer.errors import CheckpointError
from packer.foreign.keys import OWN_READER, is_on, shown, table
from packer.foreign.tensors import plain

BIT_PACKED = re.compile(r"w(?:[2-8]|16)_e(?:[2-8]|16)_clean_per_row_v1")
BITS = range(2, 8)


def unpacked(value: Mapping[str, object]) -> dict[str, object]:
    """The same dict with int8 codes, and without the keys about packing.

    Raises CheckpointError: a shape or a number of bits that does not fit the bytes.
    """
    codes = dict(table(value.get("quantized"), "quantized"))
    entries = dict(table(value.get("qmeta", {}), "qmeta"))
    for name, entry in entries.items():
        if isinstance(entry, Mapping) and name in codes and is_on(entry, "packed", name):
            codes[name] = _codes(name, codes[name], entry)
            entries[name] = {key: one for key, one in entry.items() if key != "packed"}
    return {**value, "quantized": codes, "qmeta": entries}


def _codes(name: str, stored: object, entry: Mapping[str, object]) -> torch.Tensor:
    packed, bits, shape = plain(stored, name), entry.get("num_bits"), entry.get("shape")
    sizes = _sizes(shape)
    if type(bits) is not int or bits not in BITS or sizes is None:
        raise CheckpointError(
            f"{name}: is packed with num_bits {shown(bits)} and shape {shown(shape)}; 2 to 7 bits "
            f"and a list of sizes are known; {OWN_READER}"
        )
    count = math.prod(sizes)
    needed = -(-count * bits // 8)
    if packed.dtype != torch.uint8 or packed.numel() != needed:
        raise CheckpointError(
            f"{name}: {packed.numel():,} × {packed.dtype} for {count:,} codes of {bits} bits; "
            f"{needed:,} bytes belong there"
        )
    stream = np.unpackbits(packed.numpy().reshape(-1), count=count * bits, bitorder="little")
    places = np.array([*(1 << place for place in range(bits - 1)), -(1 << bits - 1)], np.int8)
    codes = stream.reshape(count, bits).astype(np.int8) @ places  # two's complement
    return torch.from_numpy(codes.reshape(sizes))


def _sizes(shape: object) -> tuple[int, ...] | None:
    sizes = tuple(shape) if isinstance(shape, list | tuple) else (None,)
    return sizes if all(type(size) is int and 0 <= size < 1 << 48 for size in sizes) else None
