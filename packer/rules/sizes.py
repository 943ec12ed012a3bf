"""Checks code and model of every run against the cap, and counted code against shipped code."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Sequence

from packer.code.pack_script import Packing, pack_code
from packer.code.self_extracting import CODECS, unwrap
from packer.code.syntax import is_literal, parse_if_possible
from packer.errors import CodeError
from packer.rules.finding import Finding, Options, Point, Rule, Status, unknown, verdict
from packer.submission.account import RunAccount, accounts
from packer.submission.folder import Submission


def cap(submission: Submission, options: Options) -> Finding | None:
    """Code and model of every run are at most the cap."""
    runs = sorted(accounts(submission), key=lambda run: -(run.as_shipped or run.as_logged or 0))
    points = [_against_cap(run, options.cap_bytes) for run in runs]
    points += _rounded(submission, options.cap_bytes)
    points += _claims_over(submission, runs, options.cap_bytes)
    if not points:
        return unknown("cap", "no total is known: no log has one, and no artifact comes with code")
    return verdict("cap", points, f"every run is at most {options.cap_bytes:,} bytes")


def _against_cap(run: RunAccount, cap_bytes: int) -> Point:
    logged, shipped = run.as_logged, run.as_shipped
    over = [total - cap_bytes for total in (shipped, logged) if total is not None]
    if not over and (run.model_bytes or 0) > cap_bytes:
        text = f"{run.name}: the model alone is {run.model_bytes:,}: OVER before any code"
        return Point(Status.FAIL, text + _mib(run))
    if not over:
        return Point(Status.UNKNOWN, f"{run.name}: its total is not known (no code, or no model)")
    parts = f"{run.name}: {_describe(run)}"
    if run.superseded is not None and max(over) > 0:
        text = f"{parts}: over, but {run.superseded} takes its place; leave out what does not count"
        return Point(Status.WARN, text)
    if min(over) > 0:
        mib = " (and above 16 MiB)" if min(over) + cap_bytes > 2**24 else ""
        return Point(Status.FAIL, f"{parts}: OVER by {min(over):,}{mib}{_mib(run)}")
    if max(over) <= 0:
        return Point(Status.PASS, f"{parts}: {-max(over):,} left")
    if logged is not None and logged > cap_bytes:
        return Point(
            Status.WARN,
            f"{parts}: over by {logged - cap_bytes:,} as logged, {-min(over):,} left with the code "
            "as shipped; log a run of the shipped code",
        )
    if run.counts_own_code:
        text = f"{parts}: fits only without the files that the code runs; with them it is over by"
        return Point(Status.WARN, f"{text} {max(over):,}")
    return Point(
        Status.WARN,
        f"{parts}: fits only with a packed copy of the code that is not shipped; as shipped it is "
        f"over by {max(over):,} (packer code writes one)",
    )


def _rounded(submission: Submission, cap_bytes: int) -> Iterator[Point]:
    """Logs with a size in MB alone, which is MiB to some scripts, and no artifact of that size."""
    code = submission.code_bytes or 0
    for log in submission.logs:
        size = log.rounded
        if size is None:
            continue
        least, most = size.size_bytes - size.error, size.most_bytes
        least_model = least - code if size.is_total else least
        if any(least_model <= file.size_bytes <= most for file in submission.artifacts):
            continue
        text = f"{log.name}: {size.written!r}"
        if least > cap_bytes:
            yield Point(Status.FAIL, f"{text} is OVER by {least - cap_bytes:,} or more")
        elif most + (0 if size.is_total else code) <= cap_bytes:
            yield Point(Status.PASS, f"{text} fits, even if it counts MiB")
        else:
            text += " may be over if it counts MiB" if most > cap_bytes else " leaves out the code"
            yield Point(Status.UNKNOWN, f"{text}; log the bytes")


def _describe(run: RunAccount) -> str:
    texts = []
    if run.as_shipped is not None:
        sum_text = f"model {run.model_bytes:,} + code {run.shipped_code:,}"
        texts.append(f"{sum_text} = {run.as_shipped:,}")
    if run.as_logged is not None and run.as_logged != run.as_shipped:
        texts.append(f"logged {run.as_logged:,}")
    if run.is_stub:
        counted, code = run.logged_code or 0, run.shipped_code or 0
        texts.append(f"with {counted:,} bytes of code, of which the folder has {code:,}")
    return ", ".join(texts)


def _mib(run: RunAccount) -> str:
    mib = run.log.mib if run.log is not None else None
    return f"; the log's {mib} counts MiB as MB" if mib is not None else ""


def _claims_over(
    submission: Submission, runs: Sequence[RunAccount], cap_bytes: int
) -> Iterator[Point]:
    """Totals and models claimed in submission.json that are above the cap."""
    claims = submission.claims
    if claims is None:
        return
    if claims.total is not None and claims.total.value - claims.total.error > cap_bytes:
        over = claims.total.value - cap_bytes
        yield Point(
            Status.FAIL,
            f"submission.json: {claims.total.key} {claims.total.written} is over by {over:,.0f}",
        )
    if claims.model is not None and claims.model.value - claims.model.error > cap_bytes:
        text = f"submission.json: {claims.model.key} {claims.model.written} alone is over by"
        # The key may describe another export than the submitted one.
        totals = [run.as_logged or run.as_shipped for run in runs]
        fits = bool(totals) and all(total is not None and total <= cap_bytes for total in totals)
        status = Status.WARN if fits else Status.FAIL
        yield Point(status, f"{text} {claims.model.value - cap_bytes:,.0f}")
    later = {str(run.seed): run.superseded for run in runs if run.superseded is not None}
    for seed in claims.seed_claims:
        if seed.size_bytes is not None and seed.size_bytes > cap_bytes:
            text = f"submission.json: seed {seed.seed} {seed.size_bytes:,} is over by "
            place = f", but {later[seed.seed]} takes its place" if seed.seed in later else ""
            status = Status.WARN if place else Status.FAIL
            yield Point(status, f"{text}{seed.size_bytes - cap_bytes:,}{place}")


def sums(submission: Submission, options: Options) -> Finding | None:
    """The three numbers a log prints add up: code + model = total."""
    points = []
    for log in submission.logs:
        labelled = dict(log.totals)
        for label, model in log.models:
            total = labelled.get(label)
            if total is None or log.code_bytes is None:
                continue
            good = total - model in (log.code_bytes, log.raw_code_bytes)
            text = f"{log.name}: {model:,} + {log.code_bytes:,} is {model + log.code_bytes:,}"
            wrong = f"{text}, printed as {total:,}"
            points.append(Point(Status.PASS if good else Status.FAIL, text if good else wrong))
    return verdict("sums", points, "code + model = total in every log") if points else None


def wrapper(submission: Submission, options: Options) -> Finding | None:
    """Code that was counted packed is shipped packed, or can at least be packed that small."""
    current = [run for run in accounts(submission) if run.superseded is None]
    runs = [run for run in current if run.counts_a_wrapper]
    if not runs or not submission.code:
        return None
    counted = min(run.logged_code or 0 for run in runs)
    shipped = runs[0].own_code or 0
    text = f"counted {counted:,} bytes of code, shipped {shipped:,}"
    if _is_stale(runs, shipped):
        return Finding("wrapper", Status.WARN, f"{text}: the log is of another version of the code")
    try:
        files = [*submission.code, *submission.imported]
        packed = pack_code(files, Packing(rename=True, codecs=CODECS)).packed_bytes
    except CodeError as error:
        return unknown("wrapper", f"{text}; whether it packs that small is not known: {error}")
    if packed <= counted * 1.02:
        return Finding(
            "wrapper",
            Status.WARN,
            f"{text}; the wrapper is not shipped, but the code packs to {packed:,}",
        )
    return Finding(
        "wrapper",
        Status.WARN if packed <= counted * 1.15 else Status.FAIL,
        f"{text}; the wrapper is not shipped, and packer code needs {packed:,}",
    )


def _is_stale(runs: list[RunAccount], shipped: int) -> bool:
    """Whether the difference is an edit: it is small, and no log mentions compressed code."""
    compressed = any(run.log is not None and run.log.raw_code_bytes is not None for run in runs)
    return not compressed and all((run.logged_code or 0) > 0.6 * shipped for run in runs)


def code_files(submission: Submission, options: Options) -> Finding | None:
    """Everything that the entry runs from the folder is counted."""
    if not submission.code:
        return _no_code(submission)
    entry = submission.code[0]
    if _does_nothing(entry.text):
        size = f"{entry.size_bytes:,} bytes"
        return Finding("code-files", Status.FAIL, f"{entry.path} runs nothing ({size})")
    wrapped = " (a self-extracting script)" if _is_wrapper(entry.text) else ""
    described = f"{entry.path} {entry.size_bytes:,}{wrapped}"
    stub = next((run for run in accounts(submission) if run.is_stub), None)
    if stub is not None:
        text = f"code is {described}, and {stub.name} counts {stub.logged_code:,}: the rest is not"
        return Finding("code-files", Status.WARN, f"{text} found{_beside(submission)}")
    others = (*submission.imported, *submission.executed)
    if not others:
        return Finding("code-files", Status.PASS, f"code is {described}, and runs no other file")
    names = ", ".join(f"{file.path} {file.size_bytes:,}" for file in others)
    whole = submission.code_bytes or 0
    claims = submission.claims
    counted = {size for log in submission.logs for size in (log.code_bytes, log.raw_code_bytes)}
    if whole in counted or (claims is not None and claims.code and claims.code.means(whole)):
        return Finding("code-files", Status.PASS, f"code is {described}, {names}, all counted")
    return Finding(
        "code-files",
        Status.WARN,
        f"{described} runs {names}, which no log counts; with them the code is {whole:,}",
    )


def _no_code(submission: Submission) -> Finding:
    if submission.unread_code:
        return Finding("code-files", Status.FAIL, "; ".join(submission.unread_code))
    if submission.beside:
        return unknown(
            "code-files",
            f"no train_gpt.py{_beside(submission)}: name with --code what is run, the entry first",
        )
    return Finding("code-files", Status.FAIL, "no code: a submission's train_gpt.py runs alone")


def _beside(submission: Submission) -> str:
    names = ", ".join(f"{file.path} {file.size_bytes:,}" for file in submission.beside[:5])
    more = ", ..." if len(submission.beside) > 5 else ""
    return f"; beside it are {names}{more}" if names else ""


def _does_nothing(text: str) -> bool:
    """Whether a script has no statement, or none but its docstring."""
    tree = parse_if_possible(text)
    return tree is not None and all(
        is_literal(node) or isinstance(node, ast.Pass) for node in tree.body
    )


def _is_wrapper(text: str) -> bool:
    try:
        return unwrap(text) is not None
    except CodeError:
        return True


RULES: tuple[Rule, ...] = (cap, sums, wrapper, code_files)
