"""How a third-party model returns logits, determined by trying.

In this order: `forward_logits(tokens)`, `forward(tokens)`, `forward(tokens, targets)`. A forward
that returns only a loss still computes logits; they are read where it hands them, with targets, to
`cross_entropy` and its like, and the targets passed to it show to which positions they belong.
Where there is nothing to read, the mean over a window is all there is: windows back to back can be
scored, overlapping ones cannot, and there is no divergence and no agreement.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .errors import ScoreError
from .forward import device_of
from .windows import PADDING

# Tokens of the trial, of ids that every vocabulary has; targets that differ from them, so that
# each differs from the other, and from itself shifted by one.
PATTERN = ((0, 1, 1, 0, 1, 0, 0, 0), (1, 1, 0, 1, 0, 0, 1, 0))
TARGETS = ((1, 0, 1, 1, 1, 0, 1, 0), (0, 1, 0, 0, 1, 1, 1, 0))
TARGET_NAMES = ("targets", "target", "labels", "label", "target_ids", "y")
NOT_LOGITS = ", not logits"
LAYOUTS = ("[batch, time, vocab]", "[batch * time, vocab]", "[batch, vocab, time]")


class Foreign(nn.Module):
    """Holds a model so that its device and evaluation mode are seen.

    layout: how the model arranges logits, one of `LAYOUTS`. named: the model with the names of its
    file, where they are not its own.
    """

    def __init__(self, model: nn.Module, layout: str = LAYOUTS[0]) -> None:
        super().__init__()
        self.model, self.layout = model, layout
        self.named: nn.Module | None = None


def named_module(model: object) -> nn.Module | None:
    """The module whose names a checkpoint has: a model itself, or what an adapted one holds."""
    if isinstance(model, Foreign):
        return model.model if model.named is None else model.named
    return model if isinstance(model, nn.Module) else None


class ForwardLogits(Foreign):
    """A model with `forward_logits(tokens)`."""

    def forward(self, tokens: Tensor) -> Tensor:
        call: Callable[[Tensor], Any] = self.model.forward_logits  # type: ignore[assignment]
        return _logits(call(tokens), tokens, self.layout)


class PlainForward(Foreign):
    """A model whose `forward(tokens)` returns logits, alone or among other things."""

    def forward(self, tokens: Tensor) -> Tensor:
        return _logits(self.model(tokens), tokens, self.layout)


class TargetsForward(Foreign):
    """A model whose `forward(tokens, targets)` returns logits beside the loss."""

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> Tensor:
        targets = tokens if targets is None else targets
        return _logits(with_targets(self.model, tokens, targets), tokens, self.layout)


class LossForward(Foreign):
    """A model whose `forward(tokens, targets)` computes a loss of logits that can be read."""

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> Tensor:
        targets = tokens if targets is None else targets
        seen = _LossInputs()
        with seen:
            with_targets(self.model, tokens, targets)
        return _of_positions(seen.calls, targets)


class ShiftedLoss(Foreign):
    """As `LossForward`, of a model that takes its own tokens for labels and shifts them itself.

    It gets one more token, so that the last position has a label too.
    """

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> Tensor:
        targets = tokens if targets is None else targets
        tokens, targets = (torch.cat([ids, ids[:, -1:]], dim=1) for ids in (tokens, targets))
        seen = _LossInputs()
        try:
            with seen:
                with_targets(self.model, tokens, targets)
        except (IndexError, AssertionError, ValueError) as error:
            length = tokens.size(1)
            raise ScoreError(
                f"the model shifts its labels, so that a window of {length - 1:,} tokens needs "
                f"{length:,}, and that fails ({error}); take a shorter --window, or return logits"
            ) from error
        return _of_positions(seen.calls, targets[:, 1:])


class MeanLoss(Foreign):
    """A model that returns nothing but the mean loss of `forward(tokens, targets)`.

    Each token of a window counts the window's mean, so that sums over windows are exact.
    """

    def token_nats(self, tokens: Tensor, targets: Tensor, count: int) -> Tensor:
        """Nats [batch, count] of whole windows, one forward each.

        Raises ScoreError: windows that are scored in part.
        """
        if count != tokens.size(1):
            raise ScoreError(
                "this model only returns the mean loss of a window, which cannot be divided among "
                "its tokens: score back to back (stride = window)"
            )
        nats = torch.zeros(targets.shape, device=tokens.device)
        for row, length in enumerate((targets != PADDING).sum(dim=1).tolist()):
            part = slice(row, row + 1), slice(length)
            nats[row, :length] = with_targets(self.model, tokens[part], targets[part]).float()
        return nats


class NoLogitsError(Exception):
    """This way of calling the model does not give logits; the message has the reason."""


class _LossInputs(TorchFunctionMode):
    """Collects (logits [..., vocab], targets) of every loss computed inside.

    They are arguments of cross_entropy or nll_loss, or what is taken by targets from all of a row.
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Tensor, Tensor]] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        del types
        kwargs = kwargs or {}
        if func in (F.cross_entropy, F.nll_loss):
            logits, targets = _arguments(args, kwargs, "input", "target")
            self._add(logits, targets, 1)
        elif func in (torch.gather, Tensor.gather):
            source, dim, index = _arguments(args, kwargs, "input", "dim", "index")
            if dim % source.ndim == source.ndim - 1 and index.size(-1) == 1:
                self._add(source, index.squeeze(-1), -1)
        elif func is Tensor.__getitem__ and isinstance(args[1], tuple) and args[0].ndim == 2:
            rows, columns = (*args[1], None)[:2]
            if isinstance(columns, Tensor) and isinstance(rows, (Tensor, range)):
                self._add(args[0], columns, -1)
        return func(*args, **kwargs)

    def _add(self, logits: Tensor, targets: Tensor, classes: int) -> None:
        logits = logits.movedim(classes, -1) if logits.ndim > 1 else logits
        if logits.shape[:-1] == targets.shape and not targets.is_floating_point():
            self.calls.append((logits, targets))


def _arguments(args: tuple[Any, ...], kwargs: dict[str, Any], *names: str) -> tuple[Any, ...]:
    """The first arguments of a call, by whichever way they were handed over."""
    return (*args, *(kwargs[name] for name in names[len(args) :]))[: len(names)]


WAYS: dict[str, type[Foreign]] = {
    "forward_logits(tokens)": ForwardLogits,
    "forward(tokens)": PlainForward,
    "forward(tokens, targets)": TargetsForward,
    "its loss": LossForward,
    "its loss, labels shifted inside": ShiftedLoss,
}
READ = (LossForward, ShiftedLoss)  # whose logits need no layout
GIVEN_TARGETS = (TargetsForward, *READ)


def way_to_logits(
    model: nn.Module, check: Callable[[nn.Module], None]
) -> tuple[Foreign | None, list[str]]:
    """(the model so that it gives logits for tokens, what came of the ways that did not).

    check: raises what speaks against a way.
    """
    tried: list[str] = []
    for title, way in WAYS.items():
        causes: list[str] = []
        for layout in LAYOUTS[: 1 if way in READ else None]:
            candidate = way(model, layout)
            try:
                check(candidate)
            except Exception as error:  # whatever somebody's code raises only means: not this way
                causes.append(str(error).partition("\n")[0] or type(error).__name__)
            else:
                return candidate, tried
        specific = [text for text in causes if not text.endswith(NOT_LOGITS)]
        tried.append(f"{title}: {(specific or causes)[0]}")
    return None, tried


@contextmanager
def trial(model: object) -> Iterator[tuple[Tensor, Tensor]]:
    """Tokens and targets int64 [2, 8], inside as scoring runs: without gradients, on a GPU in
    bfloat16, which its kernels may demand.
    """
    device = device_of(model)
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda")
    with torch.no_grad(), autocast:
        yield torch.tensor(PATTERN, device=device), torch.tensor(TARGETS, device=device)


def with_targets(model: nn.Module, tokens: Tensor, targets: Tensor) -> Any:
    """What forward returns for tokens and targets, under the name that it has for these.

    Raises NoLogitsError: only parameters that may be left out, and none called as targets are.
    """
    parameters = inspect.signature(model.forward).parameters
    for name in TARGET_NAMES:
        if name in parameters:
            return model(tokens, **{name: targets})
    others = list(parameters.values())[1:]
    if len(others) > 1 and others[0].default is not inspect.Parameter.empty:
        raise NoLogitsError(f"none of the parameters ({', '.join(parameters)}) takes targets")
    return model(tokens, targets)


def _logits(result: Any, tokens: Tensor, layout: str) -> Tensor:
    """The logits [batch, time, vocab] in what a model returned.

    Raises NoLogitsError: none, or several tensors that could be.
    """
    parts = list(result) if isinstance(result, (tuple, list)) else [result]
    named = [shapes for part in parts for shapes in [_called_logits(part)] if shapes is not None]
    if isinstance(result, dict) and not named:
        parts = list(result.values())
    batch, time = tokens.shape
    fitting = []
    for value in named or parts:
        if not isinstance(value, Tensor) or not value.is_floating_point():
            continue
        if layout == LAYOUTS[0] and value.ndim == 3 and value.shape[:2] == tokens.shape:
            fitting.append(value)
        elif layout == LAYOUTS[1] and value.ndim == 2 and len(value) == batch * time:
            fitting.append(value.view(batch, time, -1))
        elif layout == LAYOUTS[2] and value.ndim == 3 and value.shape[::2] == tokens.shape:
            fitting.append(value.transpose(1, 2))
    shapes = ", ".join(
        str(tuple(v.shape)) if isinstance(v, Tensor) else type(v).__name__ for v in parts
    )
    outcome = f"gave {shapes} for tokens {tuple(tokens.shape)}"
    if len(fitting) > 1:
        raise NoLogitsError(f"{outcome}, any of which could be logits; return them alone")
    if not fitting:
        raise NoLogitsError(outcome + NOT_LOGITS)
    return fitting[0]


def _called_logits(value: Any) -> Tensor | None:
    """Of an output object or a dictionary."""
    logits = value.get("logits") if isinstance(value, dict) else getattr(value, "logits", None)
    return logits if isinstance(logits, Tensor) else None


def _of_positions(calls: list[tuple[Tensor, Tensor]], targets: Tensor) -> Tensor:
    """Logits [batch, time, vocab] that were held against these targets [batch, time].

    Raises NoLogitsError: none were, or several that differ.
    """
    read = [logits for call in calls for logits in _aligned([call], targets)]
    read = read or list(_aligned(calls, targets))
    if len(read) > 1 and not all(torch.equal(read[0], other) for other in read[1:]):
        raise NoLogitsError(f"{len(read)} losses of other logits were computed on the same targets")
    if not read:
        raise NoLogitsError(
            "no logits of all positions were seen in cross_entropy, nll_loss or gather"
        )
    return read[0]


def _aligned(calls: list[tuple[Tensor, Tensor]], targets: Tensor) -> Iterator[Tensor]:
    """The logits of calls, which are parts of one loss, if their targets are these, in any order of
    batch and time; more at the end of every row, as ignored ones, do not count.
    """
    batch, time = targets.shape
    if len({logits.size(-1) for logits, _ in calls}) != 1:
        return
    rows = [logits.reshape(-1, logits.size(-1)) for logits, _ in calls]
    labels = [held.reshape(-1) for _, held in calls]
    if sum(map(len, labels)) in (batch * time, batch * (time + 1)):
        whole, held = torch.cat(rows), torch.cat(labels)
        if torch.equal(held.view(batch, -1)[:, :time], targets):
            yield whole.view(batch, -1, whole.size(-1))[:, :time]
        elif torch.equal(held.view(-1, batch)[:time], targets.T):
            yield whole.view(-1, batch, whole.size(-1))[:time].transpose(0, 1)
        elif len(calls) > 1 and all(len(part) % batch == 0 for part in labels):  # parts of time
            held = torch.cat([part.view(batch, -1) for part in labels], dim=1)
            whole = torch.cat([part.view(batch, -1, part.size(-1)) for part in rows], dim=1)
            if torch.equal(held[:, :time], targets):
                yield whole[:, :time]
