"""The size of an artifact before anything is trained, from the shapes of its tensors alone.

Trained weights, divided by the standard deviation of their row, are close to normal. So a clip of k
standard deviations over 2 m + 1 levels is a step of k / m of them, and the codes have the entropy
of a normal variable in cells of that width: about log2(sqrt(2 π e) / step) bits, computed exactly
here with the clipped tails. Every coder of the field takes that entropy times a constant.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numpy as np
from scipy.integrate import trapezoid
from scipy.special import ndtr

from packer.checkpoint.roles import Role, roles_of
from packer.errors import PackerError
from packer.planning.recipes import ATTENTIONS, EMBEDDINGS, MLPS, TABLES, Stored, find_recipe

Shapes = Mapping[str, tuple[int, ...]]

# Coded bytes over the order-0 entropy of the codes, at so many bits a code: measured on normal
# codes under zlib 9, zstd 22, lzma 9 and brotli 11, except that artifacts of the field say 1.009
# for brotli at 3.3 bits. lrzip: from artifacts, the row orders they store included. ans: ours, on
# trained weights (benchmarks/sizes.csv).
ENTROPY_BITS = (1.5, 2.4, 3.3, 4.4, 5.4, 6.4, 7.3)
CODERS = {
    "zlib": (1.228, 1.183, 1.157, 1.126, 1.043, 1.013, 1.009),
    "zstd": (1.113, 1.020, 1.017, 1.010, 1.010, 1.009, 1.007),
    "lzma": (1.130, 1.111, 1.058, 1.035, 1.025, 1.019, 1.015),
    "brotli": (1.107, 1.017, 1.009, 1.0075, 1.006, 1.005, 1.005),
    "lrzip": (0.991,) * 7,
    "ans": (0.99,) * 7,
}
CLASSES = ("embedding", "mlp", "attention", "other")
MAX_K = 1000.0


@dataclass(frozen=True)
class ClassRule:
    """How the matrices of one class are stored.

    bits: of a code; 16 and 32 keep the weights as floats. k: the clip in standard deviations of a
    row; None clips at the largest weight of the row.
    """

    bits: int
    k: float | None = None

    def __post_init__(self) -> None:
        if self.bits not in (*range(2, 9), 16, 32):
            raise PackerError(f"bits = {self.bits}: codes have 2 to 8 bits, kept floats 16 or 32")
        if self.k is not None and not 0 < self.k <= MAX_K:
            raise PackerError(f"k = {self.k}: a clip is above 0 and at most {MAX_K:g} deviations")

    @property
    def max_code(self) -> int:
        return int(2 ** (self.bits - 1)) - 1


@dataclass(frozen=True)
class Recipe:
    """A way to store a model.

    rules: by class of CLASSES. per_row: bytes of a row's scale. small: tensors of at most so many
    elements are kept, in `kept_bytes` each. fixed: container and correction tables, in bytes.
    floor: whether scales are at least 1 / max_code whatever the weights are (row maxima only).
    """

    name: str
    about: str
    rules: Mapping[str, ClassRule]
    coder: str
    per_row: float = 2.0
    small: int = 65_536
    kept_bytes: int = 2
    fixed: int = 4_000
    floor: bool = False

    def with_rule(self, klass: str, rule: ClassRule) -> Recipe:
        return replace(self, rules={**self.rules, klass: rule})

    def scaled(self, factor: float) -> Recipe:
        """Every clip in standard deviations times a factor."""
        rules = {
            name: replace(rule, k=min(rule.k * factor, MAX_K)) if rule.k is not None else rule
            for name, rule in self.rules.items()
        }
        return replace(self, rules=rules)


def _rules(
    matrices: Stored,
    embeddings: Stored,
    mlps: Stored | None = None,
    attentions: Stored | None = None,
) -> dict[str, ClassRule]:
    kinds = (embeddings, mlps or matrices, attentions or matrices, matrices)
    return {name: ClassRule(kind.bits, kind.k) for name, kind in zip(CLASSES, kinds, strict=True)}


def _of(name: str, about: str, **parts: Any) -> Recipe:
    """A recipe of packer.planning.recipes, with what its original container took."""
    recipe = find_recipe(name)
    rules = _rules(recipe.matrices, recipe.embeddings, recipe.mlps, recipe.attentions)
    return Recipe(name, about, rules, recipe.coder, **parts)


# 12.85 / 31 and 20 / 127 deviations a step, as PR #1394; one step for the whole tensor.
_OURS = _rules(Stored(8, k=12.85 * 127 / 31), Stored(8, k=20.0))
LQER_BYTES = 37_500  # low-rank corrections of three tensors: 30 to 45 KB in the field's logs
_LEADER = _of(
    "leader-lqer-lrzip", "k 11.5 and 13, int7 tables k 14, LQER, lrzip", fixed=4_000 + LQER_BYTES
)
# Spellings of earlier versions.
RENAMED = {
    "int8-zlib": "baseline-int8-zlib",
    "int6-zstd": "gptq-lite-int6",
    "int6-lzma": "full-gptq-int6",
    "int6-k": "sdclip-gptq-brotli",
    "int6-k-int7": "sdclip-int7-brotli",
    "int6-k-lrzip": "sdclip-int7-lrzip",
}

RECIPES: dict[str, Recipe] = {
    recipe.name: recipe
    for recipe in (
        _of("baseline-int8-zlib", "row maxima, zlib (the baseline)", fixed=20_000, floor=True),
        _of(
            "gptq-lite-int6",
            "row maxima, int8 tables, zstd (PR #287 to #414)",
            kept_bytes=4,
            fixed=10_000,
            floor=True,
        ),
        _of(
            "full-gptq-int6",
            "row maxima, int8 tables, lzma (PR #549 to #1060)",
            kept_bytes=4,
            fixed=10_000,
            floor=True,
        ),
        _of("sdclip-gptq-brotli", "k 12.85, int8 tables k 20, brotli (PR #1394)"),
        _of("sdclip-int7-brotli", "k 12 and 13, int7 tables k 15, brotli (PR #1586)"),
        replace(_LEADER, name="sdclip-int7-lrzip", about=f"{_LEADER.about} (PR #1855)"),
        replace(_LEADER, about=f"{_LEADER.about}, one stream (PR #2135)"),
        Recipe(
            "ours",
            "a step a tensor as wide as PR #1394's, our coder",
            _OURS,
            "ans",
            per_row=0.0,
            fixed=1_000,
        ),
    )
}


@dataclass(frozen=True)
class SizeEstimate:
    """Predicted bytes of an artifact, and bits per code of every class that has codes.

    codes: after the coder. side: scales. kept: tensors stored as floats. container: the rest.
    """

    recipe: Recipe
    parameters: int
    codes: int
    side: int
    kept: int
    container: int
    bits: Mapping[str, float]

    @property
    def artifact_bytes(self) -> int:
        return self.codes + self.side + self.kept + self.container


def estimate_size(
    shapes: Shapes, recipe: Recipe, *, extra: int = 0, weight_std: float | None = None
) -> SizeEstimate:
    """The artifact of a model with these tensors.

    extra: small weights of parts the shapes lack. weight_std: standard deviation of the weights,
    for recipes whose scales have a floor; without it the floor is taken to be out of reach, and
    the estimate is what the recipe takes at most.
    Raises PackerError: a negative number.
    """
    if extra < 0 or (weight_std is not None and not weight_std > 0):
        raise PackerError(f"extra weights ({extra}) and weight_std ({weight_std}) are positive")
    codes = side = 0.0
    kept = extra * recipe.kept_bytes
    bits: dict[str, float] = {}
    for name, role in roles_of(shapes).items():
        shape = shapes[name]
        count = math.prod(shape)
        klass = class_of(role.role)
        rule = recipe.rules[klass]
        if count <= recipe.small or len(shape) < 2:
            kept += count * recipe.kept_bytes
        elif rule.bits > 8:
            kept += count * rule.bits // 8
        else:
            bits[klass] = _bits(rule, count // shape[0], weight_std if recipe.floor else None)
            codes += count / 8 * coded_bits(recipe.coder, bits[klass])
            side += shape[0] * recipe.per_row
    parameters = sum(math.prod(shape) for shape in shapes.values()) + extra
    return SizeEstimate(recipe, parameters, round(codes), round(side), kept, recipe.fixed, bits)


def class_of(role: Role) -> str:
    if role in EMBEDDINGS | TABLES:
        return "embedding"
    if role in MLPS:
        return "mlp"
    return "attention" if role in ATTENTIONS else "other"


def _bits(rule: ClassRule, columns: int, floored_std: float | None) -> float:
    """Bits of a code, in rows of so many columns."""
    clip = largest_of(columns) if rule.k is None else rule.k
    if rule.k is None and floored_std is not None:
        clip = max(clip, 1.0 / floored_std)
    return normal_entropy(clip / rule.max_code, rule.max_code)


def coded_bits(coder: str, entropy: float) -> float:
    """Bits that a coder takes for a code of this entropy."""
    return entropy * float(np.interp(entropy, ENTROPY_BITS, CODERS[coder]))


@cache
def normal_entropy(step: float, max_code: int) -> float:
    """Entropy in bits of round(x / step), clipped to ± max_code, for x normal with deviation 1."""
    edges = step * (np.arange(-max_code, max_code) + 0.5)
    cumulative = np.concatenate([[0.0], ndtr(edges), [1.0]])
    shares = np.diff(cumulative)
    shares = shares[shares > 0]
    return float(-(shares * np.log2(shares)).sum())


@cache
def largest_of(count: int) -> float:
    """Expected largest magnitude among so many normal variables with deviation 1."""
    x = np.linspace(0.0, 12.0, 24_001)
    above = 1.0 - (2.0 * ndtr(x) - 1.0) ** count
    return float(trapezoid(above, x))


def factor_to_cap(
    shapes: Shapes, recipe: Recipe, cap_bytes: int, *, extra: int = 0
) -> float | None:
    """What all clips times it make the artifact just fit; None where no factor does.

    Only recipes that clip by standard deviations can be steered so.
    """
    if all(rule.k is None for rule in recipe.rules.values()):
        return None

    def size(factor: float) -> int:
        return estimate_size(shapes, recipe.scaled(factor), extra=extra).artifact_bytes

    low, high = 0.1, 20.0
    if size(high) > cap_bytes or size(low) <= cap_bytes:
        return None
    while high / low > 1.0005:
        middle = math.sqrt(low * high)
        low, high = (middle, high) if size(middle) > cap_bytes else (low, middle)
    return high


def recipes_named(names: Iterable[str]) -> tuple[Recipe, ...]:
    """Recipes by name; all of them for no name. Raises PackerError."""
    names = tuple(names)
    for name in names:
        if name in RENAMED:
            raise PackerError(f"the recipe {name!r} is called {RENAMED[name]} now")
        if name not in RECIPES:
            raise PackerError(f"there is no recipe {name!r}; there are {', '.join(RECIPES)}")
    return tuple(RECIPES[name] for name in names or RECIPES)
