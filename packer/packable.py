"""What can be packed at all: names that are text, dense tensors of known dtypes, finite values."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch
from torch.nn.parameter import is_lazy

from packer.errors import CheckpointError, listed
from packer.torch_files import RESAVE

DTYPES = re.compile(r"float(8_\w+|16|32|64)|bfloat16|complex(32|64|128)|u?int(8|16|32|64)|bool")
BLOCK_ELEMENTS = 1 << 20
MAX_EXPANDED_BYTES = 1 << 30


def refuse_unspeakable(names: Iterable[str], source: str) -> None:
    for name in names:
        try:
            name.encode()
        except UnicodeEncodeError as error:
            raise CheckpointError(
                f"{source}: the tensor name {name!r} is not valid text ({error.reason}); rename it"
            ) from None


def refuse_empty(named: Mapping[str, torch.Tensor], source: str) -> None:
    if not named:
        raise CheckpointError(f"{source}: no named tensors are left to pack; {RESAVE}")


def refuse_unsupported(named: Mapping[str, torch.Tensor], source: str) -> None:
    bad = [f"{name} ({why})" for name, tensor in named.items() if (why := _unsupported(tensor))]
    if bad:
        raise CheckpointError(
            f"{source}: only dense tensors with values can be packed, not {listed(bad)}; convert "
            "them before saving (to_dense, dequantize), or leave them out with --drop"
        )
    # A stride of 0 lets a few bytes of file claim any number of elements.
    expanded = {name: t.nbytes for name, t in named.items() if t.nbytes > _storage_bytes(t)}
    if sum(expanded.values()) > MAX_EXPANDED_BYTES:
        raise CheckpointError(
            f"{source}: the expanded tensors {listed(list(expanded))} would take "
            f"{sum(expanded.values()):,} bytes where {MAX_EXPANDED_BYTES:,} are allowed; save them "
            "unexpanded, or leave them out with --drop"
        )


def _unsupported(tensor: torch.Tensor) -> str | None:
    dtype = str(tensor.dtype).removeprefix("torch.")
    if is_lazy(tensor):
        return "not initialized yet"
    if tensor.is_quantized:
        return f"quantized, {dtype}"
    if tensor.is_nested:
        return "nested"
    if tensor.layout != torch.strided:
        return str(tensor.layout).removeprefix("torch.")
    if tensor.is_meta:
        return "on the meta device, without values"
    return None if DTYPES.fullmatch(dtype) else f"dtype {dtype}"


def _storage_bytes(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage().nbytes()


def refuse_non_finite(tensors: Mapping[str, torch.Tensor], source: str) -> None:
    bad = [
        f"{name} ({count:,} of {tensor.numel():,} values)"
        for name, tensor in tensors.items()
        if (count := _count_non_finite(tensor))
    ]
    if bad:
        raise CheckpointError(
            f"{source}: NaN or infinity in {listed(bad, 'tensors')}, where none is allowed; take "
            "an earlier checkpoint, or leave the tensor out with --drop if the model can do without"
        )


def _count_non_finite(tensor: torch.Tensor) -> int:
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return 0
    count = 0
    for block in torch.split(tensor.reshape(-1), BLOCK_ELEMENTS):
        if block.is_complex():
            finite = torch.view_as_real(block).isfinite().all(-1)
        else:
            # isfinite knows no float8; float32 holds all of its values.
            finite = (block.float() if block.element_size() == 1 else block).isfinite()
        count += block.numel() - int(finite.sum())
    return count
