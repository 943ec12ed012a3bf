"""A submission folder from finished runs: their code, a log per seed, one artifact, true claims.

All claims are computed from the logs and files of the runs, and the folder is checked by the rules
of the checker before it is written.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from packer.code.pack_script import SourceFile, pack_code
from packer.code.self_extracting import ENTRY
from packer.code.texts import decode_text
from packer.errors import CapError, SubmissionError
from packer.rules import Finding, Options, Status, check
from packer.submission.artifacts import ArtifactFile
from packer.submission.claims import Claims, parse_claims
from packer.submission.folder import Submission, read_submission
from packer.submission.headline import Headline, headline
from packer.submission.training_log import TrainingLog, parse_log

SEEDS_NEEDED = 3
CODE_NAME = "train_gpt.py"
ONLY_THE_AUTHOR = ("author", "github_id", "date", "blurb")
TICKED = {"train-time": "train_under_600s", "eval-time": "eval_under_600s"}


@dataclass(frozen=True)
class FinishedRun:
    """One run's folder. seed: as logged. code: the entry first."""

    folder: Path
    seed: int
    log: TrainingLog
    artifact: ArtifactFile
    code: tuple[SourceFile, ...]


@dataclass(frozen=True)
class NewSubmission:
    """files: name -> content. copied: name -> the file it is copied from. totals: seed -> bytes.

    findings: of the checker, on exactly these files. to_do: what only the author can add.
    """

    files: Mapping[str, bytes]
    copied: Mapping[str, Path]
    totals: Mapping[int, int]
    code_bytes: int
    cap_bytes: int
    claims: Mapping[str, Any]
    findings: tuple[Finding, ...]
    to_do: tuple[str, ...]


def read_run(folder: Path, max_memory: int | None = None) -> FinishedRun:
    """Raises SubmissionError: no code, or not exactly one log with a score and one artifact."""
    submission = read_submission(folder, max_memory=max_memory)
    if not submission.code:
        raise SubmissionError(f"{folder}: has no {CODE_NAME}; put the code that ran there")
    if submission.executed:
        names = ", ".join(file.path for file in submission.executed)
        raise SubmissionError(
            f"{folder}: {submission.code[0].path} runs {names} by name, which one script cannot "
            "hold; import it as a module, or put the two into one file"
        )
    logs = [log for log in submission.logs if log.quantized_scores]
    if len(logs) != 1 or logs[0].seed is None:
        names = ", ".join(log.name for log in logs) or "none"
        raise SubmissionError(
            f"{folder}: one log with its seed and a score after quantization is needed; such logs "
            f"are: {names}"
        )
    sizes = {size for _, size in logs[0].models}
    whole = [
        one for one in submission.artifacts if one.problem is None and one.layout != "plain weights"
    ]
    logged = [one for one in whole if one.size_bytes in sizes] or ([] if sizes else whole)
    if len(logged) != 1:
        present = ", ".join(f"{o.name} {o.size_bytes:,}" for o in submission.artifacts) or "none"
        expected = ", ".join(f"{size:,}" for size in sorted(sizes)) or "none"
        raise SubmissionError(
            f"{folder}: artifacts are {present}, and {logs[0].name} names the sizes {expected}; "
            "leave the one that was logged"
        )
    return FinishedRun(folder, logs[0].seed, logs[0], logged[0], submission.whole_code)


def new_submission(
    runs: Sequence[FinishedRun], cap_bytes: int, about: Mapping[str, Any], name: str
) -> NewSubmission:
    """The folder's contents. about: the author's own entries for submission.json.

    Raises SubmissionError: fewer than three seeds, a seed twice, different codes, no score that all
    logs have. CapError: a run is over the cap, even with packed code.
    """
    runs = sorted(runs, key=lambda run: run.seed)
    _refuse_mixed(runs)
    code = _shipped_code(runs, cap_bytes)
    totals = {run.seed: code.size_bytes + run.artifact.size_bytes for run in runs}
    texts = {_log_name(run): (run.folder / run.log.name).read_bytes() for run in runs}
    parsed = tuple(parse_log(decode_text(text).text, key) for key, text in texts.items())
    bare = Submission(name, code=(code,), logs=parsed)
    scores = headline(bare)
    if scores is None or len(scores.by_log) < len(runs):
        raise SubmissionError("the logs have no score after quantization in common")
    kept = _median(runs, scores)
    artifact = replace(kept.artifact, name=Path(kept.artifact.name).name)
    claims = _claims(runs, scores, code, about, name)
    readme = _readme(claims, scores, kept, artifact.name, cap_bytes)
    bare = replace(bare, artifacts=(artifact,), readme=readme, claims=_parsed(claims))
    claims["compliance"] = _compliance(check(bare, Options(cap_bytes)), totals, cap_bytes)
    findings = check(replace(bare, claims=_parsed(claims)), Options(cap_bytes))
    missing = [key for key in ONLY_THE_AUTHOR if key not in about]
    return NewSubmission(
        {
            CODE_NAME: code.text.encode(),
            "README.md": readme.encode(),
            "submission.json": _to_json(claims).encode(),
            **texts,
        },
        {artifact.name: kept.folder / kept.artifact.name},
        totals,
        code.size_bytes,
        cap_bytes,
        claims,
        findings,
        (f"say in submission.json: {', '.join(missing)}",) if missing else (),
    )


def _refuse_mixed(runs: Sequence[FinishedRun]) -> None:
    seeds = [run.seed for run in runs]
    if len(set(seeds)) < len(seeds):
        raise SubmissionError(f"the runs have the seeds {seeds}; every seed may be there once")
    if len(seeds) < SEEDS_NEEDED:
        raise SubmissionError(f"{len(seeds)} runs were named; a submission needs {SEEDS_NEEDED}")
    first = {file.module: file.text for file in runs[0].code}
    for run in runs[1:]:
        if {file.module: file.text for file in run.code} != first:
            raise SubmissionError(
                f"{runs[0].folder} and {run.folder} ran different code; a submission is one code "
                "with several seeds"
            )


def _shipped_code(runs: Sequence[FinishedRun], cap_bytes: int) -> SourceFile:
    """The code as it ran if it fits and the logs counted it so; else packed into one script."""
    files = runs[0].code
    raw = sum(file.size_bytes for file in files)
    largest = max(run.artifact.size_bytes for run in runs)
    packed_counted = any((run.log.code_bytes or raw) < raw for run in runs)
    # The text is written anew, so a file with CR LF at its line ends is shipped packed.
    plain = len(files) == 1 and files[0].text_bytes == raw
    if plain and raw + largest <= cap_bytes and not packed_counted:
        return SourceFile(CODE_NAME, ENTRY, files[0].text, raw)
    packed = pack_code(files)
    if packed.packed_bytes + largest > cap_bytes:
        sizes = ", ".join(f"{run.folder} {run.artifact.size_bytes:,}" for run in runs)
        over = packed.packed_bytes + largest - cap_bytes
        raise CapError(
            f"even with packed code ({packed.packed_bytes:,}) the largest run is OVER by {over:,} "
            f"of {cap_bytes:,}: {sizes}. Bring its artifact under the cap first (packer fix)"
        )
    return SourceFile(CODE_NAME, ENTRY, packed.text, packed.packed_bytes)


def _median(runs: Sequence[FinishedRun], scores: Headline) -> FinishedRun:
    """The run in the middle; of an even number the better of the two."""
    by_score = sorted(runs, key=lambda run: scores.by_log[_log_name(run)].bpb)
    return by_score[(len(runs) - 1) // 2]


def _log_name(run: FinishedRun) -> str:
    return f"train_seed{run.seed}.log"


def _claims(
    runs: Sequence[FinishedRun],
    scores: Headline,
    code: SourceFile,
    about: Mapping[str, Any],
    name: str,
) -> dict[str, Any]:
    each = {run.seed: scores.by_log[_log_name(run)] for run in runs}
    largest = max(run.artifact.size_bytes for run in runs)
    return {
        "name": name,
        **about,
        "val_bpb": round(scores.mean_bpb, 8),
        "val_loss": round(scores.mean_nats, 8),
        "val_bpb_std": round(statistics.stdev(score.bpb for score in each.values()), 8),
        "val_loss_std": round(statistics.stdev(score.nats for score in each.values()), 8),
        "bytes_total": code.size_bytes + largest,
        "bytes_code": code.size_bytes,
        "bytes_model": largest,
        "seeds": [run.seed for run in runs],
        "seed_results": {
            str(run.seed): {
                "val_bpb": each[run.seed].bpb,
                "val_loss": each[run.seed].nats,
                "artifact_bytes": code.size_bytes + run.artifact.size_bytes,
                **({} if run.log.step is None else {"steps": run.log.step}),
            }
            for run in runs
        },
    }


def _compliance(
    findings: Sequence[Finding], totals: Mapping[int, int], cap_bytes: int
) -> dict[str, bool]:
    """Compliance flags that files and logs decide; undecided flags are left out."""
    by_rule = {finding.rule: finding.status for finding in findings}
    answered = {
        box: by_rule[rule] is not Status.FAIL
        for rule, box in TICKED.items()
        if by_rule.get(rule, Status.UNKNOWN) is not Status.UNKNOWN
    }
    fits = max(totals.values()) <= cap_bytes
    return {"artifact_under_16mb": fits, "three_seeds": True, **answered}


def _readme(
    claims: Mapping[str, Any], scores: Headline, kept: FinishedRun, artifact: str, cap_bytes: int
) -> str:
    code = claims["bytes_code"]
    rows = [
        f"| {seed} | {one.get('steps', '')} | {one['val_loss']} | {one['val_bpb']} "
        f"| {one['artifact_bytes'] - code:,} | {one['artifact_bytes']:,} |"
        for seed, one in claims["seed_results"].items()
    ]
    return "\n".join(
        (
            f"# {claims['name']}",
            "",
            *((str(claims["blurb"]), "") if "blurb" in claims else ()),
            "| seed | steps | val_loss | val_bpb | model bytes | total bytes |",
            "|---:|---:|---:|---:|---:|---:|",
            *rows,
            f"| mean | | {claims['val_loss']} | {claims['val_bpb']} | | |",
            "",
            f"The score is `{scores.name}` of each log. `{CODE_NAME}` takes {code:,} bytes; with "
            f"it the largest run is {claims['bytes_total']:,} of {cap_bytes:,} bytes. "
            f"`{artifact}` is of seed {kept.seed}, the median.",
            "",
        )
    )


def _to_json(claims: Mapping[str, Any]) -> str:
    return json.dumps(claims, indent=2, ensure_ascii=False) + "\n"


def _parsed(claims: Mapping[str, Any]) -> Claims:
    return parse_claims(_to_json(claims))
