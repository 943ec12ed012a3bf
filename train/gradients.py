"""The forward of training and its gradients: compiled, in its precision, averaged over ranks."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from packer.eval.batches import is_out_of_memory
from packer.quantizers.attachment import rounded_once
from packer.train.attention import attention_in_float32, causal_attention
from packer.train.batches import Batches
from packer.train.layers import Block
from packer.train.model import GPT
from packer.train.settings import TrainConfig
from torch import Tensor

from packer.errors import PackerError


class Gradients:
    """Adds a step's gradients to the parameters of a model; it is this rank's part of them.

    autocast: the dtype of the forward, None for float32. compiled: whether torch compiles it.
    """

    def __init__(
        self,
        model: GPT,
        config: TrainConfig,
        batches: Batches,
        device: torch.device,
        world_size: int,
        say: Callable[[str], None] = print,
    ) -> None:
        self.say = say
        self.batches, self.device, self.world_size = batches, device, world_size
        self.micro_windows = config.batch.micro_tokens // config.batch.sequence
        self.autocast = autocast_dtype(config.run.precision, device)
        self.compiled = compiles(config.run.compile, device)
        self.model = model
        self.float32_attention = False
        self._ahead: tuple[int, tuple[Tensor, Tensor]] | None = None  # of the next step
        if device.type == "cpu" and self.autocast is not None:
            self.attend_in_float32(not multiplies_bfloat16(device))
        self.forward = self._forward(model)

    def _forward(self, model: GPT) -> Callable[[Tensor, Tensor], Tensor]:
        """The model as it is called in training: compiled, and averaging gradients over ranks."""
        forward: Any = model
        if self.compiled:
            forward = torch.compile(model, fullgraph=True, dynamic=False)
        if self.world_size > 1:
            forward = torch.nn.parallel.DistributedDataParallel(
                forward, gradient_as_bucket_view=True
            )
        return forward  # type: ignore[no-any-return]

    def attend_in_float32(self, wanted: bool) -> None:
        """Whether attention is computed in float32: CPUs that emulate bfloat16 are slow in it."""
        self.float32_attention = wanted
        for block in self.model.blocks:
            assert isinstance(block, Block)
            block.attn.attend = attention_in_float32 if wanted else causal_attention

    def add(self, step: int) -> Tensor:
        """Adds gradients of the mean loss over this rank's windows; returns that loss, detached.

        Running out of memory halves the windows of a forward from there on, in one process: others
        would wait for its gradients. Raises PackerError: it cannot be halved.
        """
        inputs, targets = self._batch(step)
        while True:
            micro = min(self.micro_windows or len(inputs), len(inputs))
            try:
                with rounded_once(self.model, inputs.size(0) > micro):
                    loss = self._add(inputs, targets, micro)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                tokens = micro * inputs.size(1)
            else:
                self._read_ahead(step + 1)
                return loss
            if micro == 1 or self.world_size > 1:
                raise PackerError(
                    f"out of memory with {tokens:,} tokens in a forward on {self.device}; set "
                    f"batch.micro_tokens below that, or batch.sequence below {inputs.size(1):,}"
                )
            self.micro_windows = micro // 2
            self.model.zero_grad(set_to_none=True)  # what the failed attempt has added
            if self.device.type == "cuda":
                torch.cuda.empty_cache()
            self.say(
                f"out of memory with {tokens:,} tokens in a forward; going on with "
                f"{self.micro_windows * inputs.size(1):,} (batch.micro_tokens)"
            )

    def _batch(self, step: int) -> tuple[Tensor, Tensor]:
        """Inputs and targets of a step, pinned for a GPU."""
        if self._ahead is not None and self._ahead[0] == step:
            return self._ahead[1]
        inputs, targets = self.batches.read(step)
        if self.device.type == "cuda":
            return inputs.pin_memory(), targets.pin_memory()
        return inputs, targets

    def _read_ahead(self, step: int) -> None:
        """Read a step's batch while the device is at work on what it was given."""
        self._ahead = None
        if self.device.type != "cpu":
            with contextlib.suppress(PackerError):  # which is raised if that step comes
                self._ahead = step, self._batch(step)

    def _add(self, inputs: Tensor, targets: Tensor, micro: int) -> Tensor:
        """As `add`, for `micro` windows at a time."""
        parts = list(zip(torch.split(inputs, micro), torch.split(targets, micro), strict=True))
        total = torch.zeros((), device=self.device)
        precision = self.device.type, self.autocast, self.autocast is not None
        for number, (tokens, wanted) in enumerate(parts):
            with self._averaging_only(number == len(parts) - 1), torch.autocast(*precision):
                loss = self.forward(self._placed(tokens), self._placed(wanted))
                share = len(tokens) / len(inputs)
                (loss * share).backward()  # type: ignore[no-untyped-call]
            total += loss.detach() * share
        return total

    def _averaging_only(self, last: bool) -> AbstractContextManager[Any]:
        """Ranks exchange gradients once a step, with the last part."""
        if self.world_size == 1 or last:
            return nullcontext()
        return self.forward.no_sync()  # type: ignore[attr-defined, no-any-return]

    def _placed(self, tokens: Tensor) -> Tensor:
        return tokens.to(self.device, non_blocking=True)


def autocast_dtype(precision: str, device: torch.device) -> torch.dtype | None:
    """The dtype of matrix products, None for float32.

    `auto` is bfloat16 on devices that multiply in it: elsewhere it is emulated, slower than
    float32. Raises PackerError: bfloat16 on a GPU that does not.
    """
    if precision == "bfloat16" and device.type == "cuda" and not multiplies_bfloat16(device):
        major, minor = torch.cuda.get_device_capability(device)
        raise PackerError(
            f"run.precision = bfloat16, and {torch.cuda.get_device_name(device)} (compute "
            f"capability {major}.{minor}) does not multiply in it, as GPUs from 8.0 on do: set "
            "run.precision=auto, which takes float32 there"
        )
    if precision == "auto":
        return torch.bfloat16 if multiplies_bfloat16(device) else None
    return torch.bfloat16 if precision == "bfloat16" else None


def multiplies_bfloat16(device: torch.device) -> bool:
    """Whether the device multiplies in bfloat16: GPUs from Ampere on, CPUs with AVX-512-BF16."""
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device) >= (8, 0)
    # Present since torch 2.6; an older torch stays with float32.
    ask = getattr(torch.cpu, "_is_avx512_bf16_supported", None)
    return bool(ask is not None and ask())


def compiles(setting: str, device: torch.device) -> bool:
    """Whether to compile: `auto` does on CUDA; a CPU run of minutes would not earn it back."""
    return setting == "on" or (setting == "auto" and device.type == "cuda")
