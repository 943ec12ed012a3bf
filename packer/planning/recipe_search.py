"""Searches a recipe's size parameter for the largest real file that fits the cap."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from packer.checkpoint.checkpoint import Checkpoint
from packer.checkpoint.roles import Role, TensorRole
from packer.curvature.curvature_set import CurvatureSet, by_tensor_of
from packer.errors import CapError, PlanError
from packer.planning.account import Limits
from packer.planning.candidates import Measurement
from packer.planning.measure import (
    DEFAULT_OPTIONS,
    Progress,
    ignore_progress,
    measure_choices,
    pinned_choices,
    tensor_infos,
)
from packer.planning.options import MeasureOptions
from packer.planning.plan import PackPlan, make_plan
from packer.planning.recipes import PRUNED, K, Position, Recipe, recipe_choices
from packer.shipping.loader import loader_bytes

FILLED = 0.9975  # of the cap: coming closer is not worth compressing everything again
INTERPOLATIONS = 5  # guesses by interpolating sizes; bisection after that


@dataclass(frozen=True)
class RecipePlan:
    """A recipe at one value of its size parameter, as a plan that packs like any other.

    nearest: tensors rounded to nearest because they have no curvature.
    """

    recipe: Recipe
    position: Position
    plan: PackPlan
    nearest: tuple[str, ...]

    @property
    def problems(self) -> dict[str, str]:
        """Tensor -> why it is not rounded as the recipe says."""
        return dict.fromkeys(self.nearest, "rounded to nearest: there is no curvature of it")


def recipe_under_cap(
    checkpoint: Checkpoint,
    recipe: Recipe,
    limits: Limits,
    options: MeasureOptions = DEFAULT_OPTIONS,
    curvature: CurvatureSet | None = None,
    progress: Progress = ignore_progress,
) -> RecipePlan:
    """The recipe at the size parameter of the largest file that fits, or of one that nearly fills
    the cap.

    options: its pins replace the recipe's choices.
    Raises CapError: not even the smallest fits. PlanError: GPTQ without curvature, or a recipe with
    a layout of its own.
    """
    if recipe.own_layout:
        raise PlanError(
            f"{recipe.name} is a file of its author's layout, for which there is no plan; packer "
            "compare writes and scores it"
        )
    measured: dict[int, tuple[Measurement, tuple[str, ...]]] = {}

    def total_bytes(index: int) -> int:
        nonlocal limits
        measured[index] = _measured(
            checkpoint, recipe, recipe.positions[index], options, curvature, progress
        )
        if limits.loader_bytes:  # the same at every position, which changes no format
            choices = (candidate.choice for candidate in measured[index][0].candidates)
            limits = replace(limits, loader_bytes=loader_bytes(choices))
        return _total(measured[index][0], limits)

    chosen = index_under_cap(recipe, checkpoint, limits, total_bytes)
    measurement, nearest = measured[chosen]
    return RecipePlan(
        recipe, recipe.positions[chosen], make_plan(measurement, limits, options.pins), nearest
    )


def index_under_cap(
    recipe: Recipe, checkpoint: Checkpoint, limits: Limits, total_bytes: Callable[[int], int]
) -> int:
    """The position of the largest file that fits, or of one that nearly fills the cap.

    total_bytes: code and the real file at a position. Raises CapError: not even the smallest fits.
    """
    sizes: dict[int, int] = {}

    def known_bytes(index: int) -> int:
        sizes[index] = total_bytes(index)
        return sizes[index]

    chosen = largest_that_fits(
        known_bytes,
        [_octaves(position) for position in recipe.positions],
        recipe.positions.index(recipe.original),
        limits.cap_bytes - limits.margin_bytes,
        sum(meta.numel() for meta in checkpoint.meta_tensors.values()) / 8,
    )
    if chosen is None:
        raise CapError(
            f"{recipe.name} does not fit under {limits.cap_bytes:,} bytes: at its coarsest "
            f"({recipe.positions[-1]}) it takes {sizes[len(recipe.positions) - 1]:,}"
        )
    return chosen


def recipe_at(
    checkpoint: Checkpoint,
    recipe: Recipe,
    position: Position,
    code: Limits,
    options: MeasureOptions = DEFAULT_OPTIONS,
    curvature: CurvatureSet | None = None,
    progress: Progress = ignore_progress,
) -> RecipePlan:
    """The recipe at one value of its size parameter, whatever its size, which becomes its cap.

    code: what counts in addition to the file; its cap is ignored.
    """
    measurement, nearest = _measured(checkpoint, recipe, position, options, curvature, progress)
    limits = Limits(_total(measurement, code), code.code, code.loader_bytes)
    return RecipePlan(recipe, position, make_plan(measurement, limits, options.pins), nearest)


def _measured(
    checkpoint: Checkpoint,
    recipe: Recipe,
    position: Position,
    options: MeasureOptions,
    curvature: CurvatureSet | None,
    progress: Progress,
) -> tuple[Measurement, tuple[str, ...]]:
    """(one candidate a tensor, tensors rounded to nearest because they have no curvature)."""
    infos = tensor_infos(checkpoint)
    by_recipe = recipe_choices(recipe, infos, position, set(by_tensor_of(curvature)))
    roles = {info.name: TensorRole(Role(info.role), info.layer) for info in infos}
    pinned = {name: str(choice) for name, choice in pinned_choices(options.pins, roles).items()}
    choices = {**by_recipe.choices, **pinned}
    label = f"{recipe.name} at {position}"

    def labelled(what: str, done: int, total: int) -> None:
        progress(f"{label}: {what}", done, total)

    measurement = measure_choices(checkpoint, choices, options.metadata, curvature, labelled)
    return measurement, tuple(name for name in by_recipe.nearest if name not in pinned)


def _total(measurement: Measurement, limits: Limits) -> int:
    sizes = sum(candidate.size_bytes for candidate in measurement.candidates)
    return limits.code_bytes + measurement.header_bytes + sizes


def _octaves(position: Position) -> float:
    """How much coarser a position is, in halvings of the number of codes: about bits per weight."""
    if position.parameter == K:
        return math.log2(position.value)
    return (
        position.value - math.log2(1.5)
        if position.parameter == PRUNED
        else -math.log2(position.value + 0.5)
    )


def largest_that_fits(
    total_bytes: Callable[[int], int],
    octaves: Sequence[float],
    start: int,
    room: int,
    bytes_per_octave: float,
) -> int | None:
    """The first index whose size is at most `room`, or one that fits and fills it nearly.

    total_bytes: falls with the index, roughly along `octaves`, which rise with it; it is slow, so
    sizes already known say where to look next. None when not even the last fits.
    """
    known: dict[int, int] = {}
    too_large, fits = -1, len(octaves)
    index = start
    while fits - too_large > 1:
        known[index] = total_bytes(index)
        if known[index] <= room:
            fits = index
            if known[index] >= FILLED * room:
                break
        else:
            too_large = index
        index = _next_guess(known, octaves, too_large, fits, room, bytes_per_octave)
    return fits if fits < len(octaves) else None


def _next_guess(
    known: Mapping[int, int],
    octaves: Sequence[float],
    too_large: int,
    fits: int,
    room: int,
    bytes_per_octave: float,
) -> int:
    """An index strictly between the two bounds, while there is one."""
    between = range(too_large + 1, fits)
    if not between:
        return fits
    if len(known) > INTERPOLATIONS:
        return between[len(between) // 2]
    near = too_large if too_large >= 0 else fits
    slope = bytes_per_octave
    if too_large >= 0 and fits < len(octaves):
        slope = (known[too_large] - known[fits]) / (octaves[fits] - octaves[too_large])
    wanted = octaves[near] + (known[near] - room) / max(slope, 1.0)
    at_least = [index for index in between if octaves[index] >= wanted]
    return at_least[0] if at_least else between[-1]
