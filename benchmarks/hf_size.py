"""Processor time, memory and file sizes for a Hugging Face model of real size:
`python -m benchmarks.hf_size FOLDER TEXT`.

Every step is a process of its own. With --against, another checkout runs each step right after this
one, on its own files, so that both meet the same load.
"""

from __future__ import annotations

import argparse
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

from benchmarks.pack_speed import Run, run

HERE = Path(__file__).parent.parent
GOALS = {
    "calibrate": "170 s, 3 GB, 700 MB",
    "plan with curvature": "300 s",
    "pack": "60 s",
    "measure without data": "150 s",
}


def steps(folder: str, text: str, tokens: str, cap: str) -> Iterator[tuple[str, str, list[str]]]:
    """(step, the file it writes, arguments of packer), with paths relative to a checkout's own."""
    curved = ["--curvature", "curvature.safetensors"]
    sample = ["--data", text, "--tokens", tokens, "--window", "512"]
    yield "calibrate", "curvature.safetensors", ["calibrate", folder, *sample]
    yield "plan with curvature", "plan.json", ["plan", folder, "--cap", cap, *curved]
    yield "pack", "model.pack", ["pack", folder, "--plan", "plan.json", *curved]
    yield "measure without data", "candidates.json", ["measure", folder, "--no-calibration"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", help="config.json, safetensors and tokenizer.json")
    parser.add_argument("text", help="plain text to calibrate on")
    parser.add_argument("--tokens", default="16384")
    parser.add_argument("--cap", default="50MB")
    parser.add_argument("--against", type=Path, metavar="PATH", help="another checkout")
    options = parser.parse_args()
    checkouts = [HERE, *([options.against.resolve()] if options.against else [])]
    folder, text = (str(Path(path).resolve()) for path in (options.folder, options.text))
    print(
        f"{'step':22}{'checkout':24}{'cpu s':>8}{'peak MB':>9}{'file bytes':>15}  goal", flush=True
    )
    with tempfile.TemporaryDirectory() as at:
        for name, output, arguments in steps(folder, text, options.tokens, options.cap):
            for number, checkout in enumerate(checkouts):
                own = Path(at) / str(number)
                own.mkdir(exist_ok=True)
                command = ["packer", *arguments, "-o", output]
                show(run(name, own / output, *command, checkout=checkout), checkout)
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}")


def show(done: Run, checkout: Path) -> None:
    print(
        f"{done.name:22}{checkout.name:24}{done.cpu_seconds:8.0f}{done.peak_bytes / 1e6:9.0f}"
        f"{done.output_bytes:15,}  {GOALS[done.name]}",
        flush=True,
    )


if __name__ == "__main__":
    main()
