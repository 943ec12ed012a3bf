"""The schedule of a run: the learning-rate scale, Muon's momentum, and when it ends."""

from __future__ import annotations

from packer.train.settings import OptimizerSettings, ScheduleSettings


def is_finished(schedule: ScheduleSettings, step: int, seconds: float) -> bool:
    """Whether `step` steps are all there is, or another might end after the wall clock does.

    The next step is allowed twice the mean time of those so far, which took `seconds` in all: a
    step that ends late puts the whole run over its budget.
    """
    if step >= schedule.iterations:
        return True
    next_step = 2 * seconds / step if step else 0.0
    return bool(schedule.max_wallclock) and seconds + next_step > training_seconds(schedule)


def training_seconds(schedule: ScheduleSettings) -> float:
    """Seconds for steps: the wall clock less what is reserved for calibration."""
    return schedule.max_wallclock - schedule.calibration_reserve


def remaining_steps(schedule: ScheduleSettings, step: int, seconds: float) -> float:
    """Steps that are left, under a wall clock at the mean speed so far."""
    left = float(schedule.iterations - step)
    if schedule.max_wallclock and step > 0 and seconds > 0:
        left = min(left, (training_seconds(schedule) - seconds) / (seconds / step))
    return max(left, 0.0)


def lr_scale(schedule: ScheduleSettings, step: int, seconds: float) -> float:
    """The scale of step number `step` (from 0), `seconds` of training after the first began.

    Linear warm-up, then 1, then linear fall over the last `warmdown` steps; the smaller wins.
    """
    rise = min((step + 1) / schedule.lr_warmup, 1.0) if schedule.lr_warmup else 1.0
    return min(rise, fall(schedule, step, seconds))


def fall(schedule: ScheduleSettings, step: int, seconds: float) -> float:
    """The warm-down's factor alone, from 1 to `warmdown_floor`, and never below `min_lr_scale`."""
    if not schedule.warmdown:
        return 1.0
    left = min(remaining_steps(schedule, step, seconds) / schedule.warmdown, 1.0)
    floor = schedule.warmdown_floor
    return max(floor + (1 - floor) * left, schedule.min_lr_scale)


def muon_momentum(optimizer: OptimizerSettings, step: int) -> float:
    """Linear from `momentum_start` to `momentum`."""
    share = min(step / optimizer.momentum_warmup, 1.0) if optimizer.momentum_warmup else 1.0
    return (1 - share) * optimizer.momentum_start + share * optimizer.momentum
