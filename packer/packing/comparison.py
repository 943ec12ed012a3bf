"""Recipes and our planner on one checkpoint: files to score, rows to print, bytes at equal KL."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from packer.checkpoint.checkpoint import Checkpoint
from packer.curvature.curvature_set import CurvatureSet
from packer.errors import CapError
from packer.evaluation import Evaluated
from packer.packing.finished_files import FinishedFile
from packer.packing.leader_file import LayoutError, leader_file, with_coder_here
from packer.packing.pack import pack_to_cap
from packer.planning.account import Limits
from packer.planning.damage_trials import Calibration
from packer.planning.measure import Progress, ignore_progress
from packer.planning.options import MeasureOptions
from packer.planning.pipeline import always, measure_to_plan, refine_plan
from packer.planning.plan import PackPlan, make_plan
from packer.planning.recipe_search import (
    RecipePlan,
    index_under_cap,
    recipe_at,
    recipe_under_cap,
)
from packer.planning.recipes import RECIPES, K, Position, Recipe

OURS = "ours"
CURVE_K = (8.0, 10.0, 12.85, 16.0, 20.0)


@dataclass(frozen=True)
class Entry:
    """A file to score. position: the recipe's size parameter; None for ours.

    cap_bytes: the cap it was fitted to; None on a curve over k. weights: in the checkpoint.
    seconds: of measuring, planning and packing. problems: tensor -> why it was not rounded as its
    choice says. predicted_bits_per_byte: the KL that the plan minimized, fitted only for ours; None
    without Fisher and without a plan.
    """

    recipe: str
    position: Position | None
    cap_bytes: int | None
    data: bytes
    code_bytes: int
    weights: int
    seconds: float
    problems: Mapping[str, str]
    predicted_bits_per_byte: float | None = None

    @property
    def total_bytes(self) -> int:
        return self.code_bytes + self.artifact_bytes

    @property
    def artifact_bytes(self) -> int:
        return len(self.data)


@dataclass(frozen=True)
class Refused:
    """A recipe that does not fit, whatever its size parameter, or whose layout lacks a tensor."""

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
        return (self.recipe_under(recipe, cap_bytes) for recipe in RECIPES.values())

    def recipe_under(self, recipe: Recipe, cap_bytes: int) -> Entry | Refused:
        """A recipe, its size parameter fitted to the cap."""
        recipe = with_coder_here(recipe)
        under = self._leader_under if recipe.own_layout else self._recipe_under
        try:
            return under(recipe, cap_bytes)
        except (CapError, LayoutError) as error:
            return Refused(recipe.name, cap_bytes, str(error))

    def recipe_curve(self, recipe: Recipe) -> Iterator[Entry]:
        """A recipe with a k at every k of CURVE_K; nothing if its layout lacks a tensor."""
        recipe = with_coder_here(recipe)
        at = self._leader_at if recipe.own_layout else self._recipe_at
        with contextlib.suppress(LayoutError):
            for k in CURVE_K:
                yield at(recipe, Position(K, k))

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
            started = time.perf_counter() - measuring
            try:
                plan = make_plan(measurement, self._limits(cap_bytes), self.options.pins)
                plan = refine_plan(plan, self.checkpoint, self.calibration, always(self.progress))
                yield self._packed(OURS, None, cap_bytes, plan, {}, started)
            except CapError as error:
                yield Refused(OURS, cap_bytes, str(error))

    def _recipe_under(self, recipe: Recipe, cap_bytes: int) -> Entry:
        """Raises CapError: no position fits."""
        started, limits = time.perf_counter(), self._limits(cap_bytes)
        fitted = recipe_under_cap(self.checkpoint, recipe, limits, *self._for_recipes)
        return self._packed_recipe(fitted, cap_bytes, started)

    def _recipe_at(self, recipe: Recipe, position: Position) -> Entry:
        started = time.perf_counter()
        fitted = recipe_at(self.checkpoint, recipe, position, self.code, *self._for_recipes)
        return self._packed_recipe(fitted, None, started)

    def _leader_under(self, recipe: Recipe, cap_bytes: int) -> Entry:
        """Raises CapError: no position fits. LayoutError: as `_leader_at`."""
        started = time.perf_counter()
        entries: dict[int, Entry] = {}

        def total_bytes(index: int) -> int:
            entries[index] = self._leader_at(recipe, recipe.positions[index])
            return entries[index].total_bytes

        index = index_under_cap(recipe, self.checkpoint, self._limits(cap_bytes), total_bytes)
        seconds = time.perf_counter() - started
        return replace(entries[index], cap_bytes=cap_bytes, seconds=seconds)

    def _leader_at(self, recipe: Recipe, position: Position) -> Entry:
        """Raises LayoutError: a tensor that its layout cannot hold."""
        started = time.perf_counter()
        file = leader_file(self.checkpoint, recipe, position, *self._for_recipes)
        return self._entry(recipe.name, position, None, file.data, file.problems, started)

    def _packed_recipe(self, fitted: RecipePlan, cap_bytes: int | None, started: float) -> Entry:
        name, problems = fitted.recipe.name, fitted.problems
        return self._packed(name, fitted.position, cap_bytes, fitted.plan, problems, started)

    def _packed(
        self,
        name: str,
        position: Position | None,
        cap_bytes: int | None,
        plan: PackPlan,
        problems: Mapping[str, str],
        started: float,
    ) -> Entry:
        packed = pack_to_cap(self.checkpoint, plan, self.calibration.curvature, self.progress)
        problems = {**problems, **packed.rounding_problems}
        entry = self._entry(name, position, cap_bytes, packed.data, problems, started)
        chosen = packed.plan.plan
        fitted = chosen.damage if chosen.damage_kind == "damage_bpb" else None
        return replace(entry, code_bytes=chosen.code_bytes, predicted_bits_per_byte=fitted)

    def _entry(
        self,
        name: str,
        position: Position | None,
        cap_bytes: int | None,
        data: bytes,
        problems: Mapping[str, str],
        started: float,
    ) -> Entry:
        weights = sum(meta.numel() for meta in self.checkpoint.meta_tensors.values())
        seconds, code = time.perf_counter() - started, self.code.code_bytes
        return Entry(name, position, cap_bytes, data, code, weights, seconds, problems)

    def _limits(self, cap_bytes: int) -> Limits:
        return replace(self.code, cap_bytes=cap_bytes)

    @property
    def _for_recipes(self) -> tuple[MeasureOptions, CurvatureSet | None, Progress]:
        return MeasureOptions(self.options.pins), self.calibration.curvature, self.progress


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
