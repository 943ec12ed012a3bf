"""Fake quantization of the parameters of a module, by name: on, off, annealed or held."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import nn
from torch.nn.utils import parametrize

from .choice import Choice, parse_choice
from .fake_quant import FakeQuantized, check_faked
from .formats import FormatError, Passthrough

ORIGINAL = ".original"
PARAMETRIZATIONS = "parametrizations."
KEEP = Choice(Passthrough("raw"))


def attach(
    module: nn.Module,
    choices: Mapping[str, Choice | str],
    *,
    strength: float = 1.0,
    held: bool = False,
) -> tuple[str, ...]:
    """Fake-quantize parameters of `module` by name, and every other name of a tied parameter.

    `raw` does not quantize and needs no wrapper. Where a parameter has several names, their
    choices must agree. Call before `torch.compile`. Rules that search (`mse`, `percentile`) do so
    at every step, which only `held` spares. While attached, a parameter `a.weight` is called
    `a.parametrizations.weight.original`; see `plain_name`.

    Returns the names in `choices` that match no parameter, in order.
    Raises FormatError: two choices for one tied parameter, a dtype that a format cannot hold, a
    parameter that is attached already.
    """
    parameters = dict(module.named_parameters(remove_duplicate=False))
    for name in parameters:
        if plain_name(name) in choices and plain_name(name) != name:
            raise FormatError(f"{plain_name(name)} is fake-quantized already; detach it first")
    wanted: dict[int, tuple[str, Choice]] = {}
    for name in (name for name in choices if name in parameters):
        choice, parameter = choices[name], parameters[name]
        if isinstance(choice, str):
            choice = parse_choice(choice)
        if not isinstance(choice.format, Passthrough):
            try:
                check_faked(parameter, choice)
            except FormatError as error:
                raise FormatError(f"{name}: {error}") from None
        first, other = wanted.setdefault(id(parameter), (name, choice))
        if other != choice:
            raise FormatError(f"{first} and {name} are tied: {other} and {choice} disagree")
    for name, parameter in parameters.items():
        _, choice = wanted.get(id(parameter), (name, KEEP))
        path, _, leaf = name.rpartition(".")
        owner = module.get_submodule(path)
        # A module that is used twice has its parameters under two names.
        if choice.format != KEEP.format and not parametrize.is_parametrized(owner, leaf):
            wrapper = FakeQuantized(choice, parameter, strength=strength, held=held)
            parametrize.register_parametrization(owner, leaf, wrapper)
    return tuple(name for name in choices if name not in parameters)


def detach(module: nn.Module) -> None:
    """Take every fake quantization off; the parameters are the full-precision weights again."""
    for owner in list(module.modules()):
        for leaf, wrapper in list(getattr(owner, "parametrizations", {}).items()):
            if isinstance(wrapper[0], FakeQuantized):
                parametrize.remove_parametrizations(owner, leaf, leave_parametrized=False)


def set_strength(module: nn.Module, strength: float) -> None:
    """How much of the rounding every attached parameter sees, in [0, 1], from the next call on."""
    if not 0 <= strength <= 1:
        raise FormatError(f"strength lies in [0, 1], found {strength}")
    for wrapper in module.modules():
        if isinstance(wrapper, FakeQuantized):
            wrapper.strength.fill_(strength)


def hold_scales(module: nn.Module) -> None:
    """Recompute the held scales of every attached parameter from its current weight."""
    for attached in module.modules():
        if isinstance(attached, parametrize.ParametrizationList):
            wrapper, weight = attached[0], attached.original
            if isinstance(wrapper, FakeQuantized) and isinstance(weight, torch.Tensor):
                wrapper.hold(weight)


@contextlib.contextmanager
def rounded_once(module: nn.Module, once: bool = True) -> Iterator[None]:
    """In this context the weights do not change: each is rounded now, not whenever it is read.

    once: False does nothing.
    """
    attached = [
        (one[0], one.original)
        for one in module.modules()
        if isinstance(one, parametrize.ParametrizationList) and isinstance(one[0], FakeQuantized)
    ]
    for wrapper, weight in attached if once else ():
        assert isinstance(weight, torch.Tensor)
        wrapper.rounded = wrapper(weight.detach())
    try:
        yield
    finally:
        for wrapper, _ in attached:
            wrapper.rounded = None


def plain_name(name: str) -> str:
    """`a.weight` of `a.parametrizations.weight.original`; any other name unchanged."""
    if not name.endswith(ORIGINAL) or PARAMETRIZATIONS not in name:
        return name
    path, _, leaf = name.removesuffix(ORIGINAL).rpartition(PARAMETRIZATIONS)
    return path + leaf
