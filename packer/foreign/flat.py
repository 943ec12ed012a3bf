"""A bare dict with NAME.scale next to the int8 codes NAME.q: {"w", "m"} without m.

Codes × the scale of the row, or of the tensor; what has no codes is kept as it is.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch

from packer.errors import CheckpointError
from packer.foreign.keys import OWN_READER
from packer.foreign.mixed import note_of_dtypes
from packer.foreign.tensors import ForeignTensor, kept, plain, scaled

CODES, SCALE = ".q", ".scale"
NOTE = (
    "nothing in the file says what its codes are: codes (.q) × the scale of the row (.scale) is "
    "taken, as the layout {w, m} has it"
)


def is_flat(value: Mapping[str, object]) -> bool:
    """Whether some int8 codes have their scales next to them."""
    return any(
        _is_codes(key, part) and _is_scale(value.get(_scale_of(key))) for key, part in value.items()
    )


def read_flat(
    value: Mapping[str, object], template: Mapping[str, torch.Tensor] | None, notes: list[str]
) -> dict[str, ForeignTensor]:
    """Raises CheckpointError: codes without scales, further parts of a tensor, or no tensors."""
    names = {key.removesuffix(CODES) for key, part in value.items() if _is_codes(key, part)}
    tensors: dict[str, ForeignTensor] = {}
    for key, part in value.items():
        tensor = plain(part, key)
        name, _, suffix = key.rpartition(".")
        known = template[name].dtype if template and name in template else torch.float32
        if key in names:
            raise CheckpointError(f"{key}: is there as codes ({key}.q) and as it is; {OWN_READER}")
        if name in names:
            if suffix == "q":
                scale = plain(value.get(f"{name}{SCALE}"), f"the scale of {name}")
                base = scaled(tensor, scale, known, name)
                tensors[name] = ForeignTensor(str(base.format), {"q": tensor, "scale": scale}, base)
            elif suffix != "scale":
                raise CheckpointError(
                    f"{name}: its part {suffix} has no known meaning; {OWN_READER}"
                )
            continue
        if name.rpartition(".")[0] in names:
            raise CheckpointError(f"{key}: is a part of codes of no known meaning; {OWN_READER}")
        tensors[key] = _kept(key, tensor, template)
    notes.append(NOTE)
    if template is None:
        notes.append(note_of_dtypes(len(tensors)))
    return tensors


def _kept(
    name: str, tensor: torch.Tensor, template: Mapping[str, torch.Tensor] | None
) -> ForeignTensor:
    dtype = tensor.dtype
    if tensor.is_floating_point():
        dtype = template[name].dtype if template and name in template else torch.float32
    quantized = kept(tensor, dtype if dtype.is_floating_point else tensor.dtype)
    return ForeignTensor(str(quantized.format), {"": tensor}, quantized)


def _is_codes(key: object, part: object) -> bool:
    return (
        isinstance(key, str)
        and key.endswith(CODES)
        and isinstance(part, torch.Tensor)
        and part.dtype == torch.int8
    )


def _is_scale(part: object) -> bool:
    return isinstance(part, torch.Tensor) and part.is_floating_point()


def _scale_of(key: str) -> str:
    return key.removesuffix(CODES) + SCALE
