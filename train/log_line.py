"""The lines of a training log that packer.submission.own_log reads again."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from packer.submission.contest import EVAL_SECONDS

if TYPE_CHECKING:
    from packer.train.finish import Finished
    from packer.train.ledger import Ledger
    from packer.train.settings import TrainConfig


def start_line(parameters: int, seed: int, tokens: int) -> str:
    """What is trained, on how much."""
    return f"{parameters:,} parameters, seed {seed}, {tokens:,} training tokens"


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


def evaluation_line(config: TrainConfig, seconds: float, tokens: int) -> str:
    """How long the scores after training will take, when one takes `seconds` for `tokens`."""
    averages = 1 + bool(config.averaging.ema_decay) + bool(config.averaging.swa_every)
    times = 2 if config.pack.cap else 1
    total = averages * times * seconds
    words = (
        f"validation after training: {tokens:,} tokens for {averages} weights"
        f"{', as trained and packed' if times == 2 else ''}, about {total:,.0f} s"
    )
    if total <= EVAL_SECONDS:
        return words
    fits = int(tokens * EVAL_SECONDS / total)
    return f"{words}; run.final_eval_tokens = {fits:,} would take {EVAL_SECONDS:g} s"


def seconds_line(ledger: Ledger) -> str:
    """Where the seconds went, part by part."""
    return "seconds: " + ", ".join(f"{row.part} {row.seconds:.1f}" for row in ledger.rows())


def best_line(best: Finished) -> str:
    """The best average, with its bytes and its score through the file where there is one."""
    words = f"best: {best.name}, {best.artifact or best.checkpoint}"
    account, score = best.account, best.after
    if account is None or score is None:
        return words
    return (
        f"{words}, {account.artifact_bytes:,} bytes + code {account.code_bytes:,} = "
        f"{account.total_bytes:,}, {score.bits_per_byte:.8f} bits per byte, "
        f"{score.nats / score.tokens:.8f} nats a token through the file"
    )
