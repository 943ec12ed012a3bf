"""Sweeps of `packer size`: every combination of the values given to settings."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from packer.errors import PackerError
from packer.size.estimate import CLASSES, ClassRule, Recipe

MAX_COMBINATIONS = 2_000
RECIPE_KEYS = ("k", *(f"k.{c}" for c in CLASSES), *(f"bits.{c}" for c in CLASSES))
SIZE_KEYS = (*RECIPE_KEYS, "extra", "weight_std")


@dataclass(frozen=True)
class Variant:
    """One combination. spelled: the settings that are swept, as written.

    model: settings of the model's configuration. recipe: by key of RECIPE_KEYS. extra, weight_std:
    see estimate_size.
    """

    spelled: Mapping[str, str] = field(default_factory=dict)
    model: Mapping[str, Any] = field(default_factory=dict)
    recipe: Mapping[str, float] = field(default_factory=dict)
    extra: int = 0
    weight_std: float | None = None

    def applied(self, recipe: Recipe) -> Recipe:
        """The recipe with this variant's clips and bits; k leaves row maxima and kept floats alone.

        Raises PackerError: a value that cannot be.
        """
        for key, value in self.recipe.items():
            kind, _, klass = key.partition(".")
            for name in [klass] if klass else ["mlp", "attention", "other"]:
                recipe = recipe.with_rule(name, _changed(recipe.rules[name], kind, value))
        return recipe


def _changed(rule: ClassRule, kind: str, value: float) -> ClassRule:
    if kind == "bits":
        if value != int(value):
            raise PackerError(f"bits = {value}: write a whole number")
        return replace(rule, bits=int(value))
    return rule if rule.k is None else replace(rule, k=float(value))


def variants(settings: Sequence[tuple[str, str]], model_keys: Sequence[str]) -> list[Variant]:
    """Every combination, the last setting varying fastest; one variant without settings.

    settings: (key, values), values as JSON, in quotes or bare, separated by commas.
    Raises PackerError: an unknown key, a value that is none, or too many combinations.
    """
    choices: list[tuple[str, list[str]]] = []
    total = 1
    for key, text in settings:
        if key not in model_keys and key not in SIZE_KEYS:
            raise PackerError(
                f"there is no setting {key!r}; there are {', '.join((*SIZE_KEYS, *model_keys))}"
            )
        values = _values(text)
        choices.append((key, values))
        total *= len(values)
    if total > MAX_COMBINATIONS:
        raise PackerError(f"{total:,} combinations; at most {MAX_COMBINATIONS:,} are computed")
    swept = {key for key, values in choices if len(values) > 1}
    return [
        _variant(dict(zip([key for key, _ in choices], combination, strict=True)), swept)
        for combination in itertools.product(*(values for _, values in choices))
    ]


def _values(text: str) -> list[str]:
    """Split at commas outside brackets."""
    values, depth = [""], 0
    for letter in text:
        depth += (letter in "[{") - (letter in "]}")
        if letter == "," and depth == 0:
            values.append("")
        else:
            values[-1] += letter
    return [value.strip() for value in values]


def _variant(chosen: Mapping[str, str], swept: set[str]) -> Variant:
    known: dict[str, Any] = {"model": {}, "recipe": {}}
    for key, text in chosen.items():
        value = _parsed(text)
        if key in RECIPE_KEYS:
            known["recipe"][key] = _number(key, value)
        elif key == "extra":
            known["extra"] = int(_number(key, value))
        elif key == "weight_std":
            known["weight_std"] = _number(key, value)
        else:
            known["model"][key] = value
    return Variant({key: text for key, text in chosen.items() if key in swept}, **known)


def _parsed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _number(key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise PackerError(f"{key} = {value!r} is not a number")
    return float(value)
