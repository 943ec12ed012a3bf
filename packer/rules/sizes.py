"""Code and model against the cap, for every run; what was counted against what is shipped."""

from __future__ import annotations

from collections.abc import Iterator

from packer.code.packing import Packing, pack_code
from packer.code.wrapper import unwrap
from packer.errors import CodeError
from packer.rules.finding import Finding, Options, Point, Rule, Status, unknown, verdict
from packer.submission.account import RunAccount, accounts
from packer.submission.folder import Submission


def cap(submission: Submission, options: Options) -> Finding | None:
    """Code and model of every run are at most the cap."""
    runs = sorted(accounts(submission), key=lambda run: -(run.as_shipped or run.as_logged or 0))
    points = [_against_cap(run, options.cap_bytes) for run in runs]
    points += list(_claims_over(submission, options.cap_bytes))
    if not points:
        return unknown("cap", "neither a log nor an artifact with code tells the total")
    return verdict("cap", points, f"every run is at most {options.cap_bytes:,} bytes")


def _against_cap(run: RunAccount, cap_bytes: int) -> Point:
    logged, shipped = run.as_logged, run.as_shipped
    over = [total - cap_bytes for total in (shipped, logged) if total is not None]
    if not over and (run.model_bytes or 0) > cap_bytes:
        text = f"{run.name}: the model alone is {run.model_bytes:,}: OVER before any code"
        return Point(Status.FAIL, text)
    if not over:
        return Point(Status.UNKNOWN, f"{run.name}: its total is not known (no code, or no model)")
    parts = f"{run.name}: {_spelled(run)}"
    if run.superseded is not None and max(over) > 0:
        text = f"{parts}: over, but {run.superseded} takes its place; leave out what does not count"
        return Point(Status.WARN, text)
    if min(over) > 0:
        mib = " (and above 16 MiB)" if min(over) + cap_bytes > 2**24 else ""
        return Point(Status.FAIL, f"{parts}: OVER by {min(over):,}{mib}")
    if max(over) <= 0:
        return Point(Status.PASS, f"{parts}: {-max(over):,} left")
    if logged is not None and logged > cap_bytes:
        return Point(
            Status.WARN,
            f"{parts}: over by {logged - cap_bytes:,} as logged, {-min(over):,} left with the code "
            "as shipped; log a run of the shipped code",
        )
    return Point(
        Status.WARN,
        f"{parts}: fits only with a packed copy of the code that is not shipped; as shipped it is "
        f"over by {max(over):,} (packer code writes one)",
    )


def _spelled(run: RunAccount) -> str:
    texts = []
    if run.as_shipped is not None:
        sum_text = f"model {run.model_bytes:,} + code {run.shipped_code:,}"
        texts.append(f"{sum_text} = {run.as_shipped:,}")
    if run.as_logged is not None and run.as_logged != run.as_shipped:
        texts.append(f"logged {run.as_logged:,}")
    return ", ".join(texts)


def _claims_over(submission: Submission, cap_bytes: int) -> Iterator[Point]:
    """Totals that submission.json itself puts above the cap."""
    claims = submission.claims
    if claims is None:
        return
    if claims.total is not None and claims.total.value - claims.total.error > cap_bytes:
        over = claims.total.value - cap_bytes
        yield Point(
            Status.FAIL,
            f"submission.json: {claims.total.key} {claims.total.written} is over by {over:,.0f}",
        )
    for seed in claims.seed_claims:
        if seed.size_bytes is not None and seed.size_bytes > cap_bytes:
            text = f"submission.json: seed {seed.seed} {seed.size_bytes:,} is over by "
            yield Point(Status.FAIL, f"{text}{seed.size_bytes - cap_bytes:,}")


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
    """Code that is counted packed is shipped packed, or can at least be packed that small."""
    runs = [run for run in accounts(submission) if run.counts_a_wrapper]
    if not runs or not submission.code:
        return None
    counted = min(run.logged_code or 0 for run in runs)
    shipped = runs[0].shipped_code or 0
    text = f"counted {counted:,} bytes of code, shipped {shipped:,}"
    if _is_stale(runs, shipped):
        return Finding("wrapper", Status.WARN, f"{text}: the log is of another version of the code")
    try:
        files = [*submission.code, *submission.imported]
        packed = pack_code(files, Packing(rename=True)).packed_bytes
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
    """A small difference is an edit, not a wrapper, unless the log says that it compressed."""
    compressed = any(run.log is not None and run.log.raw_code_bytes is not None for run in runs)
    return not compressed and all((run.logged_code or 0) > 0.6 * shipped for run in runs)


def code_files(submission: Submission, options: Options) -> Finding | None:
    """Everything that the entry imports from the folder is counted."""
    if not submission.code and submission.unread_code:
        return Finding("code-files", Status.FAIL, "; ".join(submission.unread_code))
    if not submission.code:
        return Finding("code-files", Status.FAIL, "no code: a submission's train_gpt.py runs alone")
    entry = submission.code[0]
    wrapped = " (a self-extracting script)" if _is_wrapper(entry.text) else ""
    said = f"{entry.path} {entry.size_bytes:,}{wrapped}"
    if not submission.imported:
        return Finding("code-files", Status.PASS, f"code is {said}, and imports nothing beside it")
    names = ", ".join(f"{file.path} {file.size_bytes:,}" for file in submission.imported)
    whole = (submission.code_bytes or 0) + sum(file.size_bytes for file in submission.imported)
    if any(whole in (log.code_bytes, log.raw_code_bytes) for log in submission.logs):
        return Finding("code-files", Status.PASS, f"code is {said}, {names}, all counted")
    return Finding(
        "code-files",
        Status.WARN,
        f"{said} imports {names}, which no log counts; with them the code is {whole:,}",
    )


def _is_wrapper(text: str) -> bool:
    try:
        return unwrap(text) is not None
    except CodeError:
        return True


RULES: tuple[Rule, ...] = (cap, sums, wrapper, code_files)
