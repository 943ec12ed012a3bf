"""The layouts of contest artifacts: dicts of tensors in, named tensors out.

int8_clean_per_row_v1: quantized, scales, dtypes and passthrough, each by tensor name.
{"w", "m"}: parts and their meaning by name; the dtypes are in a template that the file lacks.
ternary and binary: one entry with its own type per tensor.
flat: {"w"} of the second, without the meanings.
A key that no layout knows is refused: weights read past it would be silently wrong.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from packer.errors import CheckpointError
from packer.foreign.bit_packed import BIT_PACKED
from packer.foreign.flat import is_flat, read_flat
from packer.foreign.int8 import INT8_FORMAT, INT8_FORMATS, read_int8
from packer.foreign.mixed import read_mixed
from packer.foreign.tensors import ForeignTensor
from packer.foreign.ternary import has_entries, read_ternary

Tensors = dict[str, ForeignTensor]
Template = Mapping[str, torch.Tensor] | None
Reader = Callable[[Mapping[str, object], Template, list[str]], Tensors]


def layout_of(value: object) -> tuple[str, Reader] | None:
    """(name, reader) of the layout that a file's value has, None when it has none of them."""
    if not isinstance(value, Mapping):
        return None
    if "__quant_format__" in value or {"quantized", "scales", "passthrough"} <= set(value):
        format = value.get("__quant_format__")
        known = isinstance(format, str) and (format in INT8_FORMATS or BIT_PACKED.fullmatch(format))
        return str(format) if known else INT8_FORMAT, read_int8
    if {"w", "m"} <= set(value) and all(isinstance(value[key], Mapping) for key in "wm"):
        return "{w, m}", read_mixed
    if has_entries(value):
        return "ternary", read_ternary
    return ("flat", read_flat) if is_flat(value) else None


def read_layout(
    value: Mapping[str, object], template: Template, notes: list[str], source: str
) -> tuple[str, Tensors]:
    """(layout, tensors). Raises CheckpointError: not as the layout says; names what."""
    layout = layout_of(value)
    assert layout is not None
    name, read = layout
    try:
        tensors = read(value, template, notes)
    except CheckpointError as error:
        raise CheckpointError(f"{source}: {error}") from None
    except (KeyError, TypeError, ValueError, AttributeError, RuntimeError, IndexError) as error:
        raise CheckpointError(
            f"{source}: is not the {name} artifact that it seems to be "
            f"({type(error).__name__}: {error}); copy it again"
        ) from None
    if not tensors:
        raise CheckpointError(f"{source}: the {name} artifact holds no tensors")
    _check_template(tensors, template, source)
    return name, tensors


def _check_template(tensors: Tensors, template: Template, source: str) -> None:
    """Raises CheckpointError: the template is of another model."""
    if template is None:
        return
    for name in sorted(set(template) | set(tensors)):
        if name not in tensors or name not in template:
            where = "the template and not in the file" if name in template else "the file alone"
            raise CheckpointError(
                f"{source}: the tensor {name} is in {where}; name the checkpoint of this very model"
            )
        shape, wanted = tensors[name].quantized.shape, tuple(template[name].shape)
        if shape != wanted:
            raise CheckpointError(
                f"{source}: {name} has the shape {list(shape)} and in the template {list(wanted)}; "
                "name the checkpoint of this very model"
            )
