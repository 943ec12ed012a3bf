"""How a stream is scored: the settings, and the walk over its windows in batches."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from .errors import ScoreError
from .forward import AnyModel, device_of, evaluation_mode, inference, worker_count
from .shards import TokenStream
from .windows import Windows
from .workers import Pending, workers

T = TypeVar("T")
Progress = Callable[[int, int], None]
Notice = Callable[[str], None]
# Inputs and targets int64 [windows, window] and the number of positions scored in each, to rows of
# numbers for those positions: float64 [rows, windows, count].
Compute = Callable[[Tensor, Tensor, int], NDArray[np.float64]]

# Tokens in a batch by default. On a CPU activations should stay in the cache: 16 windows of
# 256 took 1.6 times as long per token as 4 on a core with 512 KiB. A GPU wants work for all its
# multiprocessors.
BATCH_TOKENS = {"cpu": 1024, "cuda": 131_072}


@dataclass(frozen=True)
class Setting:
    """How to score.

    Attributes:
        window: tokens a model sees at once.
        stride: scored tokens per window after the first; None means back to back.
        tokens: the number of tokens to score; None: all.
        batch: windows at a time; None chooses by device.
        workers: batches side by side on a CPU; None takes torch's threads, or 1 where the model
            may not be called from several threads.
        autocast: compute in bfloat16 where torch finds that safe.
        rank, world_size: this process scores its share of the batches.
    """

    window: int
    stride: int | None = None
    tokens: int | None = None
    batch: int | None = None
    workers: int | None = None
    autocast: bool = False
    rank: int = 0
    world_size: int = 1

    def windows(self, stream: TokenStream) -> Windows:
        """The windows over a stream.

        Raises ScoreError: settings that do not fit the stream.
        """
        targets = len(stream) - 1
        if self.tokens is not None:
            if self.tokens < 1:
                raise ScoreError(f"tokens = {self.tokens} must be at least 1")
            targets = min(targets, self.tokens)
        return Windows(targets, self.window, self.window if self.stride is None else self.stride)

    def share(self, windows: Windows, device: torch.device) -> list[tuple[int, int]]:
        """The batches of this rank: whole ones, so that each is computed as in one process."""
        if not 0 <= self.rank < self.world_size:
            raise ScoreError(f"rank {self.rank} is not one of {self.world_size} processes")
        size = self.batch
        if size is None:
            size = max(1, BATCH_TOKENS.get(device.type, BATCH_TOKENS["cpu"]) // self.window)
        if size < 1:
            raise ScoreError(f"batch = {size} must be at least 1 window")
        batches = windows.batches(size)
        first, stop = (len(batches) * r // self.world_size for r in (self.rank, self.rank + 1))
        return batches[first:stop]


def walk(
    models: Sequence[AnyModel],
    stream: TokenStream,
    setting: Setting,
    compute: Compute,
    *,
    vocab_size: int | None,
    progress: Progress,
    notice: Notice,
) -> Iterator[tuple[int, NDArray[np.float64]]]:
    """Yield (first target, rows float64 [rows, targets]) for the batches of this rank.

    compute: runs the models, which are all on one device.
    Raises ScoreError: settings that do not fit, a token outside the vocabulary (where one is
    given), or a single window that does not fit into memory.
    """
    windows, device = setting.windows(stream), device_of(models[0])
    batches = setting.share(windows, device)
    if not batches:
        return
    begin, end = windows.scored(batches[0][0], batches[-1][1])
    done = 0

    def run(first: int, stop: int) -> NDArray[np.float64]:
        inputs, targets = windows.read(stream, first, stop)
        # An index out of range would end a CUDA process without a word about the data.
        highest = max(int(inputs.max()), int(targets.max()))
        if vocab_size is not None and highest >= vocab_size:
            raise ScoreError(
                f"token {highest} is outside the vocabulary of {vocab_size:,}: "
                "the data was made with another tokenizer"
            )
        count = windows.scored_per_window(first)
        with inference(device, setting.autocast):
            return compute(inputs.to(device), targets.to(device), count)

    with evaluation_mode(models):
        count = worker_count(models, setting.workers)
        for first, stop, rows in in_batches(batches, run, notice, count):
            start, last = windows.scored(first, stop)
            yield start, rows.reshape(len(rows), -1)[:, : last - start]
            done += last - start
            progress(done, end - begin)


def in_batches(
    batches: Sequence[tuple[int, int]],
    run: Callable[[int, int], T],
    notice: Notice,
    worker_count: int = 1,
) -> Iterator[tuple[int, int, T]]:
    """Yield (first, stop, run(first, stop)); running out of memory halves the batch from there on.

    Batches come in order, except that those halved may come later.
    Raises ScoreError: a single window does not fit into memory.
    """
    pending, largest = deque(batches), max(stop - first for first, stop in batches)
    running: deque[tuple[int, int, Pending[T]]] = deque()
    share = max(1, torch.get_num_threads() // worker_count)
    with workers(worker_count, share) as submit:
        while pending or running:
            while pending and len(running) < worker_count:
                first, stop = pending.popleft()
                if stop - first > largest:
                    pending.appendleft((first + largest, stop))
                    stop = first + largest
                running.append((first, stop, submit(run, first, stop)))
            first, stop, pending_rows = running.popleft()
            results, error = pending_rows.outcome()
            if error is None:
                yield first, stop, results.pop()
                continue
            if not is_out_of_memory(error):
                raise error
            if stop - first == 1:
                raise ScoreError(
                    "out of memory with a single window: take a shorter window or another device"
                ) from error
            del error  # it holds the failed batch
            pending.appendleft((first, stop))
            if stop - first <= largest:  # others of the old size may still be on their way
                largest = (stop - first) // 2
                notice(f"out of memory: going on with at most {largest} windows at a time")
            if torch.cuda.is_available():
                torch.cuda.empty_cache()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a CUDA or CPU allocation failed; torch gives the latter no class of its own."""
    if isinstance(error, (torch.cuda.OutOfMemoryError, MemoryError)):
        return True
    text = str(error)
    return "not enough memory" in text or "DefaultCPUAllocator" in text


def ignore(*_: Any) -> None:
    """A callback that does nothing."""
