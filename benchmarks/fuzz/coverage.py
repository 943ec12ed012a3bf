"""Mutants guided by coverage: `python -m benchmarks.fuzz.coverage READER --runs 100000`.

Needs atheris (`pip install '.[fuzz]'`). Parsers written in Python are instrumented; what reaches
new code is mutated further, by the same structure-aware damage as `python -m benchmarks.fuzz`. It
stops at the first crash, and leaves the file that led to it beside. A corpus folder given with
--corpus is read and extended, so that the next run goes on from there.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import sys
import tempfile
from pathlib import Path
from random import Random

INSTRUMENTED = (
    *(
        "packer.artifact.decoder",
        "packer.artifact.stream_decoder",
        "packer.artifact.step_decoder",
        "packer.files",
    ),
    *(
        "packer.planning.plan",
        "packer.planning.candidates",
        "packer.checkpoint.checkpoint",
        "packer.checkpoint.file_kinds",
    ),
    *("packer.checkpoint.state_dict", "packer.foreign", "packer.submission", "packer.curvature"),
    *("packer.eval.shards", "packer.eval.token_bytes", "packer.train.config"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("reader")
    parser.add_argument("--runs", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--corpus", type=Path)
    options = parser.parse_args()
    try:
        import atheris
    except ImportError:
        raise SystemExit("coverage-guided runs need atheris: pip install '.[fuzz]'") from None
    with atheris.instrument_imports(include=list(INSTRUMENTED)):
        readers = importlib.import_module("benchmarks.fuzz.readers")
    reader = readers.READERS[options.reader]
    originals = dict(reader.originals())
    corpus = options.corpus or Path(tempfile.mkdtemp())
    corpus.mkdir(exist_ok=True)
    for name, data in originals.items():
        (corpus / name.replace("/", "_")).write_bytes(data)
    largest = 4 * max(map(len, originals.values()))

    def read(data: bytes) -> None:
        refused = contextlib.suppress(*readers.REFUSALS)
        with tempfile.TemporaryDirectory() as folder, refused:
            reader.read(data, Path(folder))

    def mutate(data: bytes, max_size: int, seed: int) -> bytes:
        rng = Random(seed)
        name = rng.choice(sorted(originals))
        try:
            mutant, _ = reader.mutate(rng, name, data)
        except Exception:  # it is no longer of a kind whose structure is known
            mutant, _ = reader.mutate(rng, name, originals[name])
        return mutant[:max_size]

    limits = [f"-runs={options.runs}", f"-seed={options.seed}", f"-max_len={largest}"]
    guards = ["-timeout=60", "-rss_limit_mb=4096", str(corpus)]
    atheris.Setup([sys.argv[0], *limits, *guards], read, custom_mutator=mutate)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
