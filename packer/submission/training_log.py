"""What a training log says of sizes, scores, times and seeds, through its known traps.

A log may begin with the whole source of its script, so every pattern stands at the start of a line
and wants digits, and what lies before the first ruler is left out. The last of several equal lines
counts: pruning prints a total after every attempt. `Total submission size` without a label is the
floating-point checkpoint's and says nothing. Labels and metric names are what the script printed,
not what is in the file: `int8+zlib` stands on int6 files under zstd. The companion trainer has
lines of its own (packer.submission.own_log).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from packer.submission.own_log import SCORE_NAME, parse_own

NUMBER = r"(\d[\d,_]*)"
MAX_LINE = 2_000  # letters; what no log line needs is not searched
RULER = re.compile(r"^={60,}\s*$", re.MULTILINE)
ABSURD = re.compile(r"(?:\d[,_]?){19}")  # digits in a row; no size or count has so many
PREFIX = re.compile(r"^(?:\[[^\]\n]{1,40}\]:?\s*|\d{4}-\d\d-\d\d[ T][\d:.,]+\s*)+")

MODEL = re.compile(rf"Serialized model ?([\w+\-. ]*?):\s*{NUMBER} bytes")
TOTAL = re.compile(rf"Total submission size ?([\w+\-. ]*?):\s*{NUMBER} bytes")
CODE = re.compile(rf"Code size(?: \((uncompressed|compressed)\))?:\s*{NUMBER} bytes")
BUDGET = re.compile(rf"budget:\s*{NUMBER}\s*/\s*{NUMBER}\b")
TRIPLE = re.compile(rf"model:\s*{NUMBER} code:\s*{NUMBER} total:\s*{NUMBER}")

SCORE = re.compile(
    r"(?P<name>[A-Za-z][\w\-+.()/\[\]: ]{0,60}?)[: ]+"
    r"val_loss[:=]\s*(?P<nats>\d+\.\d+),?\s+val_bpb[:=]\s*(?P<bpb>\d+\.\d+)(?P<rest>.*)"
)
STEP = re.compile(
    r"(?:step:\s*)?(?P<step>\d+)/(?P<steps>\d+):?\s+(?P<rest>(?:val|train)_(?:loss|time).*)"
)
STEP_SCORE = re.compile(r"val_loss[:=]\s*(?P<nats>\d+\.\d+),?\s+val_bpb[:=]\s*(?P<bpb>\d+\.\d+)")
STOP = re.compile(r"stopping_early:.*?step:\s*(\d+)/(\d+)")
DURATION = r"(?P<amount>\d+(?:\.\d+)?)\s*(?P<unit>ms|s|sec|secs|seconds|m|min)\b"
TRAIN_TIME = re.compile(rf"train_time:\s*{DURATION}")
EVAL_TIME = re.compile(rf"(?:eval_time|elapsed|time)[:=]\s*{DURATION}")
GPTQ_BUDGET = re.compile(
    r"gptq:budget_check train:(?P<train>\d+(?:\.\d+)?)ms \+ gptq:(?P<gptq>\d+(?:\.\d+)?)ms"
)
CALIBRATION = re.compile(r"calibrat|hessian", re.IGNORECASE)
TOTAL_EVAL = re.compile(rf"total_eval_time[:=]\s*{DURATION}")
ANY_DURATION = re.compile(rf"(?<![\w.]){DURATION}")
OWN_TEXT = re.compile(r"self[- _]?gen|generated (?:text|sequences|calibration)", re.IGNORECASE)
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
    "model_dim": re.compile(rf"model_dim[:=]\s*{NUMBER}"),
}
TOKENIZER = re.compile(r"fineweb_(\d+)_bpe|fineweb10B_sp(\d+)")
SEED_IN_NAME = re.compile(r"(?:seed|s)[_\-]?(\d{1,6})(?=\D|$)", re.IGNORECASE)
BEFORE_QUANTIZATION = re.compile(r"diagnostic (?!quantized)|pre-?quant|post_ema|post-ema", re.I)
_MS = {"ms": 1.0, "s": 1e3, "sec": 1e3, "secs": 1e3, "seconds": 1e3, "m": 6e4, "min": 6e4}


@dataclass(frozen=True)
class LoggedScore:
    """One evaluation. quantized: after the artifact was made; nats per token, bits per byte.

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
    """The facts of one log; None and empty where it does not say.

    models, totals: bytes by label, the last of each; labels "" (unlabelled) left out.
    checkpoint_bytes: of the floating-point checkpoint. code_bytes: as counted in the totals.
    raw_code_bytes: where the log counts compressed code, the uncompressed.
    train_seconds: of the training loop; calibration_seconds: of what follows it and reads data,
    None where calibration is spoken of without a time; own_text: on self-generated text.
    eval_seconds: of the whole evaluation, where the log adds it up.
    """

    name: str
    seed: int | None = None
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

    @property
    def total_bytes(self) -> int | None:
        """The total that is the submission's; see `_pick` for which label that is."""
        return _pick(self.totals)

    @property
    def model_bytes(self) -> int | None:
        return _pick(self.models)

    @property
    def label(self) -> str | None:
        """The label of the total, such as int6+zstd."""
        labels = [label for label, _ in self.totals or self.models]
        return _own_label(labels) if labels else None

    @property
    def quantized_scores(self) -> tuple[LoggedScore, ...]:
        return tuple(score for score in self.scores if score.quantized)

    @property
    def says_something(self) -> bool:
        return bool(self.models or self.totals or self.scores or self.step)


def _own_label(labels: list[str]) -> str:
    """A script that grew from the baseline may still run its int8+zlib path after its own."""
    own = [label for label in labels if label != "int8+zlib"]
    return (own or labels)[-1]


def _pick(sizes: tuple[tuple[str, int], ...]) -> int | None:
    return dict(sizes)[_own_label([label for label, _ in sizes])] if sizes else None


def parse_log(text: str, name: str) -> TrainingLog:
    """The facts in a log; every fact may be missing."""
    lines = list(_lines(text))
    facts: dict[str, Any] = {**_singles(lines, name), **_sizes(lines), **_times(lines)}
    tokenizer = TOKENIZER.search("\n".join(lines))
    if "vocab_size" not in facts and tokenizer is not None:
        facts["vocab_size"] = int(tokenizer[1] or tokenizer[2])
    facts["case_operators"] = any("caseops" in line.lower() for line in lines)
    facts["fallback"] = next((line for line in lines if FALLBACK.search(line)), None)
    scores = tuple(_scores(lines))
    own, score = parse_own(lines)
    if score is not None:
        scores += (LoggedScore(SCORE_NAME, score.nats, score.bpb, score.digits, True, None),)
    return TrainingLog(name=name, scores=scores, **{**facts, **own})


def _lines(text: str) -> Iterator[str]:
    """Lines after the dump of the source, without indentation and prefixes of launchers, and
    without those whose numbers no run could have."""
    ruler = RULER.search(text)
    if ruler is not None and "import " in text[: ruler.start()]:
        text = text[ruler.end() :]
    for line in text.splitlines():
        line = line[:MAX_LINE]
        if ABSURD.search(line) is None:
            yield PREFIX.sub("", line.strip())


def _integer(text: str) -> int:
    return int(text.replace(",", "").replace("_", ""))


def _seconds(match: re.Match[str]) -> float:
    return float(match["amount"]) * _MS[match["unit"]] / 1e3


def _singles(lines: list[str], name: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for line in lines:
        for key, pattern in SINGLE.items():
            match = pattern.match(line) or (pattern.search(line) if key == "seed" else None)
            # A line of settings may hold several; the seed often stands among others.
            if match is not None and not (key == "seed" and "seed" in found):
                found[key] = _integer(match[1])
    if "seed" not in found:
        named = SEED_IN_NAME.search(name.rpartition("/")[2].rpartition(".")[0])
        if named is not None:
            found["seed"] = int(named[1])
    return found


def _sizes(lines: list[str]) -> dict[str, Any]:
    models: dict[str, int] = {}
    totals: dict[str, int] = {}
    code: dict[str, int] = {}
    for line in lines:
        if match := MODEL.match(line):
            _put(models, match[1].strip(), _integer(match[2]))
        elif match := TOTAL.match(line):
            _put(totals, match[1].strip(), _integer(match[2]))
        elif match := CODE.match(line):
            code[match[1] or "plain"] = _integer(match[2])
        elif match := BUDGET.match(line):
            _put(totals, "budget", _integer(match[1]))
        elif match := TRIPLE.match(line):
            model, counted, total = (_integer(number) for number in match.groups())
            _put(models, "model", model)
            _put(totals, "model", total)
            code["plain"] = counted
    checkpoint, unlabelled = models.pop("", None), totals.pop("", None)
    counted_code = code.get("compressed", code.get("plain", code.get("uncompressed")))
    sums = {model + (counted_code or 0) for model in models.values()}
    if unlabelled is not None and not totals and unlabelled in sums:
        totals["unlabelled"] = unlabelled
    return {
        "models": tuple(models.items()),
        "totals": tuple(totals.items()),
        "checkpoint_bytes": checkpoint,
        "code_bytes": counted_code,
        "raw_code_bytes": code.get("uncompressed") if "compressed" in code else None,
    }


def _put(sizes: dict[str, int], label: str, size: int) -> None:
    """The last of a label counts, and stands last."""
    sizes.pop(label, None)
    sizes[label] = size


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
        seconds = _seconds(timed) if timed else None
        yield LoggedScore(
            name, float(match["nats"]), float(match["bpb"]), digits, quantized, seconds
        )


def _times(lines: list[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    calibration: list[float] = []
    for line in lines:
        if match := STEP.match(line):
            found["step"], found["steps"] = int(match["step"]), int(match["steps"])
        if match := STOP.match(line):
            found["step"], found["steps"] = int(match[1]), int(match[2])
        if match := TRAIN_TIME.search(line):
            found["train_seconds"] = max(found.get("train_seconds", 0.0), _seconds(match))
        if match := GPTQ_BUDGET.match(line):
            found |= {"calibrated": True, "train_seconds": float(match["train"]) / 1e3}
            calibration = [float(match["gptq"]) / 1e3]
            break
        if match := TOTAL_EVAL.match(line):
            found["eval_seconds"] = _seconds(match)
        keyword = CALIBRATION.search(line)
        if keyword is not None and "reserv" not in line.lower():
            found["calibrated"] = True
            found["own_text"] = found.get("own_text", False) or bool(OWN_TEXT.search(line))
            after = line[keyword.end() :]
            timed = ANY_DURATION.search(after) or ANY_DURATION.search(line)
            calibration += [_seconds(timed)] if timed else []
    if calibration:
        found["calibration_seconds"] = sum(calibration)
    return found
