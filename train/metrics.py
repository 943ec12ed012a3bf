"""metrics.jsonl: one line of numbers a logged step, appended as training goes on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from packer.files import write_bytes


class MetricsLog:
    """The lines of a run so far, and the file that grows with them."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: list[dict[str, Any]] = []

    def begin(self, step: int) -> None:
        """Start an empty file, or keep what a resumed run had logged up to `step`.

        A run that was killed may have logged steps that are now done again, or half a line.
        Raises OutputError: the file cannot be written.
        """
        kept = [line for line in read_metrics(self.path) if line["step"] <= step] if step else []
        write_bytes(self.path, "".join(_spell(line) for line in kept).encode())
        self.lines = kept

    def add(self, line: Mapping[str, Any]) -> None:
        """Raises OSError: the disk is full or the file cannot be written."""
        self.lines.append(dict(line))
        with self.path.open("a", encoding="utf-8") as file:
            file.write(_spell(line))


def _spell(line: Mapping[str, Any]) -> str:
    return json.dumps(line) + "\n"


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a metrics file; nothing where there is no file."""
    if not path.is_file():
        return []
    lines = []
    for text in path.read_text("utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            continue
        if isinstance(line, dict) and isinstance(line.get("step"), int):
            lines.append(line)
    return lines
