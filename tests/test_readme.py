"""The README's two commands are those that work: the second is what continuous integration runs."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from packer.cli import main

ROOT = Path(__file__).resolve().parents[1]
SECTION = "## Install and run"
PAGES = ("docs/journeys.md", "docs/training.md")
SETUP = ("set -eu", 'cd "$(dirname "$0")/.."')


def blocks(readme: str) -> list[list[str]]:
    """The lines of each fenced sh block in the section, without empty ones and comments."""
    assert readme.count(f"\n{SECTION}\n") == 1, f"the README has one section {SECTION!r}"
    section = readme.partition(f"\n{SECTION}\n")[2]
    section = re.split(r"^## ", section, maxsplit=1, flags=re.MULTILINE)[0]
    fenced = re.findall(r"^```(\w*)\n(.*?)^```$", section, flags=re.MULTILINE | re.DOTALL)
    assert all(language == "sh" for language, _ in fenced)
    return [commands(text) for _, text in fenced]


def commands(text: str) -> list[str]:
    """Commands of a shell script, one a line; lines that a backslash continues are joined."""
    lines = [line.strip() for line in text.replace("\\\n", " ").splitlines()]
    return [" ".join(line.split()) for line in lines if line and not line.startswith("#")]


def test_blocks_are_found_in_any_readme() -> None:
    text = (
        "# T\n\n## Install and run\nOne:\n```sh\n# why\na \\\n  b\n```\nTwo:\n```sh\nc\n\nd\n```\n"
    )
    assert blocks(text + "\n## More\n```sh\nno\n```\n") == [["a b"], ["c", "d"]]


def test_the_readme_has_two_commands() -> None:
    job, tests = blocks((ROOT / "README.md").read_text("utf-8"))
    assert job and tests
    assert any(" install " in line for line in job)
    assert _packer_calls(job[-1]) == [["demo"]], "the first command ends in the demonstration"
    assert any(" install " in line for line in tests)
    assert any("pytest" in line for line in tests)


def test_the_readme_shows_what_the_demonstration_prints() -> None:
    """Its five lines, in their order and to the byte: the sums of the account are right."""
    text = (ROOT / "README.md").read_text("utf-8")
    (shown,) = re.findall(r"^It ends with\n\n((?:    .*\n)+)\n", text, flags=re.MULTILINE)
    lines = [line.removeprefix("    ") for line in shown.splitlines()]
    starts = [line.partition(":")[0] for line in lines]
    assert starts == ["text", "trained", "packed", "through the file", "next, your own checkpoint"]
    numbers = re.findall(r"[0-9][0-9,]*", lines[2].partition(": code ")[2])
    code, header, side, payload, total, cap, left = (int(n.replace(",", "")) for n in numbers)
    assert code + header + side + payload == total
    assert cap - total == left >= 0


def test_continuous_integration_runs_the_second() -> None:
    script = ROOT / ".ci" / "run"
    assert script.stat().st_mode & 0o111, ".ci/run can be executed"
    shebang, _, rest = script.read_text("utf-8").partition("\n")
    assert shebang.startswith("#!")
    found = [line for line in commands(rest) if line not in SETUP]
    _, tests = blocks((ROOT / "README.md").read_text("utf-8"))
    assert found == tests


@pytest.mark.parametrize("page", ["README.md", *PAGES])
def test_every_command_shown_exists_with_its_options(page: str) -> None:
    """On whole pages, so that none is shown that a new version renamed."""
    text = (ROOT / page).read_text("utf-8")
    fenced = re.findall(r"^```sh\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    shown = 0
    for line in (line for block in fenced for line in commands(block)):
        for words in _packer_calls(line):
            command = main.commands[words[0]]
            known = {option for parameter in command.params for option in parameter.opts}
            used = {word.partition("=")[0] for word in words[1:] if word.startswith("-")}
            assert used <= known, f"{words[0]} has no {used - known}"
            shown += 1
    assert shown > 0


def test_every_link_of_the_pages_leads_somewhere() -> None:
    """To a file of this checkout, from wherever the page stands."""
    found = 0
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for target in re.findall(r"\]\(([^)#\s]+)\)", page.read_text("utf-8")):
            assert "://" in target or (page.parent / target).is_file(), f"{page.name}: {target}"
            found += 1
    assert found > 3


def _packer_calls(line: str) -> list[list[str]]:
    """The arguments of every call of packer in a line of shell."""
    words = shlex.split(line, comments=True)
    calls: list[list[str]] = []
    inside = False
    for before, word in zip(["&&", *words], words, strict=False):
        if word in ("&&", "||", "|", ";", ">", ">>"):
            inside = False
        elif Path(word).name == "packer" and before in ("&&", "||", "|", ";", "-m"):
            calls.append([])
            inside = True
        elif inside:
            calls[-1].append(word)
    return calls


def test_calls_are_found_in_a_line_of_shell() -> None:
    line = "pip install packer && .venv/bin/packer plan m.pt --cap 1 > x; python -m packer report x"
    assert _packer_calls(line.replace(";", " ;")) == [
        ["plan", "m.pt", "--cap", "1"],
        ["report", "x"],
    ]
