"""Published recipes as choices for our own formats, each with one parameter that sets the size.

A recipe says how every class of tensors is stored. Two parts of the originals are left out: floors
of the scale, which give nearly every row of a small model the same step, and pickled containers
(but for `own_layout`).
Every recipe quantizes all tensors of two axes or more and at least 8,192 elements, so that small
models do not put it at a disadvantage; the rest is fp16. docs/methods.md (Recipes) names the
sources and the differences.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

from packer.checkpoint.roles import Role, TensorRole, select
from packer.errors import PlanError
from packer.planning.candidates import TensorInfo

SMALLEST_QUANTIZED = 8192
K, REACH, PRUNED = "k", "reach", "pruned"
K_STEP = 1.01  # from one k to the next: about 0.4 % of the bytes
K_RANGE = (6.0, 4000.0)  # below 6, clipping loses more than the finer step gains
FRACTIONS = (*(i / 20 for i in range(1, 20)), 0.97, 0.99)

EMBEDDINGS = frozenset({Role.TOKEN_EMBEDDING, Role.HEAD})
TABLES = frozenset({Role.HASHED_BIGRAM, Role.VALUE_EMBEDDING})
MLPS = frozenset({Role.MLP_IN, Role.MLP_OUT, Role.MLP_GATE})
ATTENTIONS = frozenset(
    (
        *(Role.ATTENTION, Role.ATTENTION_Q, Role.ATTENTION_K),
        *(Role.ATTENTION_V, Role.ATTENTION_O),
    )
)
FLOATS = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}  # bytes of what fp16 can hold


@dataclass(frozen=True)
class Stored:
    """How a class of tensors is stored. bits 16: always fp16. k: of `kstd`."""

    bits: int
    range_rule: str = "absmax"
    k: float | None = None
    gptq: bool = False

    @property
    def code_max(self) -> int:
        return int(2 ** (self.bits - 1) - 1)


@dataclass(frozen=True)
class Position:
    """A value of the size parameter: k, the largest code of an int6 matrix (int8 in the baseline),
    or the fraction of weights pruned at the smallest reach.
    """

    parameter: str
    value: float

    def __str__(self) -> str:
        return f"{self.parameter} {self.value:g}"


@dataclass(frozen=True)
class Recipe:
    """source: its first use. coder: for the codes. matrices: all classes without a field here.

    late_key: the last block's key projection. prune: the fraction of smallest magnitudes that the
    recipe always sets to zero. own_layout: whether it is a file of its author's layout
    (packer/packing/leader_file.py) and no plan of ours. positions: values of the size parameter,
    from the largest file to the smallest.
    """

    name: str
    source: str
    coder: str
    matrices: Stored
    embeddings: Stored
    tables: Stored | None = None
    mlps: Stored | None = None
    attentions: Stored | None = None
    late_key: Stored | None = None
    prune: float = 0.0
    own_layout: bool = False
    positions: tuple[Position, ...] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        positions = _k_positions(self.matrices.k) if self.matrices.k else self._reach_positions()
        object.__setattr__(self, "positions", positions)

    def _reach_positions(self) -> tuple[Position, ...]:
        reaches = [Position(REACH, float(n)) for n in range(self.matrices.code_max, 0, -1)]
        pruned = [Position(PRUNED, f) for f in FRACTIONS if f > self.prune]
        return (*reaches, *pruned)

    @property
    def original(self) -> Position:
        """The value of the size parameter in the original."""
        value = self.matrices.k or float(self.matrices.code_max)
        return Position(K if self.matrices.k else REACH, value)

    @property
    def rounds_with_gptq(self) -> bool:
        return self.matrices.gptq or self.embeddings.gptq

    def at(self, position: Position, stored: Stored) -> str:
        """The choice of a quantized tensor of this class, as text."""
        coder = "" if self.own_layout else f"~{self.coder}"
        if stored.bits == 16:
            return f"fp16{coder}"
        text, prune = f"int{stored.bits}.row{coder}", self.prune
        if stored.k is not None:
            text += f"+kstd@{_rounded(position.value * stored.k / self.original.value)}"
        elif stored.range_rule != "absmax":
            text += f"+{stored.range_rule}"
        if stored.k is None:
            full, reach = float(self.matrices.code_max), 1.0
            if position.parameter == PRUNED:
                prune = position.value
            else:
                reach = position.value
            codes = max(1, round(reach * stored.code_max / full))
            text += f"+reach@{codes}" if codes < stored.code_max else ""
        text += f"+prune@{prune:g}" if prune else ""
        return text + "+gptq" * stored.gptq


def _k_positions(original: float) -> tuple[Position, ...]:
    low, high = (math.log(k / original, K_STEP) for k in K_RANGE)
    powers = range(math.ceil(low), math.floor(high) + 1)
    return tuple(Position(K, float(_rounded(original * K_STEP**power))) for power in powers)


def _rounded(k: float) -> str:
    """Four digits: finer than K_STEP, and short in a plan."""
    return f"{k:.4g}"


INT6, INT8, FP16 = Stored(6), Stored(8), Stored(16)
RECIPES: Mapping[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        Recipe("baseline-int8-zlib", "the first baseline, 17 March", "zlib", INT8, INT8),
        Recipe("int6-rowmax-zstd", "PR #162", "zstd", INT6, FP16, late_key=FP16),
        Recipe(
            "int5mlp-int6-zstd",
            "PR #180",
            "zstd",
            INT6,
            FP16,
            mlps=Stored(5),
            late_key=FP16,
            prune=0.03,
        ),
        Recipe(
            "gptq-lite-int6", "PR #414", "zstd", Stored(6, "percentile-matrix"), INT8, tables=INT8
        ),
        Recipe(
            "full-gptq-int6",
            "PR #1019",
            "lzma",
            Stored(6, "percentile-matrix", gptq=True),
            INT8,
            tables=INT8,
        ),
        Recipe(
            "sdclip-gptq-brotli",
            "PR #1394",
            "brotli",
            Stored(6, "kstd", 12.85, gptq=True),
            Stored(8, "kstd", 20.0, gptq=True),
        ),
        Recipe(
            "sdclip-int7-brotli",
            "PR #1586",
            "brotli",
            Stored(6, "kstd", 13.0, gptq=True),
            Stored(7, "kstd", 15.0, gptq=True),
            mlps=Stored(6, "kstd", 12.0, gptq=True),
        ),
        Recipe(
            "leader-lqer-lrzip",
            "PR #2135",
            "lrzip",
            Stored(6, "kstd", 12.85, gptq=True),
            Stored(7, "kstd", 14.0, gptq=True),
            mlps=Stored(6, "kstd", 11.5, gptq=True),
            attentions=Stored(6, "kstd", 13.0, gptq=True),
            own_layout=True,
        ),
    )
}


def find_recipe(name: str) -> Recipe:
    """Raises PlanError: no recipe has this name."""
    if name not in RECIPES:
        raise PlanError(f"there is no recipe {name!r}; recipes are {', '.join(RECIPES)}")
    return RECIPES[name]


@dataclass(frozen=True)
class RecipeChoices:
    """choices: tensor -> choice, as text. nearest: tensors rounded to nearest instead of with GPTQ,
    because calibration saw no use of them and they have no curvature.
    """

    choices: Mapping[str, str]
    nearest: tuple[str, ...]


def recipe_choices(
    recipe: Recipe, infos: Sequence[TensorInfo], position: Position, curved: Collection[str]
) -> RecipeChoices:
    """The choice for every tensor. curved: the tensors that have curvature.

    Raises PlanError: the recipe rounds with GPTQ and there is no curvature.
    """
    if recipe.rounds_with_gptq and not curved:
        raise PlanError(
            f"{recipe.name} rounds with GPTQ, which needs curvature: give --calibration TEXT or "
            "--curvature FILE"
        )
    roles = {info.name: TensorRole(Role(info.role), info.layer) for info in infos}
    late_keys = _late_keys(recipe, roles)
    choices, nearest = {}, []
    for info in infos:
        if not _quantized(info):
            choices[info.name] = _kept(info)
            continue
        stored = (
            recipe.late_key if info.name in late_keys else stored_class(recipe, Role(info.role))
        )
        assert stored is not None
        choice = recipe.at(position, stored)
        if stored.gptq and info.name not in curved:
            nearest.append(info.name)
            choice = choice.removesuffix("+gptq")
        choices[info.name] = choice
    return RecipeChoices(choices, tuple(nearest))


def _quantized(info: TensorInfo) -> bool:
    return (
        info.dtype in FLOATS
        and len(info.shape) >= 2
        and math.prod(info.shape) >= SMALLEST_QUANTIZED
    )


def _kept(info: TensorInfo) -> str:
    """fp16, or the tensor's own dtype where that is no wider or not a float."""
    if info.dtype == "bfloat16":
        return "bf16"
    return "fp16" if info.dtype in FLOATS else "raw"


def _late_keys(recipe: Recipe, roles: Mapping[str, TensorRole]) -> tuple[str, ...]:
    """Empty in fused and banked models, where keys are not a tensor of their own."""
    has_keys = any(role.role is Role.ATTENTION_K for role in roles.values())
    return select("late-k", roles) if recipe.late_key and has_keys else ()


def stored_class(recipe: Recipe, role: Role) -> Stored:
    """How a recipe stores matrices of a role."""
    if role in EMBEDDINGS:
        return recipe.embeddings
    if role in TABLES and recipe.tables:
        return recipe.tables
    if role in ATTENTIONS and recipe.attentions:
        return recipe.attentions
    return recipe.mlps if role in MLPS and recipe.mlps else recipe.matrices
