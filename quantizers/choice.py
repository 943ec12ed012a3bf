"""A choice: format, coder, range rule and rounding of a tensor, as one line of text.

Grammar: `format[~coder][+step[@value]]...`, for instance `int6.row`, `fp16~brotli`,
`int6.row+percentile`, `int8.row~zstd+kstd@12.85`, `int5.row+prune@0.02`, `ternary.row+absmean`,
`int6.row+reach@20`, `int6.row+quantile@0.9995`, `int6.row~brotli+kstd@12.85+gptq`,
`int6.row+percentile-rounded+gptq+zero@1`, `int4.row.rank4x8+gptq`,
`step.row.col+gptq@0.45`, `step.row.col+ascending+gptq2@0.45`. Parsing and
spelling are inverse; defaults are not spelled.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .formats import (
    FormatError,
    LowRank,
    Passthrough,
    Stepped,
    TensorFormat,
    Ternary,
    parse_format,
)

CODERS = ("ans", "zstd", "brotli", "lzma", "zlib", "raw", "numpy")
UNIFORM_RANGES = (
    *("absmax", "percentile", "percentile-matrix", "percentile-rounded"),
    *("quantile", "kstd", "mse"),
)
TERNARY_RANGES = ("mse", "absmean")
ROUNDINGS = ("nearest", "gptq", "gptq2")  # the last of stepped formats alone


@dataclass(frozen=True)
class Choice:
    """format: how codes become weights. coder: how codes become bytes; None lets the packer choose.

    range_rule: how a row's scale is chosen; range_value: its parameter (k of `kstd`, the fraction
        of `quantile`: 0.9995 if None).
    reach: the largest code (clip level), below that of the format: codes lie in ±reach, and the
        range rule chooses the scale for them; None: all codes of the format.
    prune: fraction of smallest magnitudes set to zero first, in [0, 1).
    rounding: how codes are chosen under a scale; `gptq` needs curvature, and `gptq2` also that of
        outputs.
    ascending: GPTQ rounds columns whose inputs are small first, not last.
    step: of a stepped format, and of no other: the mean step in units of the rms weight.
    zero: codes of this magnitude and below become 0 after rounding.
    """

    format: TensorFormat
    coder: str | None = None
    range_rule: str | None = None
    range_value: float | None = None
    reach: int | None = None
    prune: float = 0.0
    rounding: str = "nearest"
    ascending: bool = False
    step: float | None = None
    zero: int = 0

    def __post_init__(self) -> None:
        if self.coder is not None and self.coder not in CODERS:
            raise FormatError(f"unknown coder {self.coder!r}; coders are {', '.join(CODERS)}")
        if self.ascending and self.rounding == "nearest":
            raise FormatError(
                "ascending is the order in which GPTQ takes columns; nearest rounding has none"
            )
        if isinstance(self.format, Passthrough):
            steps = (self.range_rule, self.reach, self.prune, self.zero)
            if any(steps) or self.rounding != "nearest":
                raise FormatError(f"{self.format} does not quantize weights: it takes no + steps")
            return
        if isinstance(self.format, Stepped):
            self._check_stepped(self.format)
            return
        if self.step is not None:
            raise FormatError(
                f"{self.format} has scales of its own: {self.rounding} takes no value"
            )
        rules = TERNARY_RANGES if _is_ternary(self.format) else UNIFORM_RANGES
        if self.range_rule not in rules:
            raise FormatError(
                f"{self.format} has no range rule {self.range_rule!r}; it has {', '.join(rules)}"
            )
        self._check_values()

    def _check_stepped(self, format: Stepped) -> None:
        steps = (self.range_rule, self.reach, self.prune, self.zero)
        if any(steps) or self.coder not in (None, "ans", "numpy"):
            raise FormatError(
                f"{format} takes no range, reach or prune, and no coder but ans and numpy"
            )
        if self.rounding not in ROUNDINGS:
            raise FormatError(f"unknown rounding {self.rounding!r}; it is {', '.join(ROUNDINGS)}")
        if self.step is None or not 0 < self.step < math.inf:
            raise FormatError(
                f"{format} needs its mean step in units of the rms weight, such as "
                f"{format}+{self.rounding}@0.45"
            )

    def _check_values(self) -> None:
        clips_at_quantile = self.range_rule == "quantile"
        if (self.range_rule == "kstd") != (self.range_value is not None) and not clips_at_quantile:
            raise FormatError(
                "kstd takes one value and, but for quantile, no other rule does: kstd@12.85"
            )
        largest = 1.0 if clips_at_quantile else sys.float_info.max
        if self.range_value is not None and not 0 < self.range_value <= largest:
            allowed = "a fraction up to 1" if clips_at_quantile else "a positive number"
            raise FormatError(f"{self.range_rule} needs {allowed}, found {self.range_value}")
        if not 0 <= self.prune < 1:
            raise FormatError(f"prune needs a fraction in [0, 1), found {self.prune}")
        assert not isinstance(self.format, Passthrough)
        if self.reach is not None and not 1 <= self.reach < self.format.code_max:
            raise FormatError(
                f"reach is a whole number from 1 to {self.format.code_max - 1} for {self.format}, "
                f"found {self.reach}"
            )
        if not 0 <= self.zero < self.code_range[1]:
            raise FormatError(
                f"zero is a whole number below the largest code, {self.code_range[1]} of "
                f"{self.format}, found {self.zero}"
            )
        if self.rounding not in ROUNDINGS[:2]:
            raise FormatError(f"{self.format} rounds by {' or '.join(ROUNDINGS[:2])}")

    @property
    def code_range(self) -> tuple[int, int]:
        """(smallest, largest) code that this choice uses."""
        assert not isinstance(self.format, Passthrough)
        if self.reach is not None:
            return -self.reach, self.reach
        return self.format.code_min, self.format.code_max

    def __str__(self) -> str:
        text = str(self.format)
        if self.coder is not None:
            text += f"~{self.coder}"
        if self.range_rule is not None and self.range_rule != default_range(self.format):
            text += f"+{self.range_rule}"
            if self.range_value is not None:
                text += f"@{describe_number(self.range_value)}"
        if self.reach is not None:
            text += f"+reach@{self.reach}"
        if self.prune:
            text += f"+prune@{describe_number(self.prune)}"
        if self.zero:
            text += f"+zero@{self.zero}"
        if self.ascending:
            text += "+ascending"
        if self.step is not None:
            text += f"+{self.rounding}@{describe_number(self.step)}"
        elif self.rounding != "nearest":
            text += f"+{self.rounding}"
        return text


def default_range(format: TensorFormat) -> str | None:
    """absmax for integers, least squares for ternary, nothing where there is no range."""
    if isinstance(format, Passthrough | Stepped):
        return None
    return "mse" if _is_ternary(format) else "absmax"


def _is_ternary(format: TensorFormat) -> bool:
    return isinstance(format.base if isinstance(format, LowRank) else format, Ternary)


def describe_number(value: float) -> str:
    """The shortest text that reads back as the same float."""
    text = repr(float(value))
    return text[:-2] if text.endswith(".0") else text


def parse_choice(text: str) -> Choice:
    """The choice that `str()` spells as `text`.

    >>> choice = parse_choice("int6.row~brotli+kstd@12.85+gptq")
    >>> choice.format.bits, choice.coder, choice.range_value, choice.rounding
    (6, 'brotli', 12.85, 'gptq')
    >>> str(parse_choice("int8.row+absmax"))  # defaults are not spelled
    'int8.row'

    Raises FormatError: unknown format, coder or step, a step given twice, a bad number.
    """
    head, *steps = text.split("+")
    name, tilde, coder = head.partition("~")
    format = parse_format(name)
    fields = _parse_steps(text, steps)
    return Choice(
        format,
        coder if tilde else None,
        fields.pop("range_rule", default_range(format)),
        fields.pop("range_value", None),
        **fields,
    )


def _parse_steps(text: str, steps: Sequence[str]) -> dict[str, Any]:
    """The fields of a choice that its steps give, each at most once."""
    fields: dict[str, Any] = {}
    for step in steps:
        word, at, number = step.partition("@")
        value = _parse_number(text, number) if at else None
        if word == "prune" and word not in fields:
            if value is None:
                raise FormatError(f"{text!r}: prune comes with a fraction: prune@0.02")
            fields["prune"] = value
        elif word in ("reach", "zero") and word not in fields:
            if value is None or not value.is_integer():
                raise FormatError(f"{text!r}: {word} comes with a whole number, such as {word}@1")
            fields[word] = int(value)
        elif word == "ascending" and word not in fields and not at:
            fields["ascending"] = True
        elif word in ROUNDINGS and "rounding" not in fields and (word != "nearest" or at):
            fields["rounding"], fields["step"] = word, value
        elif word in (*UNIFORM_RANGES, *TERNARY_RANGES) and "range_rule" not in fields:
            fields["range_rule"], fields["range_value"] = word, value
        else:
            raise FormatError(
                f"{text!r}: step {word!r} is unknown, given twice, or a second range rule"
            )
    return fields


def _parse_number(text: str, number: str) -> float:
    try:
        return float(number)
    except ValueError:
        raise FormatError(f"{text!r}: {number!r} is not a number") from None
