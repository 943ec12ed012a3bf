"""One line of a training log: step, loss, speed and what is left."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def log_line(line: Mapping[str, Any], steps_left: float, tokens_per_step: int) -> str:
    """The words for a line of metrics.jsonl; numbers that it lacks are left out."""
    step, seconds = line["step"], max(line["seconds"], 1e-9)
    left = steps_left * seconds / max(step, 1)
    parts = [f"step {step:,}/{round(step + steps_left):,}"]
    for key, words in (
        ("loss", "loss {:.4f}"),
        ("bits_per_byte", "valid {:.4f} bpb"),
        ("lr_scale", "lr {:.2f}"),
        ("qat_strength", "qat {:.2f}"),
    ):
        if key in line:
            parts.append(words.format(line[key]))
    if "size_bytes" in line:
        parts.append(f"size ≈ {line['size_bytes'] / 1e6:.2f} MB")
    speed = step * tokens_per_step / seconds
    parts.append(f"{speed:,.0f} tokens/s, {left // 60:.0f}:{left % 60:02.0f} left")
    return "  ".join(parts)
