"""Where this process computes, and the other processes that torchrun started beside it."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from packer.errors import PackerError

if TYPE_CHECKING:
    import torch

DEVICES = ("cpu", "cuda")
SECONDS_TO_LET_GO = 0.2


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
    """Gives (rank, world size), with the process group of torchrun where there is one.

    Raises PackerError: the other processes cannot be found.
    """
    import torch

    if os.environ.get("WORLD_SIZE", "1") == "1":  # set by torchrun
        yield 0, 1
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)  # nccl gathers on the current one
    try:
        torch.distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    except (ValueError, RuntimeError) as error:
        raise PackerError(
            f"WORLD_SIZE is set, but the other processes cannot be joined ({error}): start all of "
            "them with torchrun, or unset it"
        ) from None
    try:
        yield torch.distributed.get_rank(), torch.distributed.get_world_size()
    finally:
        if device.type == "cpu":
            # A thread of gloo may be letting go of its last tensor, for which it needs the lock of
            # the interpreter. torch 2.4 holds that while it waits for the thread: for ever.
            time.sleep(SECONDS_TO_LET_GO)
        torch.distributed.destroy_process_group()
