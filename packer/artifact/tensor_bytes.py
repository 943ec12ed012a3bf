"""The bytes of a tensor's elements, and the name of their dtype."""

from __future__ import annotations

import sys

import torch


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def bytes_of(tensor: torch.Tensor) -> torch.Tensor:
    """The elements of any dense CPU tensor as uint8 [bytes], without a copy where contiguous."""
    return tensor.detach().contiguous().reshape(-1).view(torch.uint8)


def little_endian(tensor: torch.Tensor) -> torch.Tensor:
    """As `bytes_of`, every element little-endian whatever this machine is."""
    stored = bytes_of(tensor)
    if sys.byteorder == "little":
        return stored
    width = tensor.element_size() // (2 if tensor.is_complex() else 1)
    return stored.reshape(-1, width).flip(1).reshape(-1).contiguous()
