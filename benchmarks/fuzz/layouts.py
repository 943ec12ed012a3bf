"""Damage that reaches the parsers behind a check: lengths, checksums and codecs are right again.

A reader that stops every mutant at its checksum would otherwise never be tested any further.
"""

from __future__ import annotations

import hashlib
import io
import json
import lzma
import math
import re
import struct
import zipfile
import zlib
from dataclasses import replace
from random import Random
from typing import Any

import brotli
import zstandard

from benchmarks.fuzz.mutations import INTERESTING, mutate_bytes, mutate_json, spell
from packer.artifact.ans_encoder import compress, varint
from packer.artifact.decoder import CHECKSUM_BYTES, LOW_RANK, StoredArtifact, StoredTensor, parse

Stream = tuple[int, Any]
CODERS = ("raw", "zstd", "brotli", "lzma", "zlib")


def with_checksum(body: bytes) -> bytes:
    return body + hashlib.blake2b(body, digest_size=CHECKSUM_BYTES).digest()


def mutate_artifact(rng: Random, data: bytes) -> bytes:
    """An artifact whose checksum is right and whose header, blocks or streams are not."""
    action = rng.randrange(5)
    if action == 0:
        return with_checksum(mutate_bytes(rng, data[:-CHECKSUM_BYTES]))
    stored = parse(data)
    blocks = [block(tensor) for tensor in stored.tensors]
    header = header_value(stored)
    if action == 1:
        return describe_artifact(rng, spell(rng, mutate_json(rng, header)), blocks)
    at = rng.randrange(len(blocks))
    if action == 2:
        blocks[at] = mutate_bytes(rng, blocks[at], blocks)
    elif action == 3:
        _swap_blocks(rng, header, blocks)
    else:
        blocks[at] = block(_with_other_streams(rng, stored.tensors[at]))
    return describe_artifact(rng, json.dumps(header).encode(), blocks)


def header_value(stored: StoredArtifact) -> dict[str, Any]:
    return {
        "metadata": stored.metadata,
        "tensors": [[one.name, one.dtype, list(one.shape)] for one in stored.tensors],
        "ties": stored.ties,
    }


def describe_artifact(rng: Random, header: bytes, blocks: list[bytes]) -> bytes:
    fixed = b"\x93BYTECAP\x01" + struct.pack("<QQ", 16_000_000, 0)
    length = len(header) if rng.random() < 0.95 else rng.choice(INTERESTING)
    packed = stream(compressed(rng, header))
    return with_checksum(fixed + varint(length) + packed + b"".join(blocks))


def block(tensor: StoredTensor) -> bytes:
    """The bytes of one tensor as docs/format.md lays them out."""
    parts = [bytes([tensor.format])]
    if tensor.rank:
        parts.insert(0, bytes([LOW_RANK + {2: 0, 4: 1, 8: 2}[tensor.factor_bits], tensor.rank]))
    if tensor.steps:
        parts.append(bytes([tensor.shrink]))
    for steps in tensor.steps:
        parts.append(steps.base.to_bytes(2, "little", signed=True))
        if steps.stream is not None:
            parts += [bytes([steps.stride]), stream(steps.stream)]
    if tensor.scale is not None:
        parts.append(stream(tensor.scale))
    return b"".join([*parts, stream(tensor.codes), *map(stream, tensor.factors)])


def stream(one: Stream) -> bytes:
    return bytes([one[0]]) + varint(len(one[1])) + bytes(one[1])


def compressed(rng: Random, raw: bytes) -> Stream:
    name = rng.choice(CODERS)
    return {"raw": 0, "zstd": 2, "brotli": 3, "lzma": 4, "zlib": 5}[name], compress(raw, name)


def _swap_blocks(rng: Random, header: dict[str, Any], blocks: list[bytes]) -> None:
    """Two tensors that have each other's bytes, or one that has another's shape."""
    one, other = rng.randrange(len(blocks)), rng.randrange(len(blocks))
    if rng.random() < 0.5:
        blocks[one], blocks[other] = blocks[other], blocks[one]
    else:
        header["tensors"][one][2] = [rng.choice(INTERESTING[:10]) for _ in range(rng.randrange(4))]


def _with_other_streams(rng: Random, tensor: StoredTensor) -> StoredTensor:
    codes = _other_stream(rng, tensor.codes, tensor.rows * tensor.columns)
    if tensor.steps and rng.random() < 0.5:
        steps = [
            replace(
                one,
                base=rng.choice((-384, -385, 383, 384, 32767, -32768, one.base + 1)),
                stride=rng.choice((0, 1, 2, 4, 8, 255)),
                stream=one.stream and _other_stream(rng, one.stream, tensor.rows),
            )
            for one in tensor.steps
        ]
        return replace(tensor, steps=tuple(steps), shrink=rng.choice((0, 127, 128, 255)))
    if tensor.factors and rng.random() < 0.5:
        at = rng.randrange(3)
        factors = list(tensor.factors)
        factors[at] = _other_stream(rng, factors[at], tensor.rows)
        return replace(tensor, factors=tuple(factors))
    if tensor.scale is not None and rng.random() < 0.3:
        return replace(tensor, scale=_other_stream(rng, tensor.scale, 2 * tensor.rows))
    return replace(tensor, codes=codes)


def _other_stream(rng: Random, one: Stream, length: int) -> Stream:
    """Changed bytes under the same coder, or other contents, many of them, under another."""
    if rng.random() < 0.6:
        return one[0], mutate_bytes(rng, bytes(one[1]))
    wanted = rng.choice((length, length, 0, length + 1, 1 << 20))
    return compressed(rng, rng.randbytes(wanted) if wanted < 1 << 16 else bytes(wanted))


def mutate_safetensors(rng: Random, data: bytes) -> bytes:
    """A header that is JSON and has its length right, over data that may be changed too."""
    if rng.random() < 0.2:
        return mutate_bytes(rng, data)
    length = int.from_bytes(data[:8], "little")
    header, rest = data[8 : 8 + length], data[8 + length :]
    if rng.random() < 0.2:
        rest = mutate_bytes(rng, rest)
    else:
        header = spell(rng, mutate_json(rng, json.loads(header)))
    return len(header).to_bytes(8, "little") + header + rest


def mutate_model(rng: Random, data: bytes) -> bytes:
    """Tensors of a safetensors file under other names and in other shapes of as many values."""
    length = int.from_bytes(data[:8], "little")
    header, rest = json.loads(data[8 : 8 + length]), data[8 + length :]
    for _ in range(rng.randrange(1, 4)):
        name = rng.choice(sorted(header))
        entry = header[name]
        action = rng.randrange(4)
        if action == 0 and "shape" in entry:
            size = math.prod(entry["shape"])
            entry["shape"] = rng.choice(([size], [1, size], [size, 1], entry["shape"][::-1]))
        elif action == 1:
            number = rng.choice(("1", "2", "7", "987654", "9" * 5000))
            header[re.sub(r"blocks\.\d+", f"blocks.{number}", name)] = header.pop(name)
        elif action == 2:
            other = rng.choice(sorted(header))
            header[name], header[other] = header[other], entry
        else:
            header[rng.choice((name + "x", name.partition(".")[2], name))] = header.pop(name)
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + rest


def mutate_torch_zip(rng: Random, data: bytes) -> bytes:
    """One record of the zip changed, its CRC right; or names and order of the records."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        records = [(info.filename, archive.read(info)) for info in archive.infolist()]
    at = rng.randrange(len(records))
    if rng.random() < 0.5:
        at = next(i for i, (name, _) in enumerate(records) if name.endswith("data.pkl"))
    name, content = records[at]
    action = rng.randrange(8)
    if action == 0:
        del records[at]
    elif action == 1:
        records.append((name, mutate_bytes(rng, content)))
    elif action == 2:
        records[at] = (rng.choice(("", "archive/data.pkl", name + "x", "../x/data.pkl")), content)
    else:
        records[at] = (name, mutate_bytes(rng, content, [text for _, text in records]))
    packed = io.BytesIO()
    method = zipfile.ZIP_DEFLATED if rng.random() < 0.03 else zipfile.ZIP_STORED
    with zipfile.ZipFile(packed, "w", method) as archive:
        for name, content in records:
            archive.writestr(zipfile.ZipInfo(name), content, method)
    return packed.getvalue()


def recompressed(rng: Random, inner: bytes) -> bytes:
    """The bytes under a codec, as trainers write them."""
    codec = rng.randrange(5)
    if codec == 0:
        return zlib.compress(inner, 1)
    if codec == 1:
        return zstandard.ZstdCompressor(level=1).compress(inner)
    if codec == 2:
        return lzma.compress(inner, preset=0)
    if codec == 3:
        return bytes(brotli.compress(inner, quality=1))
    planes = b"".join(inner[first::2] for first in range(2))
    return bytes(brotli.compress(b"BSHF\x02" + planes, quality=1))
