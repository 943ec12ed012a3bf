"""The options of a plan as two values: how to measure, and which limits to keep."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypedDict

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class MeasureOptions:
    """How the tensors of a checkpoint are measured.

    pins: selector -> choice, which is measured too and which the plan must take. metadata: text
    stored in the artifact, in addition to the checkpoint's own. coder: entropy coder for all
    tensors, "numpy" to decode without constriction; None: whichever is smallest. trellis: with
    curvature, also offer trellis-coded formats, which take fewer bytes and more time.
    """

    pins: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    coder: str | None = None
    trellis: bool = False


class MeasureFields(TypedDict, total=False):
    """Fields of MeasureOptions given by name, as in `plan(weights, cap, trellis=True)`."""

    pins: Mapping[str, str]
    metadata: Mapping[str, str]
    coder: str | None
    trellis: bool


@dataclass(frozen=True)
class PlanLimits:
    """The cap, and what counts against it besides the artifact.

    code: files counted as code. loader: count the loader. margin_bytes: left free on purpose.
    bundle: count the bundle of encoder and decoder instead of the loader.
    """

    cap_bytes: int
    code: Sequence[PathLike] = ()
    loader: bool = False
    margin_bytes: int = 0
    bundle: bool = False
