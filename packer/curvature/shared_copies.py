"""Copies of one tensor inside a module as one parameter, as a file of ours has them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from packer.checkpoint.checkpoint import without_wrapper

Table = dict[str, Tensor | None]  # of one submodule: its parameters or its buffers


@contextlib.contextmanager
def sharing_copies(module: nn.Module, ties: Mapping[str, str]) -> Iterator[None]:
    """Inside, tied names are one tensor of the module, where they are two of equal values."""
    replaced = share_copies(module, ties)
    try:
        yield
    finally:
        for table, name, tensor in replaced:
            table[name] = tensor


def share_copies(module: nn.Module, ties: Mapping[str, str]) -> list[tuple[Table, str, Tensor]]:
    """Put the kept tensor in the place of every copy that a tie names; a module that ties them
    itself stays as it is.

    ties: tied name -> kept name, without wrapper prefixes. Returns what was replaced: the table
    it was in, its name there, the tensor.
    """
    found: dict[str, tuple[Table, str, Tensor]] = {}
    for before, part in module.named_modules(remove_duplicate=False):
        for table in (part._parameters, part._buffers):
            for name, tensor in table.items():
                if tensor is not None:
                    whole = without_wrapper(f"{before}.{name}" if before else name)
                    found[whole] = (table, name, tensor)
    replaced = []
    for tied, kept in ties.items():
        if tied in found and kept in found:
            table, name, tensor = found[tied]
            other = found[kept][2]
            if tensor is not other and _equal(tensor, other):
                table[name] = other
                replaced.append((table, name, tensor))
    return replaced


def _equal(one: Tensor, other: Tensor) -> bool:
    kind = (one.shape, one.dtype, one.device, type(one))
    return kind == (other.shape, other.dtype, other.device, type(other)) and torch.equal(one, other)
