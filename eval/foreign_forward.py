"""How somebody's model gives logits, found by trying.

In this order: `forward_logits(tokens)`, `forward(tokens)`, `forward(tokens, targets)`. A forward
that returns only a loss still computes logits and hands them to `cross_entropy`; they are read
there. Where a loss is computed in another way, its mean over a window is all there is: windows
back to back can be scored, overlapping ones cannot, and there is no divergence and no agreement.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .errors import ModelError, ScoreError
from .forward import AnyModel, device_of
from .windows import PADDING

PROBE = 8  # tokens in the trial forward: enough to tell time from other axes


class _Foreign(nn.Module):
    """Holds a model so that its device and evaluation mode are seen."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model


def named_module(model: object) -> nn.Module | None:
    """The module whose names a checkpoint has: a model itself, or what an adapted one holds."""
    if isinstance(model, _Foreign):
        return model.model
    return model if isinstance(model, nn.Module) else None


class ForwardLogits(_Foreign):
    """A model with `forward_logits(tokens)`."""

    def forward(self, tokens: Tensor) -> Tensor:
        call: Callable[[Tensor], Any] = self.model.forward_logits  # type: ignore[assignment]
        return _logits(call(tokens), tokens)


class PlainForward(_Foreign):
    """A model whose `forward(tokens)` returns logits, alone or among other things."""

    def forward(self, tokens: Tensor) -> Tensor:
        return _logits(self.model(tokens), tokens)


class TargetsForward(_Foreign):
    """A model whose `forward(tokens, targets)` returns logits beside the loss."""

    def forward(self, tokens: Tensor) -> Tensor:
        return _logits(self.model(tokens, tokens), tokens)


class LossForward(_Foreign):
    """A model whose `forward(tokens, targets)` returns the `cross_entropy` of its logits."""

    def forward(self, tokens: Tensor) -> Tensor:
        seen = _CrossEntropyInputs()
        with seen:
            self.model(tokens, tokens)
        for logits in seen.inputs:
            if logits.ndim == 2 and len(logits) == tokens.numel():
                logits = logits.view(*tokens.shape, -1)
            if logits.ndim == 3 and logits.shape[:2] == tokens.shape:
                return logits
        return keep_logits(None, "its loss does not come from cross_entropy over all positions")


class MeanLoss(_Foreign):
    """A model that tells nothing but the mean loss of `forward(tokens, targets)`.

    Each token of a window counts the window's mean, so that sums over windows are exact.
    """

    def token_nats(self, tokens: Tensor, targets: Tensor, count: int) -> Tensor:
        """Nats [batch, count] of whole windows, one forward each.

        Raises:
            ScoreError: windows that are scored in part.
        """
        if count != tokens.size(1):
            raise ScoreError(
                "this model only returns the mean loss of a window, which cannot be divided among "
                "its tokens: score back to back (stride = window)"
            )
        nats = torch.zeros(targets.shape, device=tokens.device)
        for row, length in enumerate((targets != PADDING).sum(dim=1).tolist()):
            loss = self.model(tokens[row : row + 1, :length], targets[row : row + 1, :length])
            nats[row, :length] = loss.float()
        return nats


class _NoLogitsError(Exception):
    """This way of calling the model does not give logits; says why."""


class _CrossEntropyInputs(TorchFunctionMode):
    """Collects the first argument of every `cross_entropy` called inside."""

    def __init__(self) -> None:
        super().__init__()
        self.inputs: list[Tensor] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        del types
        kwargs = kwargs or {}
        if func is F.cross_entropy:
            self.inputs.append(args[0] if args else kwargs["input"])
        return func(*args, **kwargs)


def adapt(model: nn.Module, name: str) -> AnyModel:
    """A model the scorer understands.

    Raises:
        ModelError: no way gave logits or a loss; lists what was tried and what came of it.
    """
    found, tried = way_to_logits(model)
    if found is not None:
        return found
    if _returns_mean(model, _probe(model)):
        return MeanLoss(model)
    raise ModelError(
        f"no way was found to get logits or a mean loss from {name}; tried\n  " + "\n  ".join(tried)
    )


WAYS = {
    "forward_logits(tokens)": ForwardLogits,
    "forward(tokens)": PlainForward,
    "forward(tokens, targets)": TargetsForward,
    "its loss": LossForward,
}


def way_to_logits(model: nn.Module) -> tuple[nn.Module | None, list[str]]:
    """(the model so that it gives logits for tokens, what came of the ways that did not)."""
    tried = []
    for title, way in WAYS.items():
        candidate = way(model)
        try:
            with _trial(_probe(model)) as tokens:
                candidate(tokens)
        except Exception as error:  # whatever somebody's code raises only means: not this way
            said = str(error).partition("\n")[0]
            tried.append(f"{title}: {said or type(error).__name__}")
        else:
            return candidate, tried
    return None, tried


def _probe(model: nn.Module) -> Tensor:
    return torch.zeros(1, PROBE, dtype=torch.long, device=device_of(model))


@contextmanager
def _trial(tokens: Tensor) -> Iterator[Tensor]:
    """As scoring runs: without gradients, on a GPU in bfloat16, which its kernels may demand."""
    autocast = torch.autocast(tokens.device.type, torch.bfloat16, enabled=tokens.is_cuda)
    with torch.inference_mode(), autocast:
        yield tokens


def _returns_mean(model: nn.Module, tokens: Tensor) -> bool:
    try:
        with _trial(tokens):
            loss = model(tokens, tokens)
            again = model(tokens.repeat(2, 1), tokens.repeat(2, 1))
    except Exception:
        return False
    if not (isinstance(loss, Tensor) and loss.numel() == 1 and loss.is_floating_point()):
        return False
    # The same window twice has the same mean and twice the sum.
    return torch.allclose(loss, again, rtol=1e-3)


def _logits(result: Any, tokens: Tensor) -> Tensor:
    candidates = result if isinstance(result, (tuple, list)) else (result,)
    for value in candidates:
        value = getattr(value, "logits", value)  # an output object
        if isinstance(value, Tensor) and value.shape[:-1] == tokens.shape and value.ndim == 3:
            return value
    found = ", ".join(
        str(tuple(v.shape)) if isinstance(v, Tensor) else type(v).__name__ for v in candidates
    )
    return keep_logits(None, f"gave {found} for tokens {tuple(tokens.shape)}, not logits")


def keep_logits(logits: Tensor | None, otherwise: str) -> Tensor:
    """Raises _NoLogitsError: there are none; a bundle, which ships this, does too."""
    if logits is None:
        raise _NoLogitsError(otherwise)
    return logits
