"""Mutants through every reader: `python -m benchmarks.fuzz --artifacts 100000`.

Each mutant is drawn from a seed and read in a process with limits of time and memory. It must be
refused in one readable line, or give what the original gave; where nothing in a file says that it
is damaged (a plan with another number, an artifact with a new checksum) it may give something
else that holds every promise. Exit code 1 when one does not. `--keep DIR` writes such mutants.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

from benchmarks.fuzz.readers import READERS
from benchmarks.fuzz.trial import Outcome, counted, hunt, mutant_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reader", action="append", choices=list(READERS), help="default: all")
    parser.add_argument("--artifacts", type=int, default=2_000, help="mutants of artifacts")
    parser.add_argument("--mutants", type=int, default=500, help="mutants for any other reader")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--jobs", type=int, default=2)
    parser.add_argument("--keep", type=Path, help="a folder for mutants that fail")
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    totals: dict[str, dict[str, int]] = {}
    failures: list[Outcome] = []
    for name in options.reader or READERS:
        count = options.artifacts if name == "artifact" else options.mutants
        began = time.monotonic()
        trials = list(hunt(name, count, options.seed, options.jobs))
        totals[name] = counted(trials)
        failed = sorted((one for one in trials if one.failed), key=lambda one: one.index)
        failures += failed
        if not options.json:
            _say(name, totals[name], time.monotonic() - began, failed)
        if options.keep is not None:
            _keep(options.keep, failed, options.seed)
    if options.json:
        print(json.dumps({"totals": totals, "failures": [vars(one) for one in failures]}))
    sys.exit(1 if failures else 0)


def _say(name: str, totals: dict[str, int], seconds: float, failed: list[Outcome]) -> None:
    kinds = ", ".join(f"{totals[kind]:,} {kind}" for kind in sorted(totals))
    print(f"{name}: {sum(totals.values()):,} mutants in {seconds:.0f} s: {kinds}", flush=True)
    for one in failed[:20]:
        print(f"  {one.index} {one.kind}: {one.detail}")


def _keep(folder: Path, failed: list[Outcome], seed: int) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for one in failed:
        reader = READERS[one.reader]
        _, mutant, _ = mutant_of(reader, dict(reader.originals()), seed, one.index)
        (folder / f"{one.reader}-{seed}-{one.index}.{one.kind}").write_bytes(mutant)


if __name__ == "__main__":
    main()
