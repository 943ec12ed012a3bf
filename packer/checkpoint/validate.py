"""What can be packed at all: names that are text, dense tensors of known dtypes, values that are
finite or a mask's.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

import torch
from torch.nn.parameter import is_lazy

from packer.artifact.tensor_bytes import dtype_name
from packer.checkpoint.torch_files import RESAVE
from packer.errors import CheckpointError, listed

DTYPES = re.compile(r"float(8_\w+|16|32|64)|bfloat16|complex(32|64|128)|u?int(8|16|32|64)|bool")
BLOCK_ELEMENTS = 1 << 20
MAX_EXPANDED_BYTES = 1 << 30
MASK_SHARE = 1 / 4  # of infinities: the causal mask of two tokens has no more
MASK_KINDS = 16  # of finite values, next to fewer infinities


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
    expanded = {
        name: t.nbytes for name, t in named.items() if t.nbytes > t.untyped_storage().nbytes()
    }
    if sum(expanded.values()) > MAX_EXPANDED_BYTES:
        raise CheckpointError(
            f"{source}: the expanded tensors {listed(list(expanded))} would take "
            f"{sum(expanded.values()):,} bytes where {MAX_EXPANDED_BYTES:,} are allowed; save them "
            "unexpanded, or leave them out with --drop"
        )


def _unsupported(tensor: torch.Tensor) -> str | None:
    dtype = dtype_name(tensor.dtype)
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


def refuse_non_finite(tensors: Mapping[str, torch.Tensor], source: str) -> list[str]:
    """The names of tensors whose infinities belong there (`_is_mask`); they are kept exactly.

    Raises CheckpointError: NaN anywhere, or infinities among weights.
    """
    masks, bad = [], []
    for name, tensor in tensors.items():
        if not (count := _count_non_finite(tensor)):
            continue
        if _is_mask(tensor):
            masks.append(name)
        else:
            bad.append(f"{name} ({count:,} of {tensor.numel():,} values)")
    if bad:
        raise CheckpointError(
            f"{source}: NaN or infinity in {listed(bad, 'tensors')}, where none is allowed (but "
            "infinities of one sign in masks); take an earlier checkpoint, or leave the tensor "
            "out with --drop if the model can do without"
        )
    return masks


def _is_mask(tensor: torch.Tensor) -> bool:
    """Whether non-finite values are infinities of one sign, as a mask has them: a quarter of all
    values or more, or beside few finite values that repeat. Overflow strikes single weights.
    """
    if tensor.is_complex():
        return False
    values = tensor.reshape(-1)
    values = values.float() if values.element_size() == 1 else values
    low, high = int((values == -torch.inf).sum()), int((values == torch.inf).sum())
    finite = values[values.isfinite()]
    if min(low, high) or low + high + finite.numel() < values.numel():
        return False
    if low + high >= values.numel() * MASK_SHARE:
        return True
    kinds = int(finite.sort().values.diff().count_nonzero()) + 1
    return kinds <= 1 or kinds <= min(MASK_KINDS, finite.numel() // 4)


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
