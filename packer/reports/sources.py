"""Loads reports of plans, checkpoints and artifacts of ours or of others, and the data of their
figures.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from packer.artifact.artifact_file import is_artifact
from packer.errors import PackerError, PlanError
from packer.files import is_json
from packer.planning.account import Limits, count_code
from packer.planning.plan import PackPlan, read_plan
from packer.reports.foreign_report import report_foreign
from packer.reports.report import Report, report_artifact, report_checkpoint, report_plan

if TYPE_CHECKING:
    from packer.planning.shannon_bound import BoundedPlan
    from packer.quantizers.formats import QuantizedTensor
    from packer.reports.report_data import CodeHistogram

PathLike = str | os.PathLike[str]


def load_report(
    path: PathLike,
    *,
    cap: int | None = None,
    code: Sequence[PathLike] = (),
    weights: str | None = None,
    drop: Sequence[str] = (),
    template: PathLike | None = None,
    max_memory: int | None = None,
) -> tuple[Report, PackPlan | None]:
    """(report, plan if the source is one).

    cap, code, weights, drop, template and max_memory apply to checkpoints and other authors'
    artifacts; plans and artifacts of ours hold their own.
    Raises PlanError, CheckpointError, decoder.ArtifactError: the source is damaged.
    """
    planned, packed = is_json(path), is_artifact(path)
    if (planned or packed) and (cap is not None or code or weights or drop or template):
        raise PackerError(
            f"{path} was made for its own cap, code and weights; leave --cap, --code, --weights "
            "and --drop out, or plan again to change them"
        )
    if planned:
        plan = read_plan(path)
        return report_plan(plan, str(path)), plan
    if packed:
        return report_artifact(Path(path).read_bytes(), str(path)), None
    from packer.checkpoint.checkpoint import read_checkpoint

    checkpoint = read_checkpoint(
        path, weights=weights, drop=drop, template=template, max_memory=max_memory
    )
    report = report_checkpoint if checkpoint.foreign is None else report_foreign
    return report(checkpoint, Limits(cap or 0, count_code(code))), None


def load_histograms(
    path: PathLike,
    report: Report,
    *,
    template: PathLike | None = None,
    max_memory: int | None = None,
) -> tuple[CodeHistogram, ...]:
    """Code histograms of an artifact's coarsest tensors; none for a plan or a checkpoint.

    Raises decoder.ArtifactError, CheckpointError: the source is damaged.
    """
    from packer.reports.code_counts import coarsest, histograms_of

    rows = coarsest(report)
    if report.kind not in ("artifact", "foreign"):
        return ()
    names = [row.name for row in rows]
    if report.kind == "artifact":
        return histograms_of(rows, _codes_of_ours(path, names))
    return histograms_of(rows, _codes_of_another(path, names, template, max_memory))


def _codes_of_ours(path: PathLike, names: Sequence[str]) -> Iterator[QuantizedTensor]:
    """Yields one tensor at a time, so that only those that are used are decoded."""
    from packer.artifact.decoder import parse
    from packer.artifact.encoder import quantized_tensor

    stored = {tensor.name: tensor for tensor in parse(Path(path).read_bytes()).tensors}
    for name in names:
        yield quantized_tensor(stored[name])


def _codes_of_another(
    path: PathLike, names: Sequence[str], template: PathLike | None, max_memory: int | None
) -> Iterator[QuantizedTensor]:
    from packer.checkpoint.checkpoint import read_checkpoint

    foreign = read_checkpoint(path, template=template, max_memory=max_memory).foreign
    assert foreign is not None
    for name in names:
        yield foreign.tensors[name].quantized


def load_bounded(
    plan: PackPlan,
    curvature: PathLike,
    checkpoint: PathLike | None = None,
    *,
    weights: str | None = None,
    drop: Sequence[str] = (),
) -> BoundedPlan:
    """The plan with the data that its Shannon bound is computed from.

    curvature: the file that the plan was made with. checkpoint: by default the one that the plan
    names; weights, drop: how to read it.
    Raises PlanError: the checkpoint has other contents, or the plan was made with other curvature
    or none. CheckpointError, CurvatureError: damaged.
    """
    from packer.checkpoint.checkpoint import read_checkpoint
    from packer.checkpoint.fingerprint import contents_fingerprint
    from packer.curvature.file import read_curvature
    from packer.packing.pack import stale_plan
    from packer.planning.shannon_bound import bounded_plan

    wanted = plan.measurement.curvature
    if wanted is None:
        raise PlanError(
            "the plan was made without curvature: its damage is in other units than the bound's. "
            "Plan the checkpoint with --curvature or --calibration first"
        )
    source = plan.measurement.source if checkpoint is None else checkpoint
    loaded = read_checkpoint(source, weights=weights, drop=drop)
    contents = contents_fingerprint(loaded)
    if contents != plan.measurement.contents:
        raise PlanError(stale_plan(plan, loaded, contents))
    curvature_set = read_curvature(curvature, loaded)
    if curvature_set.sha256 != wanted:
        raise PlanError(
            f"the plan was made with curvature {wanted[:12]}, and {curvature} is "
            f"{curvature_set.sha256[:12]}: give the file it was made with, or plan again"
        )
    return bounded_plan(plan, loaded, curvature_set)
