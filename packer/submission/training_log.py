"""Parses the sizes, scores, times and seeds of a training log.

Sources dumped into a log are skipped (packer.submission.log_lines); still every pattern matches at
the start of a line and requires digits. The last of several equal lines counts: pruning prints a
total after every attempt. Names of metrics and labels of sizes are those printed by the script
(packer.submission.log_sizes). The companion trainer has lines of its own
(packer.submission.own_log).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from packer.submission.log_lines import bounded_lines, runs_in
from packer.submission.log_sizes import NUMBER, integer, parse_sizes
from packer.submission.log_times import DURATION, STEP, parse_times, seconds
from packer.submission.named_sizes import NamedSize
from packer.submission.own_log import SCORE_NAME, parse_own

SCORE = re.compile(
    r"(?P<name>[A-Za-z][\w\-+.()/\[\]: ]{0,60}?)[: ]+"
    r"val_loss[:=]\s*(?P<nats>\d+\.\d+),?\s+val_bpb[:=]\s*(?P<bpb>\d+\.\d+)(?P<rest>.*)"
)
STEP_SCORE = re.compile(r"val_loss[:=]\s*(?P<nats>\d+\.\d+),?\s+val_bpb[:=]\s*(?P<bpb>\d+\.\d+)")
EVAL_TIME = re.compile(rf"(?:eval_time|elapsed|time)[:=]\s*{DURATION}")
FALLBACK = re.compile(
    r"(?:zstandard|zstd|brotli)\b.{0,40}(?:not (?:installed|available|found)|missing|unavailable)|"
    r"fall(?:ing|s)? ?back to zlib",
    re.IGNORECASE,
)

SINGLE = {
    "seed": re.compile(rf"(?<!\w)seed[:=]\s*{NUMBER}"),
    "parameters": re.compile(rf"model[_ ]params[:=]\s*{NUMBER}"),
    "val_tokens": re.compile(rf"(?:val_loader:.*\btokens|val_tokens)[:=]\s*{NUMBER}"),
    "train_shards": re.compile(rf"(?:train_loader:.*)?train_shards[:=]\s*{NUMBER}"),
    "vocab_size": re.compile(rf"vocab_size[:=]\s*{NUMBER}"),
    "num_layers": re.compile(rf"num_layers[:=]\s*{NUMBER}"),
    "world_size": re.compile(
        rf"(?:.*\b)?(?:world_size|num_gpus|n_gpus|gpus|nproc_per_node)[:=]\s*{NUMBER}",
        re.IGNORECASE,
    ),
    "model_dim": re.compile(rf"model_dim[:=]\s*{NUMBER}"),
}
# A line of nvidia-smi, or a script's own line on its device.
GPU = re.compile(
    r"(?:\|\s+\d+\s+|.*\b(?:gpu|device)(?:_name| name| \d)?\s*[:=]\s*)"
    r"((?:nvidia |amd |apple |tesla )[\w -]{2,40}?)(?:\s{2,}|\s*$|[,;(|])",
    re.IGNORECASE,
)
TOKENIZER = re.compile(r"fineweb_(\d+)_bpe|fineweb10B_sp(\d+)")
SEED_IN_NAME = re.compile(r"(?:seed|s)[_\-]?(\d{1,6})(?=\D|$)", re.IGNORECASE)
BEFORE_QUANTIZATION = re.compile(r"diagnostic (?!quantized)|pre-?quant|post_ema|post-ema", re.I)


@dataclass(frozen=True)
class LoggedScore:
    """One evaluation. quantized: after the artifact was written; nats per token, bits per byte.

    digits: decimals of the printed bits per byte.
    """

    name: str
    nats: float
    bpb: float
    digits: int
    quantized: bool
    seconds: float | None


@dataclass(frozen=True)
class TrainingLog:
    """The facts of one log; None or empty if it does not have them.

    seed: as logged, or else as in the file name; named_seed: as in the file name.
    models, totals: bytes by label, the last of each; without the label "" (unlabelled).
    checkpoint_bytes: of the floating-point checkpoint. code_bytes: as counted in the totals.
    raw_code_bytes: uncompressed, if the log counts compressed code.
    mib: a printed size that counts MiB as MB. rounded: the size in MB or the like, where no line
    has it in bytes.
    train_seconds: of the training loop; calibration_seconds: of calibration after it, None if
    mentioned without a time; calibration_line: the first line about it after the loop's last step;
    calibration_data: the first such line that names data; own_text: on self-generated or random
    text.
    eval_seconds: of the whole evaluation, if the log has the sum. world_size: number of GPUs; gpu:
    their name.
    """

    name: str
    seed: int | None = None
    named_seed: int | None = None
    models: tuple[tuple[str, int], ...] = ()
    totals: tuple[tuple[str, int], ...] = ()
    checkpoint_bytes: int | None = None
    code_bytes: int | None = None
    raw_code_bytes: int | None = None
    scores: tuple[LoggedScore, ...] = ()
    step: int | None = None
    steps: int | None = None
    train_seconds: float | None = None
    calibrated: bool = False
    calibration_seconds: float | None = None
    calibration_line: str | None = None
    calibration_data: str | None = None
    own_text: bool = False
    eval_seconds: float | None = None
    parameters: int | None = None
    val_tokens: int | None = None
    train_shards: int | None = None
    vocab_size: int | None = None
    num_layers: int | None = None
    model_dim: int | None = None
    case_operators: bool = False
    fallback: str | None = None
    mib: str | None = None
    rounded: NamedSize | None = None
    world_size: int | None = None
    gpu: str | None = None

    @property
    def total_bytes(self) -> int | None:
        """The total of the submission; `_pick` chooses its label."""
        return _pick(self.totals)

    @property
    def model_bytes(self) -> int | None:
        return _pick(self.models)

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels of models and totals, such as int6+zstd."""
        return tuple(dict.fromkeys(label for label, _ in (*self.models, *self.totals)))

    @property
    def quantized_scores(self) -> tuple[LoggedScore, ...]:
        return tuple(score for score in self.scores if score.quantized)

    @property
    def has_facts(self) -> bool:
        return bool(self.models or self.totals or self.rounded or self.scores or self.step)


def _own_label(labels: list[str]) -> str:
    """The script's own label: one derived from the baseline may also run its int8+zlib path."""
    own = [label for label in labels if label != "int8+zlib"]
    return (own or labels)[-1]


def _pick(sizes: tuple[tuple[str, int], ...]) -> int | None:
    return dict(sizes)[_own_label([label for label, _ in sizes])] if sizes else None


def parse_log(text: str, name: str) -> TrainingLog:
    """The facts in a log of a single run; every fact may be missing."""
    return _parse(bounded_lines(text)[0], name, name)


def parse_logs(text: str, name: str, most: int) -> tuple[tuple[TrainingLog, ...], int, int]:
    """(the logs of the runs in a file, at most `most`; the number of its runs; the number of its
    lines left out).

    If there are several, each has its number in its name, and the file name gives no seed.
    """
    lines, left = bounded_lines(text)
    runs = runs_in(lines)
    if len(runs) == 1:
        log = _parse(runs[0], name, name)
        return (log,) * log.has_facts, 1, left
    logs = [_parse(lines, f"{name} (run {n})", "") for n, lines in enumerate(runs[:most], 1)]
    return tuple(log for log in logs if log.has_facts), len(runs), left


def _parse(lines: list[str], name: str, file_name: str) -> TrainingLog:
    """file_name: may contain the seed."""
    facts: dict[str, Any] = {**_singles(lines, file_name), **parse_times(lines)}
    facts |= parse_sizes(lines, facts.get("parameters"))
    tokenizer = TOKENIZER.search("\n".join(lines))
    if "vocab_size" not in facts and tokenizer is not None:
        facts["vocab_size"] = int(tokenizer[1] or tokenizer[2])
    facts["case_operators"] = any("caseops" in line.lower() for line in lines)
    facts["gpu"] = next((match[1] for line in lines if (match := GPU.match(line))), None)
    facts["fallback"] = next((line for line in lines if FALLBACK.search(line)), None)
    scores = tuple(_scores(lines))
    own, score = parse_own(lines)
    if score is not None:
        scores += (LoggedScore(SCORE_NAME, score.nats, score.bpb, score.digits, True, None),)
    return TrainingLog(name=name, scores=scores, **{**facts, **own})


def _singles(lines: list[str], name: str) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    for line in lines:
        for key, pattern in SINGLE.items():
            match = pattern.match(line) or (pattern.search(line) if key == "seed" else None)
            # A line of settings may hold several; the seed is often one of many.
            if match is not None and not (key == "seed" and "seed" in facts):
                facts[key] = integer(match[1])
    named = SEED_IN_NAME.search(name.rpartition("/")[2].rpartition(".")[0])
    if named is not None:
        facts["named_seed"] = int(named[1])
        facts.setdefault("seed", facts["named_seed"])
    return facts


def _scores(lines: list[str]) -> Iterator[LoggedScore]:
    for line in lines:
        step = STEP.match(line)
        match = STEP_SCORE.match(step["rest"]) if step else SCORE.match(line)
        if match is None:
            continue
        name = "step" if step else match["name"].strip(" :")
        timed = None if step else EVAL_TIME.search(match["rest"])
        quantized = not step and BEFORE_QUANTIZATION.search(name) is None
        digits = len(match["bpb"].partition(".")[2])
        took = seconds(timed) if timed else None
        yield LoggedScore(name, float(match["nats"]), float(match["bpb"]), digits, quantized, took)
