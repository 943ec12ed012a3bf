"""Tensors of somebody else's artifact: the parts as found, and the same weights as one of ours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from packer.artifact.tensor_bytes import bytes_of
from packer.errors import CheckpointError
from packer.quantizers.formats import (
    FormatError,
    Passthrough,
    QuantizedTensor,
    Uniform,
    element_count,
    row_shape,
)
from packer.quantizers.quantize import dequantize

PASSTHROUGHS = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}
Parts = Mapping[str, torch.Tensor]


@dataclass(frozen=True, eq=False)
class ForeignTensor:
    """One tensor as the artifact stores it.

    stored: what the artifact calls or makes of it, such as int6.row or gptq (int6)+lqer_asym.
    parts: its codes, scales and factors by name, exactly as found; codes may be one per byte.
    quantized: a value that dequantizes to the artifact's own weights, bit for bit. It holds the
    original codes and scales where one of our formats can represent them, else the weights
    themselves.
    """

    stored: str
    parts: Parts
    quantized: QuantizedTensor

    @property
    def is_inflated(self) -> bool:
        """Whether none of our formats represents its codes, so that it is stored as floats."""
        return len(self.parts) > 1 and isinstance(self.quantized.format, Passthrough)

    @property
    def raw_bytes(self) -> int:
        """Bytes of all parts before the artifact's compressor."""
        return sum(part.nbytes for part in self.parts.values())

    @property
    def entropy_bits(self) -> float:
        """Order-0 entropy of all parts: of each integer part's values, of each byte of the rest."""
        return sum(part_entropy_bits(part) for part in self.parts.values())


@dataclass(frozen=True, eq=False)
class ForeignArtifact:
    """A whole artifact. layout: its name for people. payload_bytes: after decompression.

    notes: what was assumed or left out, in words for people.
    """

    source: str
    layout: str
    codec: str
    file_bytes: int
    payload_bytes: int
    tensors: Mapping[str, ForeignTensor]
    notes: tuple[str, ...]

    def weights(self) -> dict[str, torch.Tensor]:
        """The weights that the artifact's own reader gives."""
        return {name: dequantize(tensor.quantized) for name, tensor in self.tensors.items()}


def part_entropy_bits(part: torch.Tensor) -> float:
    """Bits of an ideal order-0 coder; floats count as independent bytes, one table per byte."""
    if part.numel() == 0:
        return 0.0
    if part.itemsize == 1:
        planes = part.contiguous().reshape(1, -1).view(torch.uint8)
    else:
        planes = part.contiguous().reshape(-1, 1).view(torch.uint8).T
    return sum(_entropy_bits(plane) for plane in planes)


def _entropy_bits(values: torch.Tensor) -> float:
    counts = torch.bincount(values.int(), minlength=1).double()
    counts = counts[counts > 0]
    return float((counts * (counts.sum() / counts).log2()).sum())


def plain(value: object, what: str) -> torch.Tensor:
    """A dense CPU tensor whose file holds every element of it.

    Raises CheckpointError: it is none. what: its name, for the refusal.
    """
    if not isinstance(value, torch.Tensor):
        raise CheckpointError(f"{what} is a {type(value).__name__}, not a tensor")
    dense = value.layout == torch.strided and not value.is_meta and not value.is_quantized
    # A stride of 0 lets a few bytes of file claim any number of elements.
    if not dense or value.nbytes > value.untyped_storage().nbytes():
        raise CheckpointError(f"{what} is not a dense tensor with all its values in the file")
    return value.detach().contiguous()


def product(codes: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """float32 codes × scale, one scale for all of them or one per index of the first axis: what the
    authors' own readers compute before they cast to the tensor's dtype.
    """
    steps = scale.to(torch.float32)
    by_row = () if steps.numel() == 1 else (-1, *[1] * (codes.dim() - 1))
    return codes.to(torch.float32) * steps.reshape(by_row)


def same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether dtype, shape and every bit agree."""
    if one.dtype != other.dtype or one.shape != other.shape:
        return False
    return torch.equal(bytes_of(one), bytes_of(other))


def kept(tensor: torch.Tensor, dtype: torch.dtype) -> QuantizedTensor:
    """A tensor stored as it is, or as a shorter float, that decodes to `tensor.to(dtype)`."""
    weight = tensor.to(dtype)
    if tensor.dtype == dtype or tensor.dtype not in PASSTHROUGHS:
        return _as_stored(weight, Passthrough(PASSTHROUGHS.get(dtype, "raw")), dtype)
    shorter = _as_stored(tensor, Passthrough(PASSTHROUGHS[tensor.dtype]), dtype)
    return shorter if same_bits(dequantize(shorter), weight) else computed(weight)


def _as_stored(tensor: torch.Tensor, format: Passthrough, dtype: torch.dtype) -> QuantizedTensor:
    codes = tensor.contiguous().reshape(-1).view(torch.uint8).reshape(-1, tensor.itemsize)
    return QuantizedTensor(format, tuple(tensor.shape), dtype, codes)


def scaled(
    codes: torch.Tensor, scale: torch.Tensor, dtype: torch.dtype, what: str, bits: int | None = None
) -> QuantizedTensor:
    """Integers times one scale for the tensor, or one per index of the first axis: the codes and
    scales themselves where our format decodes them to the very bits of `product`, else the floats.

    bits: of the codes, by the artifact; where codes need more, the format has more.
    Raises CheckpointError: not int8, or scales that do not fit the shape or are not numbers.
    """
    if codes.dtype != torch.int8 or not scale.is_floating_point():
        raise CheckpointError(
            f"{what}: its codes are {codes.dtype} and its scales {scale.dtype}; int8 codes and "
            "float scales belong there"
        )
    shape = tuple(codes.shape)
    rows, _ = row_shape(shape)
    wide_enough = _uniform(codes, bits, per_row=scale.numel() != 1, half=scale.dtype)
    stored = scale.reshape(-1).to(torch.float32 if wide_enough.scale32 else torch.float16)
    if stored.numel() != 1:
        if len(shape) < 2 or stored.numel() != shape[0]:
            raise CheckpointError(
                f"{what}: has {stored.numel():,} scales for codes of shape {list(shape)}; one, or "
                "one per row, belongs there"
            )
        stored = stored.repeat_interleave(rows // shape[0]) if shape[0] else stored
    try:
        ours = QuantizedTensor(
            wide_enough, shape, dtype, codes.reshape(row_shape(shape)), {"scale": stored}
        )
    except FormatError as error:
        raise CheckpointError(f"{what}: {error}; the file is damaged") from None
    weight = product(codes, scale).to(dtype)
    return ours if same_bits(dequantize(ours), weight) else computed(weight)


def _uniform(codes: torch.Tensor, bits: int | None, *, per_row: bool, half: torch.dtype) -> Uniform:
    """The narrowest format of at least `bits` that holds the codes and keeps the scales' bits."""
    low, high = (int(codes.min()), int(codes.max())) if codes.numel() else (0, 0)
    needed = max(high.bit_length(), (-1 - low).bit_length()) + 1
    count = min(max(bits or 8, needed, 2), 8)
    wide = low < -(2 ** (count - 1) - 1)
    axis = "row" if per_row else "tensor"
    return Uniform(count, axis, wide=wide, scale32=half != torch.float16)


def computed(weight: torch.Tensor) -> QuantizedTensor:
    """Weights that none of our formats represents but a passthrough."""
    return _as_stored(weight, Passthrough(PASSTHROUGHS.get(weight.dtype, "raw")), weight.dtype)


def torch_dtype(name: object, what: str) -> torch.dtype:
    """The dtype of a name such as float32 or torch.float32. Raises CheckpointError: unknown."""
    if isinstance(name, torch.dtype):
        return name
    dtype = getattr(torch, str(name).removeprefix("torch."), None)
    if not isinstance(dtype, torch.dtype):
        raise CheckpointError(f"{what}: its dtype is {str(name)[:80]!r}, which torch does not have")
    return dtype


def size_of(shape: tuple[int, ...]) -> int:
    return element_count(shape)
