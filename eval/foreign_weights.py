"""Weights of a file into somebody's model: every name accounted for, on both sides."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedTensorMixin  # type: ignore[attr-defined]

from .errors import ModelError

# What compiling, data parallelism, sharding and averaging put into names.
WRAPPERS = {"module", "_orig_mod", "_forward_module", "_fsdp_wrapped_module"}
# Buffers that libraries write or leave out as they like, and that follow from the configuration.
DERIVED = {
    *("masked_bias", "inv_freq", "original_inv_freq", "position_ids"),
    *("n_averaged", "total_ops", "total_params"),
}
NAMED = 3  # names that a note lists

Rename = Callable[[Iterable[str]], dict[str, str]]


@dataclass(frozen=True, eq=False)
class Fit:
    """How a file's tensors go into a model.

    weights: by the model's names. names: the file's, by the model's, where they are others.
    differences: why they do not fit. notes: what was passed over.
    """

    weights: Mapping[str, Tensor]
    names: Mapping[str, str]
    differences: tuple[str, ...]
    notes: tuple[str, ...] = ()


def load_strictly(model: nn.Module, state_dict: Mapping[str, Tensor]) -> Fit:
    """Load weights when names and shapes are the model's; returns how they fit.

    Wrapper prefixes on either side do not count. A name may be missing if it shares its storage
    with one that is there, or is a mask or table that the model computes; a name may be one too
    many if it is such a mask or table, a bias of zeros, or a copy of a tensor that the model has
    under another name.
    Raises ModelError: the differences by name: missing, not expected, of another shape, or two
    values for one tensor.
    """
    best, lines = best_fit(model, state_dict)
    if lines:
        raise ModelError(
            f"the checkpoint is not this model, {len(lines)} differences:\n  "
            + "\n  ".join(sorted(line.replace("\n", "\\n") for line in lines))
        )
    saved = model.state_dict().keys()
    model.load_state_dict({n: v for n, v in best.weights.items() if n in saved}, strict=False)
    buffers = dict(model.named_buffers(remove_duplicate=False))
    for name in best.weights.keys() - saved:
        buffers[name].copy_(best.weights[name])
    return best


def best_fit(model: nn.Module, state_dict: Mapping[str, Tensor]) -> tuple[Fit, tuple[str, ...]]:
    """(the fit under the names that fit best, its differences, none if it fits).

    Meta tensors are compared by name and shape; a batch of squares is then taken for masks.
    """
    fits = [fit_under(rename, model, state_dict) for rename in (_as_is, _unwrapped, _common)]
    best = min(fits, key=lambda fit: len(fit.differences))
    return best, fits[0].differences if len(best.differences) > 1 else best.differences


def fit_under(rename: Rename, model: nn.Module, state_dict: Mapping[str, Tensor]) -> Fit:
    """The fit of names that `rename` makes comparable; one that maps two names to one fits not."""
    own = _own_tensors(model)
    saved = [name for name in model.state_dict() if name in own]
    mine, theirs = rename(own), rename(state_dict)
    if len({*mine.values()}) < len(mine) or len({*theirs.values()}) < len(theirs):
        return Fit(
            {}, {}, (*(f"not in the model: {name}" for name in state_dict), "ambiguous names")
        )
    by_plain = {plain: name for name, plain in mine.items()}
    tensors = {by_plain[p]: state_dict[n] for n, p in theirs.items() if p in by_plain}
    extra = {n: state_dict[n] for n, p in theirs.items() if p not in by_plain}
    lines, notes = [], []
    for name, value in tensors.items():
        if not _same_shape(own[name], value):
            lines.append(f"{name} is {_shape(value)}, the model has {_shape(own[name])}")
    lines += _disagreements(own, tensors)
    present = {_storage(own[name]) for name in tensors}
    missing = [n for n in saved if n not in tensors and _storage(own[n]) not in present]
    computed = [n for n in missing if n in dict(model.named_buffers()) and _derived(n, own[n])]
    lines += [f"missing: {n} {_shape(own[n])}" for n in missing if n not in computed]
    spare = [n for n, one in extra.items() if _without_effect(n, one) or _copy_of(one, tensors)]
    lines += [f"not in the model: {n} {_shape(extra[n])}" for n in extra if n not in spare]
    if computed:
        notes.append(f"not in the file, as the model computes them: {_listed(computed)}")
    if spare:
        notes.append(f"in the file, and not used by the model: {_listed(spare)}")
    names = {by_plain[p]: n for n, p in theirs.items() if by_plain.get(p, n) != n}
    return Fit(tensors, names, tuple(lines), tuple(notes))


class Renamed(nn.Module):
    """A model whose tensors have the names of its file.

    names: the file's, by the model's, where they are others.
    """

    def __init__(self, model: nn.Module, names: Mapping[str, str]) -> None:
        super().__init__()
        self.model, self.names = model, dict(names)

    def named_parameters(self, *args: Any, **options: Any) -> Iterator[tuple[str, nn.Parameter]]:
        for name, parameter in self.model.named_parameters(*args, **options):
            yield self.names.get(name, name), parameter

    def named_buffers(self, *args: Any, **options: Any) -> Iterator[tuple[str, Tensor]]:
        for name, buffer in self.model.named_buffers(*args, **options):
            yield self.names.get(name, name), buffer


def _own_tensors(model: nn.Module) -> dict[str, Tensor]:
    """All parameters and buffers, tied names each, and buffers that are not saved too."""
    parameters = model.named_parameters(remove_duplicate=False)
    return {**dict(parameters), **dict(model.named_buffers(remove_duplicate=False))}


def _as_is(names: Iterable[str]) -> dict[str, str]:
    return {name: name for name in names}


def _unwrapped(names: Iterable[str]) -> dict[str, str]:
    """Without what wrappers put into names, at any depth."""
    return {
        name: ".".join(part for part in name.split(".") if part not in WRAPPERS) for name in names
    }


def _common(names: Iterable[str]) -> dict[str, str]:
    """Also without the first parts that all names share, as `model.` of a class that holds one."""
    plain = _unwrapped(names)
    plain = {n: p for n, p in plain.items() if p.rpartition(".")[2] not in DERIVED} or plain
    paths = [p.split(".") for p in plain.values()]
    shared = 0
    while paths and all(len(p) > shared + 1 and p[shared] == paths[0][shared] for p in paths):
        shared += 1
    return {n: ".".join(p.split(".")[shared:]) or p for n, p in _unwrapped(names).items()}


def _disagreements(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> list[str]:
    """Tensors that are one in the model and have two values in the file."""
    first: dict[tuple[object, ...], str] = {}
    lines = []
    for name, value in tensors.items():
        other = first.setdefault(_storage(own[name]), name)
        if value.is_meta or other == name:
            continue
        if not torch.equal(tensors[other], value):
            gap = float((tensors[other].double() - value.double()).abs().max())
            lines.append(
                f"{other} and {name} are one tensor in the model and differ by up to {gap:.3g} in "
                "the file"
            )
    return lines


def _storage(tensor: Tensor) -> tuple[object, ...]:
    if isinstance(tensor, UninitializedTensorMixin) or tensor.is_meta or not tensor.numel():
        return (id(tensor),)
    place = tensor.untyped_storage().data_ptr(), tensor.storage_offset()
    return (tensor.device, *place, tuple(tensor.shape), tensor.stride())


def _same_shape(own: Tensor, value: Tensor) -> bool:
    return isinstance(own, UninitializedTensorMixin) or own.shape == value.shape


def _shape(tensor: Tensor) -> str:
    if isinstance(tensor, UninitializedTensorMixin):
        return "(unknown)"
    return str(tuple(tensor.shape))


def _derived(name: str, value: Tensor) -> bool:
    return name.rpartition(".")[2] in DERIVED or _is_causal_mask(value)


def _without_effect(name: str, value: Tensor) -> bool:
    """A mask or table that the model computes, or a bias of zeros, as GPTQ's programs write."""
    is_bias = name.rpartition(".")[2] == "bias" and value.dim() == 1
    return _derived(name, value) or (is_bias and (value.is_meta or not bool(value.any())))


def _is_causal_mask(value: Tensor) -> bool:
    """A square of two values, one of them on and below the diagonal and the other above it."""
    if value.dim() < 2 or value.size(-1) != value.size(-2) or value.size(-1) < 2:
        return False
    if value.is_meta:
        return value.dim() > 2
    square = value.reshape(-1, *value.shape[-2:])[0]
    size = square.size(-1)
    below = torch.ones(size, size, dtype=torch.bool, device=square.device).tril()
    seen, hidden = square[0, 0], square[0, -1]
    return bool(seen != hidden) and bool((value == torch.where(below, seen, hidden)).all())


def _copy_of(value: Tensor, tensors: Mapping[str, Tensor]) -> bool:
    return any(
        value is other
        or (
            not value.is_meta and value.shape == other.shape and torch.equal(value, other.to(value))
        )
        for other in tensors.values()
        if value.numel() > 1
    )


def _listed(names: list[str]) -> str:
    more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
