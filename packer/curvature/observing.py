"""One batch of a calibration, and the curvature of all batches."""

from __future__ import annotations

import contextlib
import types
from collections.abc import Callable, Container, Iterable, Iterator, Mapping

import torch
import torch.utils.checkpoint
from torch import Tensor, nn

from packer.checkpoint.checkpoint import without_wrapper
from packer.curvature.all_moments import AllMoments
from packer.curvature.moments import mean_of
from packer.curvature.weight_uses import WeightUses
from packer.errors import CurvatureError
from packer.quantizers.curvature import Curvature

MAY_TAKE = 4  # times the longest batch so far: one that may exceed the limit then is undoable
WORKING_SHARE = 0.95  # of the time limit; the rest is for computing the results


def live_tensors(
    module: nn.Module, names: Container[str], ties: Mapping[str, str]
) -> dict[str, Tensor]:
    """The module's float tensors with these names, without wrapper prefixes; tied ones once.

    ties: tied name -> the name among `names`.
    """
    named = [*module.named_parameters(remove_duplicate=False), *module.named_buffers()]
    tensors: dict[str, Tensor] = {}
    for name, tensor in named:
        plain = without_wrapper(name)
        kept = ties.get(plain, plain)
        if kept in names and tensor.is_floating_point():
            tensors.setdefault(kept, tensor)
    return dict(sorted(tensors.items()))


@contextlib.contextmanager
def gradients_for(weights: Iterable[Tensor]) -> Iterator[None]:
    """In this context all weights require gradients."""
    asked = [weight for weight in weights if weight.is_leaf and not weight.requires_grad]
    for weight in asked:
        weight.requires_grad_(True)
    try:
        yield
    finally:
        for weight in asked:
            weight.requires_grad_(False)


@contextlib.contextmanager
def seen_once() -> Iterator[None]:
    """In this context nothing is compiled, because operations could not be observed, and nothing is
    checkpointed, because it would run again in the backward pass.
    """
    eager = getattr(torch.compiler, "set_stance", None)  # from PyTorch 2.6 on
    module = torch.utils.checkpoint.__dict__
    at_once = {
        "CheckpointFunction": types.SimpleNamespace(
            apply=lambda function, _, *args: function(*args)
        ),
        "_checkpoint_hook": contextlib.nullcontext,
    }
    kept = {name: module[name] for name in at_once if name in module}
    with contextlib.nullcontext() if eager is None else eager("force_eager"):
        module.update(at_once)
        try:
            yield
        finally:
            module.update(kept)


def keep_tokens(batch: Tensor) -> Tensor:
    """A batch as int64. Raises CurvatureError: it is not a batch of tokens."""
    if batch.dim() != 2 or batch.dtype not in (torch.int64, torch.int32):
        raise CurvatureError(
            f"a batch is {batch.dtype} {list(batch.shape)}; "
            "integer tokens [windows, time] are wanted"
        )
    return batch.long()


def keep_finite(logits: Tensor) -> None:
    """Raises CurvatureError: not finite; −inf is allowed, for tokens that cannot follow."""
    if not bool(logits.detach().amax(-1).isfinite().all()):
        raise CurvatureError("the model's logits are not finite; its weights are damaged")


def observe(
    logits_of: Callable[[Tensor], Tensor],
    uses: WeightUses,
    batch: Tensor,
    gradient_of: Callable[[Tensor], Tensor],
) -> int:
    """One forward and backward pass. Returns the width of the logits.

    logits_of: tokens int64 [windows, time] -> float32 [windows, time, vocab].
    gradient_of: logits -> the gradient of the summed nats of labels sampled from them.
    Raises CurvatureError: not a batch of tokens, or logits that are not finite.
    """
    tokens = keep_tokens(batch)
    on_gpu = tokens.device.type == "cuda"
    try:
        with (
            torch.enable_grad(),
            torch.autocast(tokens.device.type, torch.bfloat16, enabled=on_gpu),
            seen_once(),
            uses,
        ):
            logits = logits_of(tokens)
        uses.end_input()
        keep_finite(logits)
        if logits.requires_grad:
            uses.backward(logits, gradient_of(logits))
    finally:
        uses.end_batch()
    return logits.size(-1)


def collect(uses: WeightUses, tokens: int) -> Iterator[tuple[str, Curvature]]:
    """(name, curvature) of every weight that has one; of a linear map that is also a table, both.

    Sums are freed one after the other, so that sums and means are never all in memory. Maps of the
    same inputs, such as q, k and v, share one second moment.
    """
    sums = uses.moments
    inputs = sums.inputs_by_name()
    shared: dict[tuple[str, ...], Tensor] = {}
    for name in sorted(uses.weights):
        table = sums.tables.pop(name).curvature(tokens) if name in sums.tables else None
        if name in sums.maps:
            key = tuple(inputs[name])
            if key not in shared:
                shared[key] = input_moment(sums, key, tokens)
            yield name, sums.maps.pop(name).curvature(shared[key], tokens, table)
            for names in key:
                if names.split("\n")[-1] == name:  # no later weight has this input
                    shared.pop(key, None)
                    del sums.inputs[names]
        elif table is not None:
            yield name, table
        elif name in sums.parameters:
            own = sums.parameters.pop(name).curvature(tokens)
            if own is not None:
                yield name, own


def input_moment(sums: AllMoments, keys: Iterable[str], tokens: int) -> Tensor:
    """float32 [banks, columns, columns], the mean over tokens of the `inputs` of these keys."""
    moments = [sums.inputs[key] for key in keys]
    total = moments[0].hessian
    for one in moments[1:]:
        total = total + one.hessian
    return mean_of(total, moments[0].columns, tokens)
