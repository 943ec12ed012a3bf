"""Everything that decides a training run: one frozen dataclass a subject, checked when made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from .model import GPTConfig, require

ORDERS = ("sequential", "coprime")
QAT_MODES = ("off", "on", "late")
PRECISIONS = ("auto", "float32", "bfloat16")
COMPILE = ("auto", "on", "off")


@dataclass(frozen=True)
class DataSettings:
    """Where tokens come from.

    Attributes:
        folder: what `packer data` wrote; its manifest names shards and tokenizer.
        train, valid: shards by path or glob, instead of a folder.
        tokenizer: sentencepiece model of the shards; needed for bits per byte.
    """

    folder: str = ""
    train: tuple[str, ...] = ()
    valid: tuple[str, ...] = ()
    tokenizer: str = ""


@dataclass(frozen=True)
class BatchSettings:
    """What one optimizer step reads, over all processes.

    Attributes:
        sequence: tokens of one window.
        tokens: of one optimizer step; a multiple of `sequence`.
        micro_tokens: of one forward in one process, the rest is accumulated; 0 takes all at once.
        order: `sequential` reads the shards as they lie, `coprime` visits their windows with a
            stride that has no common divisor with their number: each once before any twice.
    """

    sequence: int = 1024
    tokens: int = 524_288
    micro_tokens: int = 0
    order: str = "sequential"

    def __post_init__(self) -> None:
        require(self.sequence >= 2, "sequence", self.sequence, "at least 2 tokens")
        fits = self.tokens >= self.sequence and self.tokens % self.sequence == 0
        require(fits, "tokens", self.tokens, f"a multiple of sequence = {self.sequence}")
        micro = self.micro_tokens
        fits = micro == 0 or (micro >= self.sequence and micro % self.sequence == 0)
        require(fits, "micro_tokens", micro, f"0 or a multiple of sequence = {self.sequence}")
        require(self.order in ORDERS, "order", self.order, " or ".join(ORDERS))


@dataclass(frozen=True)
class OptimizerSettings:
    """Muon for matrices, AdamW for tables, head and control tensors.

    Attributes:
        matrix_lr, matrix_weight_decay: of Muon; the decay is decoupled, times the learning rate.
        momentum: of Muon, reached from `momentum_start` over `momentum_warmup` steps.
        newton_schulz_steps: iterations of the orthogonalization.
        embedding_lr, head_lr, scalar_lr: of AdamW; a tied embedding is an embedding.
        beta1, beta2, eps, weight_decay: of AdamW.
        grad_clip: largest norm of all gradients together; 0 never clips.
    """

    matrix_lr: float = 0.04
    matrix_weight_decay: float = 0.0
    momentum: float = 0.95
    momentum_start: float = 0.85
    momentum_warmup: int = 500
    newton_schulz_steps: int = 5
    embedding_lr: float = 0.05
    head_lr: float = 0.008
    scalar_lr: float = 0.04
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.0
    grad_clip: float = 0.0

    def __post_init__(self) -> None:
        for name in ("matrix_lr", "embedding_lr", "head_lr", "scalar_lr", "eps"):
            require(getattr(self, name) > 0, name, getattr(self, name), "above 0")
        for name in ("matrix_weight_decay", "weight_decay", "grad_clip", "momentum_warmup"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        for name in ("momentum", "momentum_start", "beta1", "beta2"):
            require(0 <= getattr(self, name) < 1, name, getattr(self, name), "in [0, 1)")
        steps = self.newton_schulz_steps
        require(1 <= steps <= 20, "newton_schulz_steps", steps, "from 1 to 20")


@dataclass(frozen=True)
class ScheduleSettings:
    """How long, and how the learning rate goes.

    Attributes:
        iterations: optimizer steps at most.
        max_wallclock: seconds of everything that touches training data, calibration included; 0
            counts steps only.
        calibration_reserve: seconds of these kept for calibration after the last step.
        lr_warmup: steps of linear rise.
        warmdown: steps of linear fall at the end; under a wall clock, as many as remain at the
            speed so far.
        warmdown_floor: where the fall ends: it is floor + (1 - floor) · rest (#372).
        priming_steps: whole steps before the clock starts, on weights and optimizer states that are
            put back after them: compilers and allocators have then seen everything.
    """

    iterations: int = 20_000
    max_wallclock: float = 0.0
    calibration_reserve: float = 0.0
    lr_warmup: int = 0
    warmdown: int = 1200
    warmdown_floor: float = 0.0
    priming_steps: int = 0

    def __post_init__(self) -> None:
        require(self.iterations >= 1, "iterations", self.iterations, "at least 1")
        counts = ("lr_warmup", "warmdown", "priming_steps")
        for name in ("max_wallclock", "calibration_reserve", *counts):
            require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        reserve, whole = self.calibration_reserve, self.max_wallclock
        fits = reserve == 0 or reserve < whole
        require(fits, "calibration_reserve", reserve, f"below max_wallclock = {whole:g}")
        floor = self.warmdown_floor
        require(0 <= floor <= 1, "warmdown_floor", floor, "in [0, 1]")


@dataclass(frozen=True)
class AveragingSettings:
    """Averages of the weights, packed and scored beside the weights themselves.

    Attributes:
        ema_decay: of the exponential average, taken every step; 0 leaves it out.
        swa_every: steps between the weights that the plain average takes; 0 leaves it out.
        swa_below: it starts when the learning-rate scale has fallen below this.
    """

    ema_decay: float = 0.0
    swa_every: int = 0
    swa_below: float = 0.2

    def __post_init__(self) -> None:
        require(0 <= self.ema_decay < 1, "ema_decay", self.ema_decay, "in [0, 1)")
        require(self.swa_every >= 0, "swa_every", self.swa_every, "0 or more")
        require(0 < self.swa_below <= 1, "swa_below", self.swa_below, "in (0, 1]")


@dataclass(frozen=True)
class QATSettings:
    """Fake quantization while training.

    Attributes:
        mode: `off`, `on` from the first step, or `late`: when the falling learning-rate scale
            passes below `late_below`.
        formats: selector -> choice, later entries win; tensors that none selects stay as they are.
            Without QAT it still is what the predicted size is measured under.
        plan: a plan.json whose choices are taken instead of `formats`.
        late_below: learning-rate scale at which `late` begins.
        anneal: steps over which rounding sets in; 0 switches at once.
        hold: steps for which scales are kept before they are chosen anew; 0 chooses every step.
    """

    mode: str = "off"
    formats: Mapping[str, str] = field(default_factory=dict)
    plan: str = ""
    late_below: float = 0.15
    anneal: int = 0
    hold: int = 0

    def __post_init__(self) -> None:
        require(self.mode in QAT_MODES, "mode", self.mode, " or ".join(QAT_MODES))
        require(0 < self.late_below <= 1, "late_below", self.late_below, "in (0, 1]")
        require(self.anneal >= 0, "anneal", self.anneal, "0 or more")
        require(self.hold >= 0, "hold", self.hold, "0 or more")
        both = bool(self.plan and self.formats)
        require(not both, "plan", self.plan, "left out where formats are given")
        has_target = self.mode == "off" or bool(self.plan or self.formats)
        require(has_target, "mode", self.mode, "off unless plan or formats name what to train for")


@dataclass(frozen=True)
class PackSettings:
    """What happens after the last step.

    Attributes:
        cap: bytes, code included; 0 packs nothing.
        code: files counted as code.
        formats: selector -> choice that packing is held to; empty takes those trained for where
            QAT was on, else the planner is free.
        int5_mlp: pack the matrices of MLPs in int5 (`INT5_MLP=1` of #339).
        prune_codes: share of the smallest codes of all integer formats below 8 bits together that
            become 0 after rounding, with all others of their magnitude (#569).
        size_cap: bytes at which the predicted size warns while training; 0 takes `cap`.
        calibration_tokens: training tokens that curvature is measured on before packing; 0 for
            none. Under a wall clock it lasts at most `schedule.calibration_reserve`.
    """

    cap: int = 0
    code: tuple[str, ...] = ()
    formats: Mapping[str, str] = field(default_factory=dict)
    int5_mlp: bool = False
    prune_codes: float = 0.0
    size_cap: int = 0
    calibration_tokens: int = 32_768

    def __post_init__(self) -> None:
        require(self.cap >= 0, "cap", self.cap, "0 or more bytes")
        tokens = self.calibration_tokens
        require(tokens >= 0, "calibration_tokens", tokens, "0 or more")
        require(self.size_cap >= 0, "size_cap", self.size_cap, "0 or more bytes")
        require(0 <= self.prune_codes < 1, "prune_codes", self.prune_codes, "in [0, 1)")


@dataclass(frozen=True)
class RunSettings:
    """The rest: seeds, precision, and the intervals of logging, evaluation and saving.

    Attributes:
        seed: of initial weights and of the data order.
        precision: of activations; `auto` is bfloat16 where the hardware multiplies in it.
        compile: torch.compile; `auto` is on for CUDA.
        log_every, eval_every, save_every: steps; 0 for never (the end always does all three).
        save_seconds: also save this many seconds after the last save; 0 for never.
        eval_tokens: validation tokens scored while training; 0 takes all.
        final_eval_tokens: the same at the end.
        stride: of the final evaluation; 0 takes windows back to back.
        size_share: share of the time that may go into predicting the size; 0 predicts none.
    """

    seed: int = 1337
    precision: str = "auto"
    compile: str = "auto"
    log_every: int = 10
    eval_every: int = 0
    save_every: int = 0
    save_seconds: float = 60.0
    eval_tokens: int = 65_536
    final_eval_tokens: int = 0
    stride: int = 0
    size_share: float = 0.01

    def __post_init__(self) -> None:
        require(self.precision in PRECISIONS, "precision", self.precision, " or ".join(PRECISIONS))
        require(self.compile in COMPILE, "compile", self.compile, " or ".join(COMPILE))
        require(self.log_every >= 1, "log_every", self.log_every, "at least 1")
        for name in ("eval_every", "save_every", "save_seconds", "eval_tokens"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        for name in ("final_eval_tokens", "stride", "seed"):
            require(getattr(self, name) >= 0, name, getattr(self, name), "0 or more")
        require(0 <= self.size_share < 1, "size_share", self.size_share, "in [0, 1)")


@dataclass(frozen=True)
class TrainConfig:
    """A whole run; the sections of a configuration file have the names of these fields."""

    model: GPTConfig
    data: DataSettings = field(default_factory=DataSettings)
    batch: BatchSettings = field(default_factory=BatchSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    schedule: ScheduleSettings = field(default_factory=ScheduleSettings)
    averaging: AveragingSettings = field(default_factory=AveragingSettings)
    qat: QATSettings = field(default_factory=QATSettings)
    pack: PackSettings = field(default_factory=PackSettings)
    run: RunSettings = field(default_factory=RunSettings)

    def __post_init__(self) -> None:
        sequence, stride = self.batch.sequence, self.run.stride
        require(stride <= sequence, "run.stride", stride, f"at most batch.sequence = {sequence}")
