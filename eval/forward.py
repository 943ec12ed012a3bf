"""Run a model on a batch of windows: log-probabilities where they are scored, nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .errors import ScoreError
from .windows import PADDING

# Vocabularies are often rounded up for speed, to at most this multiple.
VOCAB_MULTIPLE = 128


class LanguageModel(Protocol):
    """Tokens int64 [batch, time] to logits [batch, time, vocab]."""

    def __call__(self, tokens: Tensor, /) -> Tensor: ...


@runtime_checkable
class TailLogits(Protocol):
    """A model that can leave out what the last positions do not need.

    It keeps nothing between calls, so that on a CPU several threads may call it at once.
    """

    def tail_logits(self, tokens: Tensor, count: int, /) -> Tensor:
        """Logits [batch, count, vocab] of the last `count` positions of tokens [batch, time]."""


@runtime_checkable
class TokenNats(Protocol):
    """A model that returns only losses: nats [batch, count] of the last `count` targets."""

    def token_nats(self, tokens: Tensor, targets: Tensor, count: int, /) -> Tensor:
        """Both [batch, time]; targets of `PADDING` at the end do not exist and cost nothing."""


@runtime_checkable
class NextLogits(Protocol):
    """A model that can go on from what it kept of earlier positions."""

    def start(self, length: int, /) -> Any:
        """What is kept while it goes through windows of `length` tokens; nothing seen yet."""

    def next_logits(self, tokens: Tensor, past: Any, /) -> Tensor:
        """Logits [batch, vocab] after the last of tokens [batch, time], which `past` takes in."""


AnyModel = LanguageModel | TokenNats


def device_of(model: object) -> torch.device:
    """Where the model's parameters are; the CPU for a plain callable."""
    if isinstance(model, nn.Module):
        parameter = next(model.parameters(), None)
        if parameter is not None:
            return parameter.device
    return torch.device("cpu")


def worker_count(models: Sequence[object], wanted: int | None) -> int:
    """Threads that may run batches side by side: see `Setting.workers`."""
    if wanted is not None:
        return max(1, wanted)
    on_cpu = device_of(models[0]).type == "cpu"
    if on_cpu and all(isinstance(model, TailLogits) for model in models):
        return torch.get_num_threads()
    return 1


@contextmanager
def evaluation_mode(models: Sequence[object]) -> Iterator[None]:
    """Modules that are in training mode leave it in here: no dropout."""
    training = [m for m in models if isinstance(m, nn.Module) and m.training]
    for module in training:
        module.eval()
    try:
        yield
    finally:
        for module in training:
            module.train()


@contextmanager
def inference(device: torch.device, autocast: bool) -> Iterator[None]:
    """No gradients; with `autocast` bfloat16 where torch finds that safe. One thread's own.

    Not inference_mode: tables that a model keeps from here may be used under gradients later.
    """
    with torch.no_grad(), torch.autocast(device.type, torch.bfloat16, enabled=autocast):
        yield


@contextmanager
def scoring(models: Sequence[object], autocast: bool) -> Iterator[None]:
    """Both `evaluation_mode` and `inference`, for one thread."""
    with evaluation_mode(models), inference(device_of(models[0]), autocast):
        yield


def tail_logits(model: AnyModel, tokens: Tensor, count: int, vocab_size: int | None) -> Tensor:
    """Logits [batch, count, vocab] in float32 of the last `count` positions of [batch, time].

    Raises ScoreError: a model that gives no such logits, or has another vocabulary.
    """
    if isinstance(model, TailLogits):
        logits = model.tail_logits(tokens, count)
    elif isinstance(model, TokenNats):
        raise ScoreError("this model only returns losses: divergence and agreement need its logits")
    else:
        logits = model(tokens)[:, -count:]
    if logits.shape[:-1] != (len(tokens), count):
        raise ScoreError(
            f"the model turned tokens {tuple(tokens.shape)} into {tuple(logits.shape)}, "
            f"not into logits ({len(tokens)}, {tokens.size(1)}, vocabulary)"
        )
    _check_vocabulary(logits.size(-1), tokens, vocab_size)
    return logits.float()


def _check_vocabulary(model: int, tokens: Tensor, tokenizer: int | None) -> None:
    """A model may have more ids than the tokenizer, or lack some that the text does not use."""
    if tokenizer is None or model >= tokenizer:
        return
    highest = int(tokens.max())
    if highest >= model:
        raise ScoreError(
            f"the model has a vocabulary of {model:,} and the tokenizer one of {tokenizer:,}, and "
            f"the text has token {highest:,}: score with the tokenizer the model was trained with"
        )


def are_sound(logits: Tensor) -> bool:
    """Whether a softmax of them exists; −inf only means that a token cannot follow."""
    return bool(logits.amax(dim=-1).isfinite().all())  # amax hands NaN on


def following_logits(
    model: AnyModel, tokens: Tensor, past: Any | None, vocab_size: int | None
) -> Tensor:
    """Logits [batch, vocab] in float32 after the last of tokens [batch, time].

    past: what a model of `NextLogits` gave at its start, and has gone through all tokens but the
    last with; None computes the whole window. Raises ScoreError as `tail_logits`.
    """
    if past is None or not isinstance(model, NextLogits):
        return tail_logits(model, tokens, 1, vocab_size)[:, -1]
    logits = model.next_logits(tokens, past)
    _check_vocabulary(logits.size(-1), tokens, vocab_size)
    return logits.float()


def nats_of(logits: Tensor, targets: Tensor) -> Tensor:
    """Nats [batch, count] of targets [batch, count] under logits [batch, count, vocab]."""
    losses = F.cross_entropy(
        logits.flatten(0, 1), targets.flatten(), ignore_index=PADDING, reduction="none"
    )
    return losses.view_as(targets)


def token_nats(
    model: AnyModel, tokens: Tensor, targets: Tensor, count: int, vocab_size: int | None
) -> Tensor:
    """Nats [batch, count] of the last `count` targets, however the model gives them."""
    if isinstance(model, TokenNats):
        return model.token_nats(tokens, targets, count)
    logits = tail_logits(model, tokens, count, vocab_size)
    _check_vocabulary(logits.size(-1), targets, vocab_size)
    return nats_of(logits, targets[:, -count:])
