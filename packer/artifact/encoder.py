"""The artifact: quantized tensors by name, as one self-describing file. Layout: docs/format.md."""

from __future__ import annotations

import hashlib
import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from packer.artifact import decoder
from packer.artifact.ans_encoder import (
    CODER_IDS,
    CODER_NAMES,
    compress,
    encode_ans,
    encode_elements,
    encode_kept,
    encode_stream,
    varint,
)
from packer.artifact.reader import ArtifactError
from packer.artifact.step_decoder import STEPPED_BYTE
from packer.artifact.tensor_bytes import dtype_name
from packer.artifact.trellis_encoder import encode_trellis
from packer.quantizers.formats import (
    FACTOR_BITS,
    FormatError,
    LowRank,
    Passthrough,
    QuantizedTensor,
    Stepped,
    TensorFormat,
    Ternary,
    Uniform,
)
from packer.quantizers.step_grid import PER_OCTAVE, nearest_indices

_PASSTHROUGH = ("raw", "fp32", "fp16", "bf16")


@dataclass(frozen=True)
class EncodedTensor:
    """The encoded tensor of a file, and the sizes of its parts.

    block: the record with all streams. side_bytes: the streams of scales and of a correction of low
    rank. payload_bytes: the codes' stream. The rest of the block is framing.
    """

    block: bytes
    coder: str
    side_bytes: int
    payload_bytes: int

    @property
    def size_bytes(self) -> int:
        return len(self.block)


@dataclass(frozen=True, eq=False)
class Artifact:
    """tensors: quantized tensors by name. coders: coder per tensor, None lets the packer choose.

    ties: tied name -> stored name. metadata: text to text, for instance the model's configuration.
    Equal contents give equal bytes, whatever the insertion order.
    """

    tensors: Mapping[str, QuantizedTensor]
    ties: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    coders: Mapping[str, str | None] = field(default_factory=dict)
    cap_bytes: int = 0
    code_bytes: int = 0

    def to_bytes(self) -> bytes:
        shapes = {name: (dtype_name(q.dtype), q.shape) for name, q in self.tensors.items()}
        coder = "numpy" if "numpy" in self.coders.values() else None
        header = encode_header(shapes, self.ties, self.metadata, coder)
        blocks = [
            encode_tensor(self.tensors[name], self.coders.get(name)).block
            for name in sorted(self.tensors)
        ]
        return assemble(header, blocks, self.cap_bytes, self.code_bytes)

    @staticmethod
    def from_bytes(data: bytes, max_bytes: int = decoder.MAX_DECODED_BYTES) -> Artifact:
        """Raises ArtifactError: not an artifact, damaged, or too large decoded."""
        stored = decoder.parse(data, max_bytes)
        return Artifact(
            {tensor.name: quantized_tensor(tensor) for tensor in stored.tensors},
            stored.ties,
            stored.metadata,
            {tensor.name: coder_name(tensor) for tensor in stored.tensors},
            stored.cap_bytes,
            stored.code_bytes,
        )


def encode_header(
    tensors: Mapping[str, tuple[str, Sequence[int]]],
    ties: Mapping[str, str],
    metadata: Mapping[str, str],
    coder: str | None = None,
) -> bytes:
    """The header stream; tensors: name -> (dtype name, shape). No choice changes it.

    coder: "numpy" keeps to compressors that Python has.
    """
    fields = {
        "metadata": dict(metadata),
        "tensors": [[name, tensors[name][0], list(tensors[name][1])] for name in sorted(tensors)],
        "ties": dict(ties),
    }
    raw = json.dumps(fields, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
    names = ("raw", "zlib", "lzma") if coder == "numpy" else ("raw", "zlib", "brotli", "lzma")
    packed = {name: compress(raw, name) for name in names}
    smallest = min(packed, key=lambda name: len(packed[name]))
    return varint(len(raw)) + _stream(CODER_IDS[smallest], packed[smallest])


def header_bytes(header: bytes) -> int:
    """The part of the file that no choice changes: magic to header, and the checksum."""
    return len(decoder.MAGIC) + 1 + 16 + len(header) + decoder.CHECKSUM_BYTES


def assemble(header: bytes, blocks: Sequence[bytes], cap_bytes: int, code_bytes: int) -> bytes:
    """The file: magic, version, cap, code, header, blocks in order of name, checksum."""
    start = decoder.MAGIC + bytes([decoder.VERSION]) + struct.pack("<QQ", cap_bytes, code_bytes)
    body = b"".join([start, header, *blocks])
    return body + hashlib.blake2b(body, digest_size=decoder.CHECKSUM_BYTES).digest()


def encode_tensor(quantized: QuantizedTensor, coder: str | None = None) -> EncodedTensor:
    """The block of one tensor: the same bytes at any place in the file."""
    if isinstance(quantized.format, Passthrough):
        return _encode_kept(quantized, coder)
    if isinstance(quantized.format, Stepped):
        return _encode_stepped(quantized, quantized.format, coder)
    return _encode_scaled(quantized, coder)


def _encode_kept(quantized: QuantizedTensor, coder: str | None) -> EncodedTensor:
    payload = encode_kept(quantized.codes.numpy(), coder)
    block = format_bytes(quantized.format) + _stream(*payload)
    return EncodedTensor(block, CODER_NAMES[payload[0]], 0, len(payload[1]))


def _encode_scaled(quantized: QuantizedTensor, coder: str | None) -> EncodedTensor:
    scale = quantized.side["scale"]
    payload = encode_stream(quantized.codes.numpy(), coder, scale.float().numpy())
    side_coder = scale_coder(coder)
    corrected = isinstance(quantized.format, LowRank)
    side = _encode_numbers(scale, side_coder)
    factors = _encode_factors(quantized, side_coder) if corrected else []
    block = b"".join(
        [
            format_bytes(quantized.format),
            *(_stream(*stream) for stream in (side, payload, *factors)),
        ]
    )
    side_bytes = sum(len(data) for _, data in (side, *factors))
    return EncodedTensor(block, CODER_NAMES[payload[0]], side_bytes, len(payload[1]))


def scale_coder(coder: str | None) -> str | None:
    """The coder for scales and factors: free of constriction if the codes' coder is, else the
    smallest.
    """
    return "numpy" if coder == "numpy" else None


def _encode_stepped(
    quantized: QuantizedTensor, format: Stepped, coder: str | None
) -> EncodedTensor:
    row, column = quantized.side["row"], quantized.side.get("column")
    steps = _encode_steps(row, format.rows, scale_coder(coder))
    if column is not None:
        steps += _encode_steps(column, True, scale_coder(coder))
    scales = row.numpy(), None if column is None else column.numpy()
    name = coder or "ans"
    codes = quantized.codes.numpy()
    if format.trellis:
        payload = encode_trellis(codes, *scales, coder=name)
    else:
        payload = encode_ans(codes, *scales, coder=name)
    shrink = bytes([int(quantized.side["shrink"])])
    block = format_bytes(format) + shrink + steps + _stream(CODER_IDS[name], payload)
    return EncodedTensor(block, name, len(shrink + steps), len(payload))


def _encode_steps(steps: torch.Tensor, several: bool, coder: str | None) -> bytes:
    """The steps of one axis: base, and where there are several the stride and their stream."""
    indices = nearest_indices(steps)
    if not several:
        return int(indices[0]).to_bytes(2, "little", signed=True)
    middle = int(indices.max() + indices.min()) // 2 if indices.size else 0
    strides = (PER_OCTAVE, 4, 2, 1)
    stride = next(s for s in strides if not ((indices - middle) % s).any())
    symbols = ((indices - middle) // stride)[None]
    coded = encode_stream(symbols.clip(-127, 127).astype(np.int8), coder)
    return middle.to_bytes(2, "little", signed=True) + bytes([stride]) + _stream(*coded)


def _encode_numbers(values: torch.Tensor, coder: str | None) -> tuple[int, bytes]:
    """The stream of floats [count], as byte planes."""
    planes = values.contiguous().view(torch.uint8).reshape(-1, values.dtype.itemsize).numpy()
    return encode_elements(planes, coder)


def _encode_factors(quantized: QuantizedTensor, coder: str | None) -> list[tuple[int, bytes]]:
    """The streams of a correction of low rank."""
    left, right = (quantized.side[name].numpy() for name in ("left", "right"))
    steps = _encode_numbers(quantized.side["rank_scale"], coder)
    return [steps, encode_stream(left, coder), encode_stream(right, coder)]


def _stream(coder: int, data: bytes) -> bytes:
    return bytes([coder]) + varint(len(data)) + data


def format_bytes(format: TensorFormat) -> bytes:
    """The first bytes of a block."""
    if isinstance(format, Stepped):
        return bytes([STEPPED_BYTE | format.trellis << 2 | format.rows << 1 | int(format.columns)])
    if isinstance(format, LowRank):
        first = decoder.LOW_RANK + FACTOR_BITS.index(format.bits)
        return bytes([first, format.rank, format_byte(format.base)])
    return bytes([format_byte(format)])


def format_byte(format: Passthrough | Uniform | Ternary) -> int:
    if isinstance(format, Passthrough):
        return _PASSTHROUGH.index(format.dtype)
    if isinstance(format, Ternary):
        return decoder.TERNARY
    row = format.axis == "row"
    return 0x80 | (format.bits - 1) << 3 | row << 2 | format.wide << 1 | int(format.scale32)


def stored_format(stored: decoder.StoredTensor) -> TensorFormat:
    """The format of a tensor that decoder.parse has accepted."""
    if stored.steps:
        return Stepped(*(stored.format & bit != 0 for bit in (2, 1, 4)))
    base = format_of(stored.format)
    if not stored.rank or isinstance(base, Passthrough):
        return base
    return LowRank(base, stored.rank, stored.factor_bits)


def format_of(byte: int) -> Passthrough | Uniform | Ternary:
    """The format of a byte that decoder.parse has accepted."""
    if byte < len(_PASSTHROUGH):
        return Passthrough(_PASSTHROUGH[byte])
    if byte == decoder.TERNARY:
        return Ternary()
    axis = "row" if byte & 4 else "tensor"
    return Uniform((byte >> 3 & 7) + 1, axis, bool(byte & 2), bool(byte & 1))


def quantized_tensor(stored: decoder.StoredTensor) -> QuantizedTensor:
    """Raises ArtifactError: streams are damaged, or codes leave the format's range."""
    dtype = getattr(torch, stored.dtype)
    side: dict[str, torch.Tensor] = {}
    if stored.steps:
        parts = decoder.tensors_of(decoder.decode_stepping(stored))
        codes, side["row"], column, side["shrink"] = parts
        side |= {} if column is None else {"column": column}
    elif stored.scale is None:
        itemsize = getattr(torch, decoder.kept_name(stored)).itemsize
        codes = torch.from_numpy(decoder.decode_kept(stored, itemsize))
    else:
        codes, side["scale"] = decoder.tensors_of(decoder.decode_scaled(stored))
    if stored.rank:
        factors = decoder.tensors_of(decoder.decode_factors(stored))
        side |= zip(("left", "right", "rank_scale"), factors, strict=True)
    try:
        return QuantizedTensor(stored_format(stored), stored.shape, dtype, codes, side)
    except FormatError as error:
        raise ArtifactError(f"tensor {stored.name}: {error}") from None


def coder_name(stored: decoder.StoredTensor) -> str:
    """The coder of a tensor's codes. Raises ArtifactError: unknown."""
    if stored.codes[0] not in CODER_NAMES:
        raise ArtifactError(f"tensor {stored.name}: coder {stored.codes[0]} is unknown")
    return CODER_NAMES[stored.codes[0]]
