"""The schedule of a run: the learning-rate scale, Muon's momentum, and when it ends."""

from __future__ import annotations

from collections import deque

from packer.train.settings import OptimizerSettings, ScheduleSettings

UNTIMED_STEPS = 10  # the first of a process are slower: kernels are loaded, caches filled
TIMED_STEPS = 50


class Pace:
    """The seconds of a step, over the last ones."""

    def __init__(self) -> None:
        self._ends: deque[float] = deque(maxlen=TIMED_STEPS + 1)
        self._untimed = UNTIMED_STEPS

    def add(self, seconds: float) -> None:
        """A step has ended when training had taken `seconds`."""
        self._untimed -= self._untimed > 0
        if not self._untimed:
            self._ends.append(seconds)

    @property
    def seconds(self) -> float:
        """0 until there is something to average."""
        if len(self._ends) <= UNTIMED_STEPS:
            return 0.0
        return (self._ends[-1] - self._ends[0]) / (len(self._ends) - 1)


def is_finished(schedule: ScheduleSettings, step: int, seconds: float) -> bool:
    """Whether `step` steps are all there is, or another might end after the wall clock does.

    The next step is allowed twice the mean time of those so far, which took `seconds` in all: a
    step that ends late puts the whole run over its budget.
    """
    if step >= schedule.iterations:
        return True
    next_step = 2 * seconds / step if step else 0.0
    limit = training_seconds(schedule) * (1 + 1e-9)  # seconds are sums of rounded differences
    return bool(schedule.max_wallclock) and seconds + next_step > limit


def training_seconds(schedule: ScheduleSettings) -> float:
    """Seconds for steps: the wall clock less what is reserved for calibration."""
    return schedule.max_wallclock - schedule.calibration_reserve


def remaining_steps(
    schedule: ScheduleSettings, step: int, seconds: float, pace: float = 0.0
) -> float:
    """Steps that are left, under a wall clock at the mean speed so far, or lately if that is more.

    pace: seconds of a step lately, 0 if unknown. The first steps alone say nothing.
    """
    left = float(schedule.iterations - step)
    if schedule.max_wallclock and step >= 2 * UNTIMED_STEPS and seconds > 0:
        one = min(pace or seconds / step, seconds / step)
        left = min(left, (training_seconds(schedule) - seconds) / one)
    return max(left, 0.0)


def lr_scale(schedule: ScheduleSettings, step: int, seconds: float, pace: float = 0.0) -> float:
    """The scale of step number `step` (from 0), `seconds` of training after the first began.

    pace: as of `remaining_steps`. Linear warm-up, then 1, then linear fall over the last `warmdown`
    steps; the smaller wins.
    """
    rise = min((step + 1) / schedule.lr_warmup, 1.0) if schedule.lr_warmup else 1.0
    return min(rise, fall(schedule, step, seconds, pace))


def fall(schedule: ScheduleSettings, step: int, seconds: float, pace: float = 0.0) -> float:
    """The warm-down's factor alone, from 1 to `warmdown_floor`."""
    if not schedule.warmdown:
        return 1.0
    left = min(remaining_steps(schedule, step, seconds, pace) / schedule.warmdown, 1.0)
    floor = schedule.warmdown_floor
    return floor + (1 - floor) * left


def muon_momentum(optimizer: OptimizerSettings, step: int) -> float:
    """Linear from `momentum_start` to `momentum`."""
    share = min(step / optimizer.momentum_warmup, 1.0) if optimizer.momentum_warmup else 1.0
    return (1 - share) * optimizer.momentum_start + share * optimizer.momentum
