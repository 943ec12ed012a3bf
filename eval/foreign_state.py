"""What somebody's model keeps between calls, taken back after a trial."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn


@contextmanager
def unchanged(model: object) -> Iterator[None]:
    """Afterwards every module has the attributes it had, so that a trial leaves nothing behind.

    A table made for the trial's few tokens, a cache, a module made at the first call would
    otherwise stay. Attributes are put back, and what is in dictionaries, lists and objects that are
    attributes; tensors that the model overwrites in place are not.
    """
    modules = list(model.modules()) if isinstance(model, nn.Module) else []
    kept: list[tuple[Any, Any]] = []  # a dictionary or list, and what was in it
    for module in modules:
        attributes = vars(module)
        kept.append((attributes, dict(attributes)))
        for value in attributes.values():
            if type(value) is list:
                kept.append((value, list(value)))
            elif isinstance(value, dict):
                kept.append((value, dict(value)))
            elif hasattr(value, "__dict__") and not isinstance(value, (nn.Module, Tensor, type)):
                kept.append((vars(value), dict(vars(value))))
    try:
        yield
    finally:
        for holder, contents in kept:
            _restore(holder, contents)


def _restore(holder: Any, contents: Any) -> None:
    if isinstance(holder, list):
        holder[:] = contents
        return
    for name in holder.keys() - contents.keys():
        del holder[name]
    holder.update(contents)
