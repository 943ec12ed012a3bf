"""What the contest presets hold, beside the lines they come from: rewrites docs/presets.md.

`python -m benchmarks.parity` after a change of a preset or of benchmarks/parity.csv, whose rows are
(preset, setting, value as JSON, the line of the pull request that sets it).
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

from packer.train.presets import PRESETS
from packer.train.run_config import run_settings

ROWS = Path(__file__).with_name("parity.csv")
OUTPUT = Path(__file__).parents[1] / "docs" / "presets.md"
SCRIPTS = {
    "11l-backout-int6": "#339, `2026-03-21_11L_Backout_Int6_SWA/train_gpt.py` and the run command",
    "11l-xsa4-ema-int5mlp": "#372, its `train_gpt.py`",
    "11l-vrl-leaky-gptq": "#569, its `train_gpt.py` as later scripts carry it on (“v42”)",
}
INTRODUCTION = """\
# Presets of the contest's systems

Every value that a preset shares with the script of its pull request (openai/parameter-golf), and
the line of the script that sets it. Where a script and its thread differ, the script's value is
taken. `python -m benchmarks.parity` writes this page from the presets and `benchmarks/parity.csv`,
and a test compares all three.

What the presets leave as the scripts do not have it:

- Scales have no floor. The scripts clamp them at 1/31 (1/127 for int8), which gives most rows of a
  decayed matrix one step.
- All three averages are packed and scored; #569 collects SWA and exports EMA.
- Decay comes before the update of Muon; #372 multiplies after it.
- Embeddings and their optimizer states are float32; the scripts keep them in bfloat16.
- #569 calibrates after its 600 seconds; here calibration is inside, within `calibration_reserve`.
- `memory_tokens` (#352) come before the window in training too, where the script overwrites its
  first positions.
"""


def read_rows() -> list[dict[str, str]]:
    with ROWS.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def value_of(preset: str, setting: str) -> Any:
    """The preset's value: `section.key`, or `section.key entry` of a map."""
    path, _, entry = setting.partition(" ")
    section, _, key = path.partition(".")
    value = run_settings(PRESETS[preset])[section][key]
    return value[entry] if entry else value


def page() -> str:
    """The whole of docs/presets.md."""
    parts, rows = [INTRODUCTION], read_rows()
    for preset, script in SCRIPTS.items():
        lines = [f"\n## `{preset}`\n\n{script}\n\n| setting | value | line |\n|---|---|---|\n"]
        for row in rows:
            if row["preset"] == preset:
                value = json.dumps(value_of(preset, row["setting"]))
                line = row["line"].replace("|", "\\|")
                lines.append(f"| `{row['setting']}` | `{value}` | `{line}` |\n")
        parts += lines
    return "".join(parts)


def main() -> None:
    OUTPUT.write_text(page(), "utf-8")
    print(f"{OUTPUT}: {len(read_rows())} values")


if __name__ == "__main__":
    main()
