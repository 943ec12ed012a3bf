"""The tab key: what is offered, and the scripts of three shells, run by those that are here."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.shell_completion import BashComplete

from packer.cli import main

SHELLS = ("bash", "zsh", "fish")
CASES = (("packer re", "report"), ("packer report --ht", "--html"), ("packer pack mod", "model.pt"))
# The shell's own functions say what they are given, as no test has a keyboard.
TOLD_BY_BASH = """
eval "$(_PACKER_COMPLETE=bash_source packer)"
compopt() { :; }
for line in {lines}; do
    COMPREPLY=(); COMP_WORDS=($line); COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
    _packer_completion packer "${COMP_WORDS[-1]}"
    [ ${#COMPREPLY[@]} -gt 0 ] && echo "${COMPREPLY[@]}" || compgen -f -- "${COMP_WORDS[-1]}"
done
"""
TOLD_BY_ZSH = """
compdef() { }
compadd() { print -r -- ${(P)argv[-1]} }
_describe() { print -r -- ${${(P)3}%%:*} }
_path_files() { print -r -- $words[-1]*(N) }
eval "$(_PACKER_COMPLETE=zsh_source packer)"
for line in {lines}; do
    words=(${=line}); CURRENT=$#words
    _packer_completion
done
"""
TOLD_BY_FISH = """
_PACKER_COMPLETE=fish_source packer | source
for line in {lines}
    complete -C $line | string split -f 1 \\t
end
"""
TOLD = {"bash": TOLD_BY_BASH, "zsh": TOLD_BY_ZSH, "fish": TOLD_BY_FISH}


def test_commands_and_options_are_offered() -> None:
    shell = BashComplete(main, {}, "packer", "_PACKER_COMPLETE")

    def offered(words: list[str], begun: str) -> list[str]:
        return [one.value for one in shell.get_completions(words, begun)]

    assert offered([], "re") == ["report"]
    assert offered(["report"], "--ht") == ["--html"]
    assert [one.type for one in shell.get_completions(["pack"], "mod")] == ["file"]


@pytest.mark.parametrize("shell", SHELLS)
def test_every_shell_is_answered(shell: str) -> None:
    """The variables that its script sets, whether it is installed or not."""
    at = "re" if shell == "fish" else "1"
    asked = {"_PACKER_COMPLETE": f"{shell}_complete"}
    asked |= {"COMP_WORDS": "packer re", "COMP_CWORD": at}
    program = "from packer.cli import main; main(prog_name='packer')"
    words = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, **asked},
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert words.replace("\t", "\n").replace(",", "\n").splitlines()[:2] == [
        "plain",
        "report",
    ]


@pytest.mark.parametrize("shell", SHELLS)
def test_the_shell_itself_completes(shell: str, tmp_path: Path) -> None:
    program = shutil.which(shell)
    if program is None:
        pytest.skip(f"there is no {shell} here")
    (tmp_path / "packer").write_text(
        f"#!{sys.executable}\nfrom packer.cli import main\nmain(prog_name='packer')\n"
    )
    (tmp_path / "packer").chmod(0o755)
    (tmp_path / "model.pt").touch()
    quoted = " ".join(f"'{line}'" for line, _ in CASES)
    ended = subprocess.run(
        [program, "-c", TOLD[shell].replace("{lines}", quoted)],
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert ended.stdout.split() == [answer for _, answer in CASES], ended.stderr
