"""Tokens per second of scoring, against the straightforward loop over one window at a time.

    python -m benchmarks.eval_speed [--config CONFIG --checkpoint WEIGHTS] [--threads 2]

Both score the same targets of the same model and must agree on the nats. They take turns, so that
other work on the machine slows both, and the best of several turns counts.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from packer.eval.batches import Setting
from packer.eval.score import nats_per_token
from packer.train.config import config_from, read_config
from packer.train.model import GPT
from packer.train.presets import PRESETS

CONFIG = PRESETS["small-6l"].model  # what a laptop evaluates in a minute
CASES = ((256, 64, 32), (256, 256, 32), (1024, 64, 10), (1024, 1024, 8))  # window, stride, windows


def straightforward(model: GPT, tokens: np.ndarray, window: int, stride: int) -> np.ndarray:
    """Every window by itself, logits for all of it, losses of its last `stride` positions."""
    nats = []
    with torch.inference_mode():
        for start in range(0, len(tokens) - window, stride):
            piece = torch.from_numpy(tokens[start : start + window + 1])
            logits = model(piece[None, :-1])
            losses = F.cross_entropy(logits[0].float(), piece[1:], reduction="none")
            nats.append((losses if start == 0 else losses[-stride:]).numpy())
    return np.concatenate(nats)


def best_seconds(runs: list[Callable[[], object]], turns: int) -> list[float]:
    """The shortest time of each, after one turn to warm up."""
    times: list[list[float]] = [[] for _ in runs]
    for _ in range(turns + 1):
        for run, seconds in zip(runs, times, strict=True):
            started = time.perf_counter()
            run()
            seconds.append(time.perf_counter() - started)
    return [min(seconds[1:]) for seconds in times]


def model_from(arguments: argparse.Namespace) -> GPT:
    torch.manual_seed(0)
    config = config_from(read_config(arguments.config)) if arguments.config else CONFIG
    model = GPT(config).eval()
    if arguments.checkpoint:
        model.load_state_dict(torch.load(arguments.checkpoint, weights_only=True))
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--config", help="configuration of the model (JSON or TOML)")
    parser.add_argument("--checkpoint", help="its state dict; random weights without")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--turns", type=int, default=5)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    model = model_from(arguments)
    generator = np.random.default_rng(0)
    print(f"{'window':>7} {'stride':>7} {'one at a time':>14} {'packer.eval':>12} {'faster':>7}")
    for window, stride, windows in CASES:
        targets = window + (windows - 1) * stride
        tokens = generator.integers(0, model.config.vocab_size, targets + 1)
        setting = Setting(window, stride)
        plain = straightforward(model, tokens, window, stride)
        np.testing.assert_allclose(nats_per_token(model, tokens, setting), plain, atol=1e-3)
        loop, ours = best_seconds(
            [
                lambda t=tokens, w=window, s=stride: straightforward(model, t, w, s),
                lambda t=tokens, s=setting: nats_per_token(model, t, s),
            ],
            arguments.turns,
        )
        rates = f"{targets / loop:14,.0f} {targets / ours:12,.0f}"
        print(f"{window:7} {stride:7} {rates} {loop / ours:6.2f}x", flush=True)


if __name__ == "__main__":
    main()
