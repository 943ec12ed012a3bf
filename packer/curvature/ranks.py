"""The processes that share a calibration, as torchrun started them; one alone is the usual case."""

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
    """This process, and how many there are. More than one need torch.distributed at work.

    Of every round of batches each process reads one; what is summed is put together in float64.
    """

    rank: int = 0
    size: int = 1

    def rounds(self, batches: Iterable[Tensor], first: int) -> Iterator[tuple[Tensor, ...]]:
        """The batches from `first` on, one for every process; the last round may have fewer."""
        todo = itertools.islice(batches, first, None)
        while group := tuple(itertools.islice(todo, self.size)):
            yield group

    def gathered(self, mine: T) -> list[T]:
        """What every process says, on every process."""
        if self.size == 1:
            return [mine]
        said: list[Any] = [None] * self.size
        torch.distributed.all_gather_object(said, mine)
        return said

    def first_says(self, mine: T) -> T:
        """What the first process says: for decisions by its clock, and what its files hold."""
        if self.size == 1:
            return mine
        said: list[Any] = [mine if self.rank == 0 else None]
        torch.distributed.broadcast_object_list(said, 0)
        return said[0]  # type: ignore[no-any-return]

    def together(self, work: Callable[[], T]) -> T:
        """What this process's work gives. What one refuses all refuse, so that none waits for it.

        Raises PackerError, EvalError: the work of some process did.
        """
        refusal: PackerError | EvalError | None = None
        try:
            done = work()
        except (PackerError, EvalError) as error:
            refusal = error
        for found in self.gathered(refusal):
            if found is not None:
                raise found
        return done

    def add_up(self, uses: WeightUses, device: torch.device) -> None:
        """The sums of all processes, on every one."""
        for value in self._all_sums(uses, device):
            torch.distributed.all_reduce(value)

    def hand_over(self, uses: WeightUses, device: torch.device) -> None:
        """The sums of all processes to the first; the others begin anew."""
        for value in self._all_sums(uses, device):
            torch.distributed.reduce(value, 0)
            if self.rank:
                value.zero_()

    def _all_sums(self, uses: WeightUses, device: torch.device) -> list[Tensor]:
        """The sums of this process in one order everywhere, zero where only another has some."""
        if self.size == 1:
            return []
        keys = sorted({key for said in self.gathered(sorted(uses.sums())) for key in said})
        uses.begin(keys, device)
        sums = uses.sums()
        return [sums[key] for key in keys]


ALONE = Ranks()
