"""`python -m benchmarks.verdicts` on a folder of cases; its own table is held by test_check."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
COMMAND = [sys.executable, "-m", "benchmarks.verdicts"]


def test_wrong_verdicts_on_a_folder_of_cases_are_counted_and_named(tmp_path: Path) -> None:
    for name, total in (("over", 16_000_001), ("under", 15_000_000), ("also_over", 17_000_000)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "README.md").write_text("1.2 bpb")
        (tmp_path / name / "train_gpt.py").write_text("x = 1\n")
        claims = json.dumps({"val_bpb": 1.2, "bytes_total": total})
        (tmp_path / name / "submission.json").write_text(claims)
    table = tmp_path / "expected.toml"
    table.write_text('[over]\ncap = "fail"\n[under]\ncap = "fail"\n[also_over]\njson = "pass"\n')
    command = [*COMMAND, "--cases", str(tmp_path)]
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 1 and "cap,0,0,0,1,1,1,0" in ended.stdout.splitlines()
    assert "json,1,0,0,0,0,0,0" in ended.stdout.splitlines()
    assert "under: missed_fail of cap:" in ended.stdout
    assert "also_over: false_fail of cap: " in ended.stdout
    table.write_text('[over]\ncap = "red"\n')
    ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert ended.returncode == 1 and "expected.toml" in ended.stderr and "red" in ended.stderr
    assert "Traceback" not in ended.stderr
