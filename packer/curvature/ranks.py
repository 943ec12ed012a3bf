"""The processes that share a calibration, started by torchrun; usually just one."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed
from torch import Tensor

from packer.curvature.weight_uses import WeightUses
from packer.errors import PackerError
from packer.eval.errors import EvalError

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """The rank of this process and their number. More than one need torch.distributed initialized.

    Each process reads one batch of every round; their sums are added up.
    """

    rank: int = 0
    size: int = 1

    def rounds(self, batches: Iterable[Tensor], first: int) -> Iterator[tuple[Tensor, ...]]:
        """The batches from `first` on, one per process; the last round may have fewer."""
        remaining = itertools.islice(batches, first, None)
        while group := tuple(itertools.islice(remaining, self.size)):
            yield group

    def gathered(self, mine: T) -> list[T]:
        """The values of all processes, on every process."""
        if self.size == 1:
            return [mine]
        values: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(values, mine)
        return values

    def first_says(self, mine: T) -> T:
        """The value of the first process: for decisions by its clock and its files."""
        if self.size == 1:
            return mine
        values: list[Any] = [mine if self.rank == 0 else None]
        torch.distributed.broadcast_object_list(values, 0)
        return values[0]  # type: ignore[no-any-return]

    def together(self, work: Callable[[], T]) -> T:
        """The result of this process's work. An error in one is raised in all, so that none waits.

        Raises PackerError, EvalError: the work of some process did.
        """
        failure: PackerError | EvalError | None = None
        try:
            result = work()
        except (PackerError, EvalError) as error:
            failure = error
        for one in self.gathered(failure):
            if one is not None:
                raise one
        return result

    def add_up(self, uses: WeightUses, device: torch.device) -> None:
        """Adds up the sums of all processes, on every one."""
        for value in self._all_sums(uses, device):
            torch.distributed.all_reduce(value)

    def hand_over(self, uses: WeightUses, device: torch.device) -> None:
        """Adds up the sums of all processes on the first; those of the others become zero."""
        for value in self._all_sums(uses, device):
            torch.distributed.reduce(value, 0)
            if self.rank:
                value.zero_()

    def _all_sums(self, uses: WeightUses, device: torch.device) -> list[Tensor]:
        """The sums of this process, in the same order on all, zeros for those only others have."""
        if self.size == 1:
            return []
        keys = sorted(
            {key for of_one in self.gathered(sorted(uses.moments.sums())) for key in of_one}
        )
        uses.moments.begin(keys, uses.weights, device)
        sums = uses.moments.sums()
        return [sums[key] for key in keys]


ALONE = Ranks()
