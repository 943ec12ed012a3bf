"""`packer fix --new`: a submission folder from finished runs."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from packer.commands.fix_folder import refuse_output
from packer.commands.options.types import print_json, say
from packer.files import replacing_folder

if TYPE_CHECKING:
    from packer.fix.new_submission import NewSubmission


def make_new(
    runs: Sequence[str],
    output: str | None,
    cap: int,
    about: str | None,
    max_memory: int | None,
    as_json: bool,
) -> None:
    """Read the runs, write the folder and report what the checker finds. Raises PackerError."""
    from packer.fix.new_submission import new_submission, read_run
    from packer.progress import shown

    for run in runs:
        if not Path(run).is_dir():
            raise click.UsageError(f"{run} is not a folder; --new takes the folders of runs")
        if output is not None:
            refuse_output(run, output)
    description = _read_about(about)
    finished = []
    with shown("reading") as progress:
        for done, run in enumerate(runs):
            progress(run, done, len(runs))
            finished.append(read_run(Path(run), max_memory))
    name = Path(output or "submission").resolve().name
    submission = new_submission(finished, cap, description, name)
    if output is not None:
        _write(submission, output)
    if as_json:
        print_json(_json(submission, output))
    else:
        _show(submission, output)


def _read_about(path: str | None) -> Mapping[str, Any]:
    if path is None:
        return {}
    try:
        value = json.loads(Path(path).read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise click.BadParameter(f"{path} is not JSON: {error}") from None
    if not isinstance(value, dict):
        raise click.BadParameter(
            f'{path} holds no JSON object; write one, such as {{"author": ...}}'
        )
    return value


def _write(submission: NewSubmission, output: str) -> None:
    with replacing_folder(output) as inside:
        for name, content in submission.files.items():
            (inside / name).write_bytes(content)
        for name, origin in submission.copied.items():
            shutil.copyfile(origin, inside / name)


def _show(submission: NewSubmission, output: str | None) -> None:
    from packer.planning.account import describe_rest

    for seed, total in submission.totals.items():
        rest = describe_rest(submission.cap_bytes, submission.cap_bytes - total)
        say(f"seed {seed}: code {submission.code_bytes:,} + model = {total:,}{rest}")
    for finding in submission.findings:
        if finding.status.value in ("fail", "warn"):
            say(f"packer check: {finding.status.value} {finding.rule}: {finding.verdict}")
    for number, line in enumerate(submission.to_do, 1):
        say(f"to do {number}: {line}")
    where = f"{output}{os.sep}" if output else "not written (no -o)"
    names = ", ".join(sorted((*submission.files, *submission.copied)))
    say(f"{where}: val_bpb {submission.claims['val_bpb']}: {names}")


def _json(submission: NewSubmission, output: str | None) -> dict[str, Any]:
    return {
        "output": output,
        "files": sorted((*submission.files, *submission.copied)),
        "totals": {str(seed): total for seed, total in submission.totals.items()},
        "code_bytes": submission.code_bytes,
        "cap_bytes": submission.cap_bytes,
        "submission": dict(submission.claims),
        "findings": [finding.to_json() for finding in submission.findings],
        "to_do": list(submission.to_do),
    }
