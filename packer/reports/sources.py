"""A report of whatever a path holds: plan, checkpoint, artifact of ours or another's."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from packer.account import Limits, count_code
from packer.artifact_files import is_artifact
from packer.errors import PackerError
from packer.files import is_json
from packer.planning import PackPlan, read_plan
from packer.reports.foreign_report import report_foreign
from packer.reports.report import Report, report_artifact, report_checkpoint, report_plan

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

    cap, code, weights, drop, template and max_memory are for checkpoints and other authors'
    artifacts; plans and artifacts were made for their own.
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
    from packer.checkpoint import read_checkpoint

    checkpoint = read_checkpoint(
        path, weights=weights, drop=drop, template=template, max_memory=max_memory
    )
    report = report_checkpoint if checkpoint.foreign is None else report_foreign
    return report(checkpoint, Limits(cap or 0, count_code(code))), None
