"""Ties equal tensors of a module to one parameter, as they are tied in a checkpoint."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from packer.checkpoint.checkpoint import without_wrapper

Table = dict[str, Tensor | None]  # of one submodule: its parameters or its buffers


@contextlib.contextmanager
def sharing_copies(module: nn.Module, ties: Mapping[str, str]) -> Iterator[None]:
    """In this context tied names with equal values are one tensor of the module."""
    replaced = share_copies(module, ties)
    try:
        yield
    finally:
        for table, name, tensor in replaced:
            table[name] = tensor


def share_copies(module: nn.Module, ties: Mapping[str, str]) -> list[tuple[Table, str, Tensor]]:
    """Replaces every copy that a tie names by the kept tensor; a module that ties them itself is
    not changed.

    ties: tied name -> kept name, without wrapper prefixes. Returns what was replaced: (table,
    name in it, tensor).
    """
    places: dict[str, tuple[Table, str, Tensor]] = {}
    for before, part in module.named_modules(remove_duplicate=False):
        for table in (part._parameters, part._buffers):
            for name, tensor in table.items():
                if tensor is not None:
                    whole = without_wrapper(f"{before}.{name}" if before else name)
                    places[whole] = (table, name, tensor)
    replaced = []
    for tied, kept in ties.items():
        if tied in places and kept in places:
            table, name, tensor = places[tied]
            other = places[kept][2]
            if tensor is not other and _equal(tensor, other):
                table[name] = other
                replaced.append((table, name, tensor))
    return replaced


def _equal(one: Tensor, other: Tensor) -> bool:
    kind = (one.shape, one.dtype, one.device, type(one))
    return kind == (other.shape, other.dtype, other.device, type(other)) and torch.equal(one, other)
