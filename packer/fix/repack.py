"""Re-encodes another author's artifact: the same codes and scales in a file of ours."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from packer.artifact import decoder
from packer.artifact.encoder import EncodedTensor, assemble, encode_header, encode_tensor
from packer.artifact.tensor_bytes import bytes_of
from packer.errors import PackerError
from packer.foreign.tensors import ForeignArtifact
from packer.planning.account import Account
from packer.progress import Progress, WeightCount, ignore_progress
from packer.quantizers.formats import Passthrough, QuantizedTensor
from packer.quantizers.quantize import dequantize


class RepackError(PackerError):
    """A re-encoded artifact does not decode to the same weights."""


@dataclass(frozen=True)
class Repacked:
    """A foreign artifact re-encoded. data: the file, already decoded and compared.

    tensors, encoded: the stored tensors, and their coded blocks. ties: equal tensors, stored once.
    header: the part of the file that does not depend on the formats.
    """

    data: bytes
    tensors: Mapping[str, QuantizedTensor]
    encoded: Mapping[str, EncodedTensor]
    ties: Mapping[str, str]
    header: bytes
    account: Account


def repack(
    foreign: ForeignArtifact,
    *,
    cap_bytes: int = 0,
    code_bytes: int = 0,
    metadata: Mapping[str, str] | None = None,
    progress: Progress = ignore_progress,
) -> Repacked:
    """The artifact's codes and scales in a file of ours, whose weights are bit-identical.

    cap_bytes and code_bytes are written into the file; it may well be over that cap.
    Raises RepackError: a weight differs after decoding.
    """
    quantized = {name: tensor.quantized for name, tensor in foreign.tensors.items()}
    kept, ties = _tied(quantized)
    encoded, count = {}, WeightCount(progress, weights_of(kept))
    for name in sorted(kept):
        count.begin(name)
        encoded[name] = encode_smallest(kept[name])
    shapes = {
        name: (str(one.dtype).removeprefix("torch."), one.shape) for name, one in kept.items()
    }
    header = encode_header(shapes, ties, metadata or {})
    data, account = assembled(header, encoded, cap_bytes, code_bytes)
    count.begin("decoding again")
    check_same_weights(data, quantized, foreign.source)
    return Repacked(data, kept, encoded, ties, header, account)


def weights_of(tensors: Mapping[str, QuantizedTensor]) -> dict[str, int]:
    """How many weights each tensor has."""
    return {name: math.prod(tensor.shape) for name, tensor in tensors.items()}


def assembled(
    header: bytes, encoded: Mapping[str, EncodedTensor], cap_bytes: int, code_bytes: int
) -> tuple[bytes, Account]:
    """(the file, its account) of encoded tensors."""
    blocks = [encoded[name].block for name in sorted(encoded)]
    data = assemble(header, blocks, cap_bytes, code_bytes)
    side = sum(tensor.side_bytes for tensor in encoded.values())
    payload = sum(tensor.payload_bytes for tensor in encoded.values())
    return data, Account(cap_bytes, code_bytes, len(data) - side - payload, side, payload)


def encode_smallest(quantized: QuantizedTensor) -> EncodedTensor:
    """The tensor under the coder that makes it smallest.

    Only floats have more than one coder worth trying: brotli stores the noise of their low bytes
    raw, where ANS pays for a table of it.
    """
    encoded = encode_tensor(quantized)
    if isinstance(quantized.format, Passthrough):
        other = encode_tensor(quantized, "brotli")
        encoded = min(encoded, other, key=lambda one: one.size_bytes)
    return encoded


def _tied(
    tensors: Mapping[str, QuantizedTensor],
) -> tuple[dict[str, QuantizedTensor], dict[str, str]]:
    """(distinct tensors, name -> the earlier name of an equal one).

    Constant tensors cost nothing and often agree by chance; they stay apart.
    """
    kept: dict[str, QuantizedTensor] = {}
    ties: dict[str, str] = {}
    seen: dict[str, str] = {}
    for name, one in tensors.items():
        constant = not one.codes.numel() or bool((one.codes == one.codes.flatten()[0]).all())
        first = name if constant else seen.setdefault(_digest(one), name)
        if first == name:
            kept[name] = one
        else:
            ties[name] = first
    return kept, ties


def _digest(one: QuantizedTensor) -> str:
    digest = hashlib.blake2b(f"{one.format} {one.dtype} {one.shape}".encode())
    for part in (one.codes, *one.side.values()):
        digest.update(bytes_of(part).numpy().data)
    return digest.hexdigest()


def check_same_weights(data: bytes, quantized: Mapping[str, QuantizedTensor], source: str) -> None:
    """Decodes a file and compares every bit with the artifact's weights. Raises RepackError."""
    decoded = decoder.read_weights(data)
    if set(decoded) != set(quantized):
        raise RepackError(f"{source}: names differ after re-encoding; nothing was written")
    for name, one in quantized.items():
        weight = dequantize(one)
        same = decoded[name].dtype == weight.dtype and decoded[name].shape == weight.shape
        if not same or not torch.equal(bytes_of(decoded[name]), bytes_of(weight)):
            raise RepackError(
                f"{source}: {name} is not bit-identical after re-encoding; nothing was written"
            )
