"""What a user asks of a plan, as two values that travel whole: how to measure, and what to fit."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypedDict

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class MeasureOptions:
    """How the tensors of a checkpoint are measured.

    pins: selector -> choice, measured as well and kept by the plan. metadata: text that goes into
    the artifact beside the checkpoint's own. coder: entropy coder of every tensor, "numpy" where
    readers have no constriction; None: the smallest. trellis: with curvature, offer trellis-coded
    formats too, which take fewer bytes and more time.
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
    """The cap, and what counts against it beside the artifact.

    code: files counted as code. loader: count the loader. margin_bytes: left free on purpose.
    bundle: count the bundle of encoder and decoder in place of the loader. inline: the script that
    the bundle is put into, which is code as well. calibrate: the bundle also calibrates. Either of
    the last two asks for a bundle.
    """

    cap_bytes: int
    code: Sequence[PathLike] = ()
    loader: bool = False
    margin_bytes: int = 0
    bundle: bool = False
    inline: PathLike | None = None
    calibrate: bool = False

    @property
    def bundles(self) -> bool:
        return self.bundle or self.inline is not None or self.calibrate
