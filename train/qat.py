"""Quantization-aware training: which tensors are fake-quantized, and from when on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from packer.quantizers.attachment import attach, hold_scales, set_strength
from packer.quantizers.choice import Choice, parse_choice
from packer.quantizers.formats import FormatError
from packer.quantizers.quantize import quantizable
from packer.train.schedule import fall
from packer.train.settings import QATSettings, ScheduleSettings
from torch import Tensor, nn

from packer.checkpoint.roles import roles_of, select
from packer.errors import PackerError
from packer.planning.plan import read_plan

STEPS_BELOW = 10


def choices_for(settings: QATSettings, weights: Mapping[str, Tensor]) -> dict[str, Choice]:
    """The choice of every tensor that the formats or the plan name.

    Raises PackerError: a selector that matches nothing, a choice that cannot be read, or a plan for
    other tensors.
    """
    if settings.plan:
        return _plan_choices(settings.plan, weights)
    return selected(settings.formats, weights)


def selected(formats: Mapping[str, str], weights: Mapping[str, Tensor]) -> dict[str, Choice]:
    """Tensor -> choice of a format map; where selectors overlap the later wins.

    Raises SelectorError: a selector matches nothing. PackerError: a choice cannot be read.
    """
    roles = roles_of({name: tuple(weight.shape) for name, weight in weights.items()})
    found: dict[str, Choice] = {}
    for selector, text in formats.items():
        try:
            choice = parse_choice(text)
        except FormatError as error:
            raise PackerError(f"formats: {selector}: {error}") from None
        found.update(dict.fromkeys(select(selector, roles), choice))
    return found


def _plan_choices(path: str, weights: Mapping[str, Tensor]) -> dict[str, Choice]:
    plan = read_plan(path)
    shapes = {info.name: info.shape for info in plan.measurement.tensors}
    ours = {name: tuple(weight.shape) for name, weight in weights.items()}
    for name in sorted(set(shapes) | set(ours)):
        if shapes.get(name) != ours.get(name):
            raise PackerError(
                f"{path} plans {name} as {_spelled(shapes.get(name))}, and the model has it as "
                f"{_spelled(ours.get(name))}: the plan belongs to another model"
            )
    return {name: parse_choice(text) for name, text in plan.choices.items()}


def _spelled(shape: tuple[int, ...] | None) -> str:
    return "nothing" if shape is None else str(list(shape))


@dataclass
class FakeQuantization:
    """Fake quantization of a model and how far it is on; `since` is its first step, None before.

    Attach before the model is compiled: switching fills a buffer that the compiled graph reads.
    """

    model: nn.Module
    settings: QATSettings
    choices: Mapping[str, Choice]
    since: int | None = None
    low_steps: int = 0  # in a row, up to now, that began below `late_below`

    @staticmethod
    def attached(model: nn.Module, settings: QATSettings) -> FakeQuantization:
        """Wraps the chosen parameters of `model`, switched off. Raises PackerError."""
        weights = {name: p.detach() for name, p in model.named_parameters()}
        choices = choices_for(settings, weights)
        wrapped = {name: c for name, c in choices.items() if quantizable(weights[name])}
        if settings.mode != "off":
            try:
                attach(model, wrapped, strength=0.0, held=settings.hold > 0)
            except FormatError as error:
                raise PackerError(f"qat: {error}") from None
        return FakeQuantization(model, settings, choices)

    def begin_step(
        self, schedule: ScheduleSettings, step: int, seconds: float, pace: float = 0.0
    ) -> None:
        """Switch on, anneal and choose held scales anew, as due before step number `step`.

        By the clock, `late` begins after `STEPS_BELOW` steps below its threshold in a row: one slow
        step must not begin it.
        """
        settings = self.settings
        if settings.mode == "off":
            return
        if self.since is None:
            low = fall(schedule, step, seconds, pace) < settings.late_below
            self.low_steps = self.low_steps + 1 if low else 0
            wanted = STEPS_BELOW if schedule.max_wallclock else 1
            if settings.mode == "late" and self.low_steps < wanted:
                return
            self.since = step
        age = step - self.since
        if age <= settings.anneal:
            set_strength(self.model, self.strength(step))
        if settings.hold and age % settings.hold == 0:
            hold_scales(self.model)

    def strength(self, step: int) -> float:
        """How much of the rounding step number `step` sees."""
        if self.since is None:
            return 0.0
        if not self.settings.anneal:
            return 1.0
        return min((step - self.since + 1) / (self.settings.anneal + 1), 1.0)

    def restore(self, since: int | None, step: int) -> None:
        """Go on as after `step` steps of a run in which it began at `since`."""
        self.since = since
        if self.settings.mode != "off":
            set_strength(self.model, self.strength(max(step - 1, 0)))

    @torch.no_grad()
    def finish(self) -> None:
        """Choose held scales a last time, so that what is packed is what the forward sees."""
        if self.settings.hold and self.since is not None:
            hold_scales(self.model)
