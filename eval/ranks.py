"""Parts of a score from many processes, brought together with torch.distributed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch.distributed

T = TypeVar("T")


def gathered(part: T, combine: Callable[[Sequence[T]], T]) -> T:
    """The combination of every rank's part, on every rank; alone, that of this part.

    Args:
        part: this rank's `Score` or `Divergence`.
        combine: `score.combine` or `compare.combine`.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return combine([part])
    parts: list[T | None] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(parts, part)
    return combine([received for received in parts if received is not None])
