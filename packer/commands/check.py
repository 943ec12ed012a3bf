"""`packer check`: the contest's rules, checked on a submission folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from packer.commands.options.groups import with_options
from packer.commands.options.types import (
    CODE,
    JSON,
    MAX_MEMORY,
    cap_option,
    print_json,
    say,
    say_notes,
)
from packer.printable import spelled
from packer.submission.contest import CAP_BYTES

if TYPE_CHECKING:
    from packer.rules import Finding

COLORS = {"pass": "green", "warn": "yellow", "unknown": "cyan", "fail": "red"}


@click.command(short_help="Check a submission against the rules.")
@click.argument("folder", type=click.Path(exists=True, file_okay=False))
@with_options(
    cap_option(required=False, help="Check against a limit of SIZE bytes; default: 16MB."), CODE
)
@click.option(
    "--sota-nats",
    multiple=True,
    type=float,
    help="Compare with this val_loss of the record to beat; repeat for its seeds.",
)
@click.option(
    "--replicated-nats",
    multiple=True,
    type=float,
    help="Compare with this val_loss of your own run of the same record; repeat for its seeds.",
)
@click.option("--verbose", is_flag=True, help="Print the evidence of rules that pass, too.")
@with_options(MAX_MEMORY, JSON)
def check(
    folder: str,
    cap: int | None,
    code: tuple[str, ...],
    sota_nats: tuple[float, ...],
    replicated_nats: tuple[float, ...],
    verbose: bool,
    max_memory: int | None,
    as_json: bool,
) -> None:
    """Check the submission in FOLDER: pass, fail, warn or unknown for each rule, with evidence.

    Reads train_gpt.py (or --code), artifacts, submission.json, logs and README.md; runs nothing.
    A rule without evidence is reported as unknown, never as passed. The
    rules and their limits are in docs/checker.md. Exits with 1 if a rule fails.
    """
    from packer.progress import shown
    from packer.rules import Options, Status
    from packer.rules import check as check_rules
    from packer.submission.folder import read_submission

    with shown("reading") as progress:
        submission = read_submission(folder, code=code, max_memory=max_memory, progress=progress)
    options = Options(
        cap_bytes=cap or CAP_BYTES,
        sota_nats=sota_nats,
        replicated_nats=replicated_nats,
    )
    findings = check_rules(submission, options)
    failed = any(finding.status is Status.FAIL for finding in findings)
    if as_json:
        print_json(
            {
                "folder": folder,
                "cap_bytes": options.cap_bytes,
                "failed": failed,
                "notes": list(submission.notes),
                "findings": [finding.to_json() for finding in findings],
            }
        )
    else:
        say_notes(submission.notes)
        _print(findings, verbose)
    if failed:
        raise SystemExit(1)


def _print(findings: tuple[Finding, ...], verbose: bool) -> None:
    width = max(len(finding.rule) for finding in findings)
    counts = dict.fromkeys(("fail", "warn", "unknown", "pass"), 0)
    for finding in findings:
        status = finding.status.value
        counts[status] += 1
        mark = click.style(f"{status:7}", fg=COLORS[status], bold=status == "fail")
        click.echo(f"{mark} {finding.rule:{width}}  {spelled(finding.verdict)}")
        if verbose or status != "pass":
            for line in finding.evidence:
                say(f"{'':{width + 10}}{line}")
    say(", ".join(f"{count} {status}" for status, count in counts.items()))
