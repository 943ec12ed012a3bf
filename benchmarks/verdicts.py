"""Right and wrong verdicts of each rule: `python -m benchmarks.verdicts` rewrites verdicts.csv.

The folders, and what is true of each, are those of tests/packer/incidents.toml, which the tests
hold. With `--cases DIR`, instead, submissions as they lie in DIR, and nothing is written:
DIR/expected.toml has a table for each of its folders, rule -> pass, warn, unknown or fail.

A fail that is not expected is a false one, of every rule; other verdicts count only where one is
expected. Exit code 1 where a verdict is wrong.
"""

from __future__ import annotations

import argparse
import csv
import importlib.util
import io
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from packer.errors import SubmissionError
from packer.rules import Finding, Status, check
from packer.submission.folder import read_submission

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

OUTPUT = Path(__file__).with_name("verdicts.csv")
TESTS = Path(__file__).parents[1] / "tests" / "packer" / "test_check.py"
RIGHT = {status: f"right_{status.value}" for status in Status}
FALSE_FAIL, MISSED_FAIL, OTHER_WRONG = "false_fail", "missed_fail", "other_wrong"
COLUMNS = (*RIGHT.values(), FALSE_FAIL, MISSED_FAIL, OTHER_WRONG)


@dataclass(frozen=True)
class Case:
    """expected: rule -> status."""

    name: str
    folder: Path
    expected: Mapping[str, Status]


def _module(path: Path) -> ModuleType:
    """A test module, which no package holds."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = sys.modules[path.stem] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def cases_of_the_tests(scratch: Path) -> Iterator[Case]:
    """The incidents, one after the other in a folder of their own."""
    tests = _module(TESTS)
    for number, incident in enumerate(tests.incidents()):
        expected = {rule: Status(status) for rule, (status, _) in incident["expected"].items()}
        folder = tests.folder_of(incident).write(scratch / str(number))
        yield Case(incident["name"], folder, expected)


def cases_in(folder: Path) -> Iterator[Case]:
    """Raises SubmissionError: no table, or a status that there is none of."""
    table = folder / "expected.toml"
    try:
        for name, expected in tomllib.loads(table.read_text("utf-8")).items():
            statuses = {rule: Status(status) for rule, status in expected.items()}
            yield Case(name, folder / name, statuses)
    except (OSError, ValueError, AttributeError) as error:
        raise SubmissionError(f"{table}: {error}") from None


def judge(case: Case) -> Iterator[tuple[str, str, str]]:
    """(rule, column, verdict text) of each verdict that counts."""
    return judged({one.rule: one for one in check(read_submission(case.folder))}, case.expected)


def judged(
    findings: Mapping[str, Finding], wanted: Mapping[str, Status]
) -> Iterator[tuple[str, str, str]]:
    """The same of findings that are there."""
    for rule in sorted(findings.keys() | wanted.keys()):
        finding, expected = findings.get(rule), wanted.get(rule)
        status = finding.status if finding else None
        if status is expected:
            column = RIGHT[expected]
        elif status is Status.FAIL:
            column = FALSE_FAIL
        elif expected is not None:
            column = MISSED_FAIL if expected is Status.FAIL else OTHER_WRONG
        else:
            continue
        yield rule, column, finding.verdict if finding else "no verdict"


def count(
    cases: Iterable[tuple[str, Iterable[tuple[str, str, str]]]],
) -> tuple[list[tuple[str | int, ...]], list[str]]:
    """(a row of the CSV per rule, the wrong verdicts in words), of (name, what `judge` gives)."""
    counts: dict[str, Counter[str]] = {}
    wrong: list[str] = []
    for name, verdicts in cases:
        for rule, column, text in verdicts:
            counts.setdefault(rule, Counter())[column] += 1
            if column not in RIGHT.values():
                wrong.append(f"{name}: {column} of {rule}: {text}")
    rows = [(rule, *(found[column] for column in COLUMNS)) for rule, found in counts.items()]
    return sorted(rows), wrong


def as_csv(rows: list[tuple[str | int, ...]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([("rule", *COLUMNS), *rows])
    return text.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=Path, metavar="DIR")
    options = parser.parse_args()
    try:
        with tempfile.TemporaryDirectory() as scratch:
            cases = cases_in(options.cases) if options.cases else cases_of_the_tests(Path(scratch))
            rows, wrong = count((case.name, judge(case)) for case in cases)
    except SubmissionError as error:
        sys.exit(str(error))
    if options.cases is None:
        OUTPUT.write_text(as_csv(rows), "utf-8")
    print(as_csv(rows), *wrong, sep="\n")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
