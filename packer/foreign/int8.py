"""The layout int8_clean_per_row_v1: int8 codes with a scale per row, everything small kept."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from packer.errors import CheckpointError
from packer.foreign.tensors import ForeignTensor, kept, plain, scaled, torch_dtype

INT8_FORMAT = "int8_clean_per_row_v1"
REQUIRED = ("quantized", "scales", "passthrough")
OPTIONAL = ("__quant_format__", "dtypes", "qmeta", "passthrough_orig_dtypes")


def read_int8(
    value: Mapping[str, object], template: Mapping[str, torch.Tensor] | None, notes: list[str]
) -> dict[str, ForeignTensor]:
    """Raises CheckpointError: another format, unknown keys, parts that do not fit together."""
    format = value.get("__quant_format__", INT8_FORMAT)
    if format != INT8_FORMAT:
        raise CheckpointError(f"its format is {format!r}; {INT8_FORMAT} is known")
    odd = sorted(str(key) for key in set(value) - {*REQUIRED, *OPTIONAL})
    if odd:
        raise CheckpointError(f"{INT8_FORMAT} has no {', '.join(odd)}; another layout is mixed in")
    tables = {key: table(value.get(key, {}), key) for key in (*REQUIRED, *OPTIONAL[1:])}
    codes, scales, passthrough = (tables[key] for key in REQUIRED)
    if set(codes) != set(scales) or set(codes) & set(passthrough):
        raise CheckpointError("its quantized, scales and passthrough name different tensors")
    dtypes = {**tables["passthrough_orig_dtypes"], **tables["dtypes"]}
    assumed = [name for name in codes if name not in dtypes and name not in (template or {})]
    if assumed:
        notes.append(f"float32 is assumed for {len(assumed)} tensors without a dtype")
    found = {name: _quantized(name, tables, template) for name in codes}
    found.update({name: _passthrough(name, tables) for name in passthrough})
    return found


def table(value: object, key: str) -> Mapping[str, object]:
    """A dict by tensor name. Raises CheckpointError: it is none."""
    if not isinstance(value, Mapping) or not all(isinstance(name, str) for name in value):
        raise CheckpointError(f"its {key} is a {type(value).__name__}, not a dict by tensor name")
    return value


def _quantized(
    name: str,
    tables: Mapping[str, Mapping[str, object]],
    template: Mapping[str, torch.Tensor] | None,
) -> ForeignTensor:
    codes = plain(tables["quantized"][name], f"the codes of {name}")
    scale = _as_tensor(tables["scales"][name], name)
    _check_scheme(name, tables["qmeta"].get(name))
    if name in tables["dtypes"]:
        dtype = torch_dtype(tables["dtypes"][name], name)
    else:
        dtype = template[name].dtype if template and name in template else torch.float32
    quantized = scaled(codes, scale, dtype, name)
    return ForeignTensor(str(quantized.format), {"q": codes, "scale": scale}, quantized)


def _as_tensor(scale: object, name: str) -> torch.Tensor:
    """A scale of the whole tensor may be a Python number."""
    if isinstance(scale, float):
        return torch.tensor(scale, dtype=torch.float32)
    return plain(scale, f"the scale of {name}")


def _check_scheme(name: str, scheme: object) -> None:
    if scheme is None:
        return
    known = isinstance(scheme, Mapping) and scheme.get("scheme") in ("per_row", "per_tensor")
    if not known or scheme.get("axis", 0) != 0:  # type: ignore[attr-defined]
        raise CheckpointError(
            f"{name}: its scheme is {scheme!r}; scales per row, axis 0, are known"
        )


def _passthrough(name: str, tables: Mapping[str, Mapping[str, object]]) -> ForeignTensor:
    tensor = plain(tables["passthrough"][name], name)
    dtype = torch_dtype(tables["passthrough_orig_dtypes"].get(name, tensor.dtype), name)
    if dtype.is_floating_point != tensor.is_floating_point():
        raise CheckpointError(f"{name}: is stored as {tensor.dtype} and was {dtype}")
    quantized = kept(tensor, dtype)
    return ForeignTensor(str(quantized.format), {"weight": tensor}, quantized)
