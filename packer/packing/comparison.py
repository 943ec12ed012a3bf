"""Recipes and our planner on one checkpoint: files to score, rows to print, bytes at equal KL."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from packer.checkpoint.checkpoint import Checkpoint
from packer.errors import CapError
from packer.evaluation import Evaluated
from packer.packing.finished_files import FinishedFile
from packer.packing.pack import Packed, pack_to_cap
from packer.planning.account import Limits
from packer.planning.calibrated import Calibration
from packer.planning.measure import Progress, ignore_progress
from packer.planning.options import MeasureOptions
from packer.planning.pipeline import always, measure_to_plan, refine_plan
from packer.planning.plan import PackPlan, make_plan
from packer.planning.recipe_search import RecipePlan, recipe_at, recipe_under_cap
from packer.planning.recipes import RECIPES, K, Position, Recipe

OURS = "ours"
CURVE_K = (8.0, 10.0, 12.85, 16.0, 20.0)


@dataclass(frozen=True)
class Entry:
    """A file to score. position: the recipe's size parameter; None for ours.

    cap_bytes: the cap it was fitted to; None on a curve over k. seconds: of measuring, planning
    and packing. problems: tensor -> why it was not rounded as its choice says.
    """

    recipe: str
    position: Position | None
    cap_bytes: int | None
    packed: Packed
    seconds: float
    problems: Mapping[str, str]

    @property
    def total_bytes(self) -> int:
        return self.packed.account.total_bytes

    @property
    def artifact_bytes(self) -> int:
        return self.packed.account.artifact_bytes

    @property
    def weights(self) -> int:
        """Number of weights in the checkpoint."""
        return sum(info.elements for info in self.packed.plan.measurement.tensors)

    @property
    def predicted_bits_per_byte(self) -> float | None:
        """The KL that the plan minimized, fitted only for ours; None without Fisher."""
        plan = self.packed.plan.plan
        return plan.damage if plan.damage_kind == "damage_bpb" else None


@dataclass(frozen=True)
class Refused:
    """A recipe that does not fit, whatever its size parameter."""

    recipe: str
    cap_bytes: int
    reason: str


@dataclass(frozen=True)
class Row:
    """A file and its score against the checkpoint that it was made from."""

    source: str
    entry: Entry | FinishedFile
    evaluated: Evaluated

    @property
    def kl_bits_per_byte(self) -> float | None:
        """None for models that only return losses."""
        divergence = self.evaluated.divergence
        return None if divergence is None else divergence.kl_bits_per_byte

    @property
    def bits_per_weight(self) -> float:
        """Bits of the file per weight of the checkpoint."""
        return 8 * self.entry.artifact_bytes / max(self.entry.weights, 1)

    def to_json(self) -> dict[str, Any]:
        entry, position = self.entry, self.entry.position
        scores = self.evaluated.to_json()
        return {
            "checkpoint": self.source,
            "recipe": entry.recipe,
            "parameter": None if position is None else position.value,
            "parameter_name": None if position is None else position.parameter,
            "cap_bytes": entry.cap_bytes,
            "total_bytes": entry.total_bytes,
            "artifact_bytes": entry.artifact_bytes,
            "bits_per_weight": self.bits_per_weight,
            "bits_per_byte": scores["bits_per_byte"],
            "kl_bits_per_byte": self.kl_bits_per_byte,
            "predicted_bits_per_byte": entry.predicted_bits_per_byte,
            "kl_stderr_bits_per_byte": scores.get("kl_stderr_bits_per_byte"),
            "delta_bits_per_byte": scores["delta_bits_per_byte"],
            "stderr_bits_per_byte": scores["delta_stderr_bits_per_byte"],
            "seconds": None if entry.seconds is None else round(entry.seconds, 2),
            "rounding_problems": dict(entry.problems),
        }


@dataclass(frozen=True)
class Comparison:
    """One checkpoint, and the settings that all entries share.

    code: code and margin counted besides the file; its cap is ignored. calibration: with curvature,
    which recipes round with too. options: for ours; recipes use only its pins.
    """

    checkpoint: Checkpoint
    code: Limits
    calibration: Calibration
    options: MeasureOptions
    progress: Progress = ignore_progress

    def recipes_under(self, cap_bytes: int) -> Iterator[Entry | Refused]:
        """Every named recipe, its size parameter fitted to the cap."""
        for recipe in RECIPES.values():
            started = time.perf_counter()
            try:
                fitted = recipe_under_cap(
                    self.checkpoint,
                    recipe,
                    self._limits(cap_bytes),
                    MeasureOptions(self.options.pins),
                    self.calibration.curvature,
                    self.progress,
                )
            except CapError as error:
                yield Refused(recipe.name, cap_bytes, str(error))
                continue
            yield self._packed_recipe(fitted, cap_bytes, started)

    def recipe_curve(self, recipe: Recipe) -> Iterator[Entry]:
        """A recipe with a k at every k of CURVE_K."""
        for k in CURVE_K:
            started = time.perf_counter()
            fitted = recipe_at(
                self.checkpoint,
                recipe,
                Position(K, k),
                self.code,
                MeasureOptions(self.options.pins),
                self.calibration.curvature,
                self.progress,
            )
            yield self._packed_recipe(fitted, None, started)

    def ours_under(self, caps: Sequence[int]) -> Iterator[Entry | Refused]:
        """Our planner at every cap; measured and fitted once."""
        if not caps:
            return
        started = time.perf_counter()
        measurement = measure_to_plan(
            self.checkpoint, self.options, self.calibration, always(self.progress)
        )
        measuring = time.perf_counter() - started
        for cap_bytes in caps:
            started = time.perf_counter()
            try:
                plan = make_plan(measurement, self._limits(cap_bytes), self.options.pins)
                plan = refine_plan(plan, self.checkpoint, self.calibration, always(self.progress))
                packed = self._pack(plan)
            except CapError as error:
                yield Refused(OURS, cap_bytes, str(error))
                continue
            seconds = measuring + time.perf_counter() - started
            yield Entry(OURS, None, cap_bytes, packed, seconds, packed.rounding_problems)

    def _limits(self, cap_bytes: int) -> Limits:
        return replace(self.code, cap_bytes=cap_bytes)

    def _pack(self, plan: PackPlan) -> Packed:
        return pack_to_cap(self.checkpoint, plan, self.calibration.curvature, self.progress)

    def _packed_recipe(self, fitted: RecipePlan, cap_bytes: int | None, started: float) -> Entry:
        packed = self._pack(fitted.plan)
        problems = {**fitted.problems, **packed.rounding_problems}
        seconds = time.perf_counter() - started
        return Entry(fitted.recipe.name, fitted.position, cap_bytes, packed, seconds, problems)


def recipes_with_k() -> tuple[Recipe, ...]:
    return tuple(recipe for recipe in RECIPES.values() if recipe.original.parameter == K)


@dataclass(frozen=True)
class EqualKL:
    """Sizes of a recipe and of ours at the same KL. ours_bytes: interpolated on our curve."""

    recipe: str
    kl_bits_per_byte: float
    recipe_bytes: int
    ours_bytes: float

    @property
    def ratio(self) -> float:
        return self.ours_bytes / self.recipe_bytes

    def to_json(self) -> dict[str, Any]:
        return {
            "recipe": self.recipe,
            "kl_bits_per_byte": self.kl_bits_per_byte,
            "recipe_bytes": self.recipe_bytes,
            "ours_bytes": round(self.ours_bytes),
            "ratio": self.ratio,
        }


def equal_kl_of(rows: Sequence[Row]) -> tuple[EqualKL, ...]:
    """Sizes at equal KL for every point of a recipe's curve over k and every third-party file;
    empty without two points of ours.
    """
    ours, theirs = [], []
    for row in rows:
        entry, kl = row.entry, row.kl_bits_per_byte
        total = entry.total_bytes
        if kl is None or not kl > 0:
            continue
        if entry.recipe == OURS:
            ours.append((total, kl))
        elif entry.cap_bytes is None:
            theirs.append((entry.recipe, total, kl))
    return equal_kl(ours, theirs)


def equal_kl(
    ours: Sequence[tuple[int, float]], theirs: Sequence[tuple[str, int, float]]
) -> tuple[EqualKL, ...]:
    """ours: (bytes, KL); theirs: (recipe, bytes, KL). log KL is interpolated against log bytes.

    Points of theirs outside our curve are left out: nothing is extrapolated.
    """
    if len(set(ours)) < 2:
        return ()
    log_kl, log_bytes = np.log(np.array(sorted((kl, total) for total, kl in set(ours)))).T
    points = []
    for recipe, total, kl in theirs:
        if log_kl[0] <= math.log(kl) <= log_kl[-1]:
            bytes_of_ours = math.exp(np.interp(math.log(kl), log_kl, log_bytes))
            points.append(EqualKL(recipe, kl, total, bytes_of_ours))
    return tuple(points)
