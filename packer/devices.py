"""Where this process computes, and the other processes that torchrun started beside it."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import TYPE_CHECKING

from packer.errors import PackerError

if TYPE_CHECKING:
    import torch

DEVICES = ("cpu", "cuda")
SECONDS_TO_LET_GO = 0.2
ANSWER_SECONDS = 10.0
WAITING = timedelta(hours=6)  # for a rank that packs; one that ends is noticed at once


def choose_device(name: str | None) -> torch.device:
    """The device of this name; by default a GPU where there is one, under torchrun one each.

    Raises PackerError: there is no such device.
    """
    import torch

    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda":
        name = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"  # set by torchrun
    if name.partition(":")[0] not in DEVICES:
        raise PackerError(f"--device {name} cannot be used here: take cpu, cuda or cuda:N")
    try:
        return torch.zeros(1, device=name).device
    except (RuntimeError, AssertionError) as error:
        reason = str(error).partition("\n")[0]
        raise PackerError(f"--device {name} cannot be used here: {reason}") from None


@contextlib.contextmanager
def joined(device: torch.device) -> Iterator[tuple[int, int]]:
    """Gives (rank, world size), with the process group of torchrun where there is one, in which
    tensors of the CPU go by gloo: what waits for other ranks need not wait for a GPU.

    All ranks leave together; an error that all have is reported by the first alone.
    Raises PackerError: the other processes cannot be found, or one of them has ended.
    """
    import torch

    if os.environ.get("WORLD_SIZE", "1") == "1":  # set by torchrun
        yield 0, 1
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)  # nccl gathers on the current one
    try:
        others = _Ranks("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    except (ValueError, RuntimeError) as error:
        raise PackerError(
            f"WORLD_SIZE is set, but the other processes cannot be joined ({error}): start all of "
            "them with torchrun, or unset it"
        ) from None
    try:
        yield others.rank, others.size
        torch.distributed.all_reduce(torch.zeros(1))  # none is left waiting for those still at work
    except PackerError as error:
        raise others.reported(error) from None
    except RuntimeError as error:
        if not _is_lost_connection(error):
            raise
        raise PackerError(others.lost()) from None
    if device.type == "cpu":
        # A thread of gloo may be letting go of its last tensor, for which it needs the lock of
        # the interpreter. torch 2.4 holds that while it waits for the thread: for ever.
        time.sleep(SECONDS_TO_LET_GO)
    torch.distributed.destroy_process_group()


class _Ranks:
    """This process and those beside it. Raises ValueError, RuntimeError: they cannot be joined."""

    def __init__(self, backend: str) -> None:
        import torch
        from torch.distributed.rendezvous import rendezvous

        self.store, self.rank, self.size = next(iter(rendezvous("env://")))
        torch.distributed.init_process_group(
            backend, timeout=WAITING, store=self.store, rank=self.rank, world_size=self.size
        )

    def reported(self, error: PackerError) -> BaseException:
        """What to raise for an error that the first rank may have too, and then reports."""
        # The first stays until all have seen its answer, which it may keep for them.
        found = self._answering("failed", [0] if self.rank else list(range(self.size)))
        if self.rank == 0:
            return error
        if found is None or 0 in found:
            return SystemExit(1)
        return PackerError(f"rank {self.rank} of {self.size}: {error}")

    def lost(self) -> str:
        """Who is missing, when the connection to some rank is lost."""
        everyone = list(range(self.size))
        found = self._answering("lost", everyone)
        missing = [0] if found is None else [rank for rank in everyone if rank not in found]
        who = " and ".join(f"rank {rank}" for rank in missing) or "one"
        return (
            f"{who} of {self.size} processes ended or no longer answers, and so rank {self.rank} "
            "ends too: what it printed, or the system's log, says why. A run of packer train goes "
            "on with --resume"
        )

    def _answering(self, question: str, wanted: Sequence[int]) -> list[int] | None:
        """Those of the ranks that come to the same question in time; None where the first, which
        may keep the answers, is gone with them.
        """
        keys = {rank: f"packer/{question}/{rank}" for rank in wanted}
        until = time.monotonic() + ANSWER_SECONDS
        try:
            self.store.set(f"packer/{question}/{self.rank}", "here")
            while time.monotonic() < until and not self.store.check(list(keys.values())):
                time.sleep(0.1)
            return [rank for rank, key in keys.items() if self.store.check([key])]
        except RuntimeError:
            return None


def _is_lost_connection(error: RuntimeError) -> bool:
    import torch

    words = ("Connection closed", "Connection reset", "Broken pipe", "gloo", "NCCL")
    return isinstance(error, torch.distributed.DistError) or any(w in str(error) for w in words)
