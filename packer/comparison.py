"""Recipes and our planner on one checkpoint: files to score, rows to print, bytes at equal KL."""

from __future__ import annotations

import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from packer.account import Limits
from packer.checkpoint import Checkpoint
from packer.curvature.curvature_set import CurvatureSet
from packer.curved_choices import SPARSE
from packer.errors import CapError
from packer.evaluation import Evaluated
from packer.fit import Packed, pack_to_cap
from packer.knob import RecipePlan, recipe_at, recipe_under_cap
from packer.measuring import Progress, ignore_progress, measure
from packer.planning import make_plan
from packer.recipes import RECIPES, K, Position, Recipe
from packer.refining import refined
from packer.trials import DamageBench, fit_to_model

OURS = "ours"
CURVE_K = (8.0, 10.0, 12.85, 16.0, 20.0)


@dataclass(frozen=True)
class Contender:
    """A file to score. position: of the recipe's knob; None for ours.

    cap_bytes: what it was made to fit; None on a curve over k. seconds: from curvature to the file,
    measuring included. problems: tensor -> why it was rounded otherwise than its choice says.
    """

    recipe: str
    position: Position | None
    cap_bytes: int | None
    packed: Packed
    seconds: float
    problems: Mapping[str, str]


@dataclass(frozen=True)
class Refused:
    """A recipe that fits at no position of its knob."""

    recipe: str
    cap_bytes: int
    reason: str


@dataclass(frozen=True)
class Row:
    """A contender and its score through the file, against the checkpoint it was packed from."""

    source: str
    contender: Contender
    evaluated: Evaluated

    @property
    def kl_bits_per_byte(self) -> float | None:
        """None for models that only tell losses."""
        divergence = self.evaluated.divergence
        return None if divergence is None else divergence.kl_bits_per_byte

    @property
    def predicted_bits_per_byte(self) -> float | None:
        """The KL that the plan was chosen by, fitted for ours alone; None without a Fisher."""
        plan = self.contender.packed.plan.plan
        return plan.damage if plan.damage_kind == "damage_bpb" else None

    @property
    def bits_per_weight(self) -> float:
        """Of the file, over all weights of the checkpoint."""
        weights = sum(info.elements for info in self.contender.packed.plan.measurement.tensors)
        return 8 * self.contender.packed.account.artifact_bytes / max(weights, 1)

    def to_json(self) -> dict[str, Any]:
        contender, position = self.contender, self.contender.position
        scored = self.evaluated.to_json()
        return {
            "checkpoint": self.source,
            "recipe": contender.recipe,
            "knob": None if position is None else position.value,
            "knob_name": None if position is None else position.knob,
            "cap_bytes": contender.cap_bytes,
            "total_bytes": contender.packed.account.total_bytes,
            "artifact_bytes": contender.packed.account.artifact_bytes,
            "bits_per_weight": self.bits_per_weight,
            "bits_per_byte": scored["bits_per_byte"],
            "kl_bits_per_byte": self.kl_bits_per_byte,
            "predicted_bits_per_byte": self.predicted_bits_per_byte,
            "kl_stderr_bits_per_byte": scored.get("kl_stderr_bits_per_byte"),
            "delta_bits_per_byte": scored["delta_bits_per_byte"],
            "stderr_bits_per_byte": scored["delta_stderr_bits_per_byte"],
            "seconds": round(contender.seconds, 2),
            "rounding_problems": dict(contender.problems),
        }


@dataclass(frozen=True)
class Workbench:
    """One checkpoint and what every contender shares. code: counted beside the file, and its
    margin; the cap in it is not read. trials: to fit our predicted damage on, None for as it is.
    trellis: whether ours may use one.
    """

    checkpoint: Checkpoint
    code: Limits
    curvature: CurvatureSet
    pins: Mapping[str, str]
    trials: DamageBench | None = None
    trellis: bool = False
    progress: Progress = ignore_progress

    def recipes_under(self, cap_bytes: int) -> Iterator[Contender | Refused]:
        """Every named recipe, its knob turned until its file fits."""
        for recipe in RECIPES.values():
            started = time.perf_counter()
            try:
                turned = recipe_under_cap(
                    self.checkpoint,
                    recipe,
                    self._limits(cap_bytes),
                    curvature=self.curvature,
                    pins=self.pins,
                    progress=self.progress,
                )
            except CapError as error:
                yield Refused(recipe.name, cap_bytes, str(error))
                continue
            yield self._packed(turned, cap_bytes, started)

    def recipe_curve(self, recipe: Recipe) -> Iterator[Contender]:
        """A recipe with a k at every k of the common curve."""
        for k in CURVE_K:
            started = time.perf_counter()
            turned = recipe_at(
                self.checkpoint,
                recipe,
                Position(K, k),
                self.code,
                curvature=self.curvature,
                pins=self.pins,
                progress=self.progress,
            )
            yield self._packed(turned, None, started)

    def ours_under(self, caps: Sequence[int]) -> Iterator[Contender | Refused]:
        """Our planner at every cap; measured and fitted once."""
        if not caps:
            return
        started = time.perf_counter()
        measured = measure(
            self.checkpoint,
            pins=self.pins,
            curvature=self.curvature,
            trellis=self.trellis,
            grid=SPARSE,
            progress=self.progress,
        )
        if self.trials is not None:
            measured = fit_to_model(measured, self.trials, self.progress)
        measuring = time.perf_counter() - started
        for cap_bytes in caps:
            started = time.perf_counter()
            try:
                plan = make_plan(measured, self._limits(cap_bytes), self.pins)
                plan = refined(self.checkpoint, plan, self.curvature, self.progress)
                packed = pack_to_cap(self.checkpoint, plan, self.progress, self.curvature.by_tensor)
            except CapError as error:
                yield Refused(OURS, cap_bytes, str(error))
                continue
            seconds = measuring + time.perf_counter() - started
            yield Contender(OURS, None, cap_bytes, packed, seconds, packed.rounding_problems)

    def _limits(self, cap_bytes: int) -> Limits:
        code = self.code
        return Limits(cap_bytes, code.code, code.loader_bytes, code.margin_bytes)

    def _packed(self, turned: RecipePlan, cap_bytes: int | None, started: float) -> Contender:
        packed = pack_to_cap(self.checkpoint, turned.plan, self.progress, self.curvature.by_tensor)
        problems = {**turned.problems, **packed.rounding_problems}
        seconds = time.perf_counter() - started
        return Contender(turned.recipe.name, turned.position, cap_bytes, packed, seconds, problems)


def recipes_with_k() -> tuple[Recipe, ...]:
    return tuple(recipe for recipe in RECIPES.values() if recipe.original.knob == K)


@dataclass(frozen=True)
class EqualKL:
    """Bytes of a recipe and ours at the same KL. ours_bytes: interpolated on our curve."""

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
    """Bytes of ours for every point of a recipe's curve over k; none without two points of ours."""
    ours, theirs = [], []
    for row in rows:
        contender, kl = row.contender, row.kl_bits_per_byte
        total = contender.packed.account.total_bytes
        if kl is None or not kl > 0:
            continue
        if contender.recipe == OURS:
            ours.append((total, kl))
        elif contender.cap_bytes is None:
            theirs.append((contender.recipe, total, kl))
    return equal_kl(ours, theirs)


def equal_kl(
    ours: Sequence[tuple[int, float]], theirs: Sequence[tuple[str, int, float]]
) -> tuple[EqualKL, ...]:
    """ours: (bytes, KL); theirs: (recipe, bytes, KL). log KL is interpolated against log bytes.

    Points of theirs beyond the ends of our curve are left out: nothing is extrapolated.
    """
    if len(set(ours)) < 2:
        return ()
    log_kl, log_bytes = np.log(np.array(sorted((kl, total) for total, kl in set(ours)))).T
    found = []
    for recipe, total, kl in theirs:
        if log_kl[0] <= math.log(kl) <= log_kl[-1]:
            bytes_of_ours = math.exp(np.interp(math.log(kl), log_kl, log_bytes))
            found.append(EqualKL(recipe, kl, total, bytes_of_ours))
    return tuple(found)
