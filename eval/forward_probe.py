"""Whether the output of a third-party model is logits, or losses, that give bits per byte.

A few forwards of a few tokens, whose results must be consistent as a language model's are.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from .errors import ModelError
from .foreign_forward import (
    GIVEN_TARGETS,
    Foreign,
    LossForward,
    MeanLoss,
    NoLogitsError,
    PlainForward,
    ShiftedLoss,
    TargetsForward,
    trial,
    way_to_logits,
    with_targets,
)
from .foreign_state import unchanged
from .forward import device_of

LARGEST_TABLE = 4096  # ids of a vocabulary all of whose losses are computed, one forward each
TRIED_IDS = 16  # in place of a target, until the loss moves
ADVICE = "return logits [batch, time, vocab] from forward(tokens) or forward_logits(tokens)"


def adapt(model: nn.Module, name: str) -> Foreign:
    """The model as one that the scorer can call. The model itself is not modified.

    Raises ModelError: no way of calling it gave logits or a loss; lists each way and its outcome.
    """
    adapted, tried = way_to_logits(model, check_logits)
    if adapted is not None:
        return _as_in_its_loss(adapted)
    with unchanged(model), trial(model) as (tokens, targets):
        objection = not_a_mean(model, tokens, targets)
    if objection is None:
        return MeanLoss(model)
    tried.append(f"the loss alone: {objection}")
    lines = "\n  ".join(tried)
    raise ModelError(
        f"no way was found to get logits or a mean loss from {name}; {ADVICE}; tried\n  {lines}"
    )


def check_logits(candidate: nn.Module) -> None:
    """Raises what speaks against a way to logits: what the model raises, or the reason in words."""
    with unchanged(candidate), trial(candidate) as (tokens, targets):
        # Targets other than the tokens show which of them a loss is computed on.
        arguments = (tokens, targets) if isinstance(candidate, GIVEN_TARGETS) else (tokens,)
        logits = candidate(*arguments)
        same = _Same(candidate, logits)
        try:
            again = candidate(tokens)
        except Exception as error:
            raise NoLogitsError(f"the second call failed: {error}") from None
        if not same(logits, again):
            raise NoLogitsError(
                "gave other logits when it was called again with the same tokens: something is "
                "kept between calls, left to chance, or taken from the targets",
            )
        if bool((logits >= 0).all()) and same(logits.float().sum(-1), torch.ones(tokens.shape)):
            raise NoLogitsError("gave probabilities, not logits")
        if not same(logits[1:], candidate(tokens[1:])):
            raise NoLogitsError("gave other logits for a window alone than with another in a batch")
        changed = tokens.clone()
        changed[:, -1] = 1 - changed[:, -1]
        if not same(logits[:, :-1], candidate(changed)[:, :-1]):
            raise NoLogitsError("gave logits that depend on later tokens, those to be predicted")


class _Same:
    """Compares numbers up to the rounding of a forward."""

    def __init__(self, model: nn.Module, scale: Tensor) -> None:
        narrow = any(p.is_floating_point() and p.itemsize < 4 for p in model.parameters())
        share = 0.05 if narrow or device_of(model).type == "cuda" else 1e-4
        finite = scale.float()[scale.isfinite()].abs()
        self.tolerance = share * (float(finite.max()) if finite.numel() else 1.0) + 1e-6

    def __call__(self, one: Tensor, other: Tensor) -> bool:
        if one.shape != other.shape:
            return False
        one, other = one.float(), other.float().to(one.device)
        return torch.allclose(one, other, rtol=0, atol=self.tolerance, equal_nan=True)


def _as_in_its_loss(adapted: Foreign) -> Foreign:
    """The logits of the loss, where forward returns others: what it was trained on counts."""
    if not isinstance(adapted, (PlainForward, TargetsForward)):
        return adapted
    for way in (LossForward, ShiftedLoss):
        other = way(adapted.model)
        try:
            check_logits(other)
            with trial(adapted) as (tokens, _):
                with unchanged(adapted):
                    returned = adapted(tokens)
                with unchanged(other):
                    used = other(tokens)
        except Exception:
            continue
        if returned.shape != used.shape:
            return other
        one, two = (logits.float().log_softmax(-1) for logits in (returned, used))
        return adapted if _Same(adapted, two)(one, two) else other
    return adapted


def not_a_mean(model: nn.Module, tokens: Tensor, targets: Tensor) -> str | None:
    """Why `forward(tokens, targets)` is not the mean of −log p of every target after its tokens;
    None where it is. tokens, targets: int64 [2, 8] of zeros and ones.
    """

    def loss(ids: Tensor, labels: Tensor) -> Tensor:
        value = with_targets(model, ids, labels)
        if not (isinstance(value, Tensor) and value.numel() == 1 and value.is_floating_point()):
            kept = type(value).__name__
            raise NoLogitsError(f"forward(tokens, targets) gave {kept}, not a loss")
        total: Tensor = value.double().cpu().reshape(())
        return total

    try:
        seen = _Vocabulary()
        with seen:
            start = loss(tokens[:1], targets[:1])
        if seen.size is None or seen.size > LARGEST_TABLE:
            return "whether it is −log p of the targets and nothing else cannot be seen"
        same = _Same(model, start)
        return _objection(loss, tokens, targets, start, same, seen.size) or _not_normalized(
            loss, seen.size, tokens
        )
    except Exception as error:
        return str(error).partition("\n")[0] or type(error).__name__


def _objection(
    loss: Callable[[Tensor, Tensor], Tensor],
    tokens: Tensor,
    targets: Tensor,
    start: Tensor,
    same: _Same,
    size: int,
) -> str | None:
    ids, labels, half = tokens[:1], targets[:1], tokens.size(1) // 2
    if not same(start, loss(ids, labels)):
        return "it is another when computed again"
    if not same(loss(tokens, targets), (start + loss(tokens[1:], targets[1:])) / 2):
        return "of two windows it is not the mean of their losses"
    last = ids.size(1) - 1
    changed, moves = labels, []
    for at in range(ids.size(1)):
        for value in range(min(size, TRIED_IDS)):  # some may be as likely as the one before
            changed = _with(labels, at, value)
            move = loss(ids, changed) - start
            if not same(move, torch.zeros_like(move)):
                break
        else:
            return f"it does not depend on target {at} of {ids.size(1)}: it is over others"
        moves.append((changed, move))
    (first, change), (final, change_of_last) = moves[0], moves[last]
    both = torch.cat([first[:, :half], final[:, half:]], dim=1)
    if not same(loss(ids, both) - start, change + change_of_last):
        return "it is no sum over targets"
    short = loss(ids[:, :half], first[:, :half]) - loss(ids[:, :half], labels[:, :half])
    if not same(half * short, ids.size(1) * change):
        return "it is not the mean over the targets of a window"
    other = _with(ids, last, 1 - int(ids[0, last]))
    base = loss(other, labels)
    if not same(loss(other, first) - base, change):
        return "the loss of the first target depends on later tokens"
    if same(loss(other, final) - base, change_of_last):
        return "the loss of the last target does not depend on the token before it"
    return None


def _not_normalized(
    loss: Callable[[Tensor, Tensor], Tensor], size: int, tokens: Tensor
) -> str | None:
    """Probabilities of all ids after one token sum to 1; with other terms or units they do not."""
    ids = torch.arange(size, device=tokens.device)
    total = float(torch.stack([-loss(tokens[:1, :1], one.view(1, 1)) for one in ids]).exp().sum())
    if abs(total - 1) > 2e-3:
        return (
            f"exp(-loss) over all {size:,} targets sums to {total:.4g}, not to 1: it is not "
            "the plain negative log likelihood in nats (an added term, label smoothing, bits?)"
        )
    return None


def _with(ids: Tensor, at: int, value: int) -> Tensor:
    """Another id in one column."""
    changed = ids.clone()
    changed[:, at] = value
    return changed


class _Vocabulary(TorchFunctionMode):
    """Takes down how many rows the first table has that tokens are looked up in."""

    def __init__(self) -> None:
        super().__init__()
        self.size: int | None = None

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        del types
        kwargs = kwargs or {}
        if func is F.embedding and self.size is None:
            weight = args[1] if len(args) > 1 else kwargs["weight"]
            self.size = len(weight)
        return func(*args, **kwargs)
