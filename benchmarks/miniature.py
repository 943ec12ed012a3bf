"""The contest in miniature: bits per byte under a cap, after equal training time.

    python -m benchmarks.miniature --corpus FOLDER --held-out TEXT --work FOLDER
        [--tokenizer MODEL] [--config CONFIG] [--set KEY=VALUE]... [--seconds 600]
        [--cap 400000]... [--seed 1]... [--threads 1] [--score-tokens 0]
    python -m benchmarks.miniature --plot docs/miniature.png

Training time is counted in steps, fixed beforehand from processor seconds of a few of them, less
what calibration takes; a busy machine changes nothing. Every entry is trained at the size that
suits it best under the cap: losses are predicted from one ladder of short runs at four sizes, each
for a quarter and an eighth of the time, and what rounding costs from one file of each recipe.
Training does not depend on the recipe, so entries of one size share the trained weights. The
average of the weights is chosen on the ends of the training texts, the same for all. Rows are
appended to --csv as they come, one that is there is not measured again, and a run that was killed
goes on from the work folder.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from packer.train.contenders import OURS, Ready, calibrated, decoded, packed_under, score_of
from packer.train.ladder import at_size, best_average, steps_in, trained
from packer.train.run_config import read_run
from packer.train.size_search import CHOOSING_TOKENS, SizeSearch, search_sizes, searchable
from packer.train.training_data import open_training_data

from benchmarks.miniature_rows import Row, add, read, table
from benchmarks.miniature_texts import Texts, prepared
from packer.errors import PackerError
from packer.packing.comparison import Refused
from packer.packing.leader_file import with_coder_here
from packer.planning.recipes import find_recipe
from packer.size.best import Proposal, Shape, cost_of_cap, proposals

CSV = Path("benchmarks/miniature.csv")
LEADER = "leader-lqer"
ENTRIES = (
    "baseline-int8-zlib",
    "sdclip-gptq-brotli",
    "leader-lqer-lrzip",
    "ours",
    "ours-trellis",
)
CAPS = (400_000, 800_000, 1_600_000)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--corpus", type=Path)
    parser.add_argument("--held-out", type=Path)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--tokenizer")
    parser.add_argument("--config", default="demo")
    parser.add_argument("--set", action="append", default=[], dest="changes")
    parser.add_argument("--seconds", type=float, default=600.0)
    parser.add_argument("--cap", type=int, action="append")
    parser.add_argument("--seed", type=int, action="append")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--score-tokens", type=int, default=0)
    parser.add_argument("--csv", type=Path, default=CSV)
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    if arguments.corpus:
        if not (arguments.held_out and arguments.work):
            parser.error("--corpus needs --held-out TEXT and --work FOLDER")
        try:
            hold(arguments)
        except PackerError as error:
            raise SystemExit(str(error)) from None
    rows = read(arguments.csv)
    print("\n".join(table(rows, LEADER)))
    if arguments.plot:
        from benchmarks.miniature_plot import draw

        draw(arguments.plot, rows)


def hold(arguments: argparse.Namespace) -> None:
    """Every row that is missing. Raises PackerError: the texts, the cap or the time do not do."""
    torch.set_num_threads(arguments.threads)
    texts = prepared(arguments.corpus, arguments.held_out, arguments.tokenizer, arguments.work)
    contest = Contest.opened(arguments, texts)
    for seed in arguments.seed or [1, 2, 3]:
        contest.run(seed)


def name_here(entry: str) -> str:
    """Without lrzip, the leader's recipe is under brotli, and called so."""
    return entry if entry in OURS else with_coder_here(find_recipe(entry)).name


@dataclass(frozen=True, eq=False)
class Contest:
    """What is the same for all seeds. sizes: (cap, entry) -> what is trained for it."""

    arguments: argparse.Namespace
    texts: Texts
    search: SizeSearch
    sizes: Mapping[tuple[int, str], Proposal]

    @staticmethod
    def opened(arguments: argparse.Namespace, texts: Texts) -> Contest:
        config = searchable(read_run(arguments.config, arguments.changes), texts.folder)
        folder = arguments.work / f"ladder-{arguments.seconds:g}"
        data = open_training_data(config)
        search = search_sizes(config, data, folder, arguments.seconds, print)
        print(search.fit.law, flush=True)
        seconds = search.training_seconds(arguments.seconds)
        sizes = {}
        for entry in ENTRIES:
            known = search.shapes, search.fit, search.speed, seconds, search.storage(entry)
            free = proposals(*known)[0]
            for cap in arguments.cap or CAPS:
                best = sizes[cap, entry] = proposals(*known, cap)[0]
                print(f"{cap:,} {entry}: {best}, the cap costs {cost_of_cap(best, free):.4f}")
        return Contest(arguments, texts, search, sizes)

    def run(self, seed: int) -> None:
        """Every entry and cap that has no row yet, those of one size together."""
        done = {row.key for row in read(self.arguments.csv)}
        left = {
            key: proposal
            for key, proposal in self.sizes.items()
            if (self.arguments.seconds, key[0], name_here(key[1]), seed) not in done
        }
        for shape in dict.fromkeys(proposal.shape for proposal in left.values()):
            ready, loss = self._trained(shape, seed)
            for (cap, entry), proposal in left.items():
                if proposal.shape == shape:
                    self._add(cap, entry, seed, proposal, ready, loss)

    def _trained(self, shape: Shape, seed: int) -> tuple[Ready, float]:
        """The weights, and their bits per byte on the tails."""
        arguments, search = self.arguments, self.search
        seconds = search.training_seconds(arguments.seconds)
        steps = steps_in(search.config, shape, search.speed, seconds)
        config = at_size(search.config, shape, steps)
        config = replace(config, run=replace(config.run, seed=seed))
        name = f"{shape.layers}x{shape.width}-{steps}-{seed}"
        trainer = trained(config, search.data, arguments.work / "runs" / name, print)
        weights, _ = best_average(trainer, search.data, CHOOSING_TOKENS)
        loss = score_of(weights, config, self.texts.tails, arguments.score_tokens)
        return calibrated(weights, config, search.data), loss

    def _add(
        self, cap: int, entry: str, seed: int, proposal: Proposal, ready: Ready, loss: float
    ) -> None:
        packed = packed_under(ready, entry, cap)
        if isinstance(packed, Refused):
            print(packed.reason)
            return
        weights = decoded(packed)
        scores = [
            score_of(weights, ready.config, text, self.arguments.score_tokens)
            for text in (self.texts.held_out, self.texts.tails)
        ]
        shape = proposal.shape
        row = Row(
            self.arguments.seconds,
            cap,
            name_here(entry),
            seed,
            shape.layers,
            shape.width,
            shape.weights,
            ready.config.schedule.iterations * ready.config.batch.tokens,
            packed.total_bytes,
            proposal.bits_per_byte,
            loss,
            *scores,
        )
        add(self.arguments.csv, row)
        print(row, flush=True)


if __name__ == "__main__":
    main()
