"""Calibration: the curvature of a model's weights on a text, within a time limit."""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import torch
from torch import Tensor, nn

from packer.checkpoint.checkpoint import Checkpoint, from_state_dict
from packer.checkpoint.fingerprint import contents_fingerprint
from packer.curvature.all_moments import AllMoments
from packer.curvature.curvature_set import CurvatureSet
from packer.curvature.file import compact
from packer.curvature.joined_weights import JoinedWeightUses
from packer.curvature.left_out import left_out
from packer.curvature.observing import (
    MAY_TAKE,
    WORKING_SHARE,
    collect,
    gradients_for,
    input_moment,
    live_tensors,
    observe,
)
from packer.curvature.ranks import ALONE, Ranks
from packer.curvature.resume import ResumeFile, ResumeState
from packer.curvature.sampled_labels import SampledLabels
from packer.curvature.shared_copies import sharing_copies
from packer.curvature.weight_uses import OutOfTimeError, WeightUses
from packer.errors import CurvatureError
from packer.eval.foreign_forward import named_module
from packer.eval.forward import AnyModel, device_of, evaluation_mode, tail_logits
from packer.quantizers.curvature import Curvature

Progress = Callable[[str, int, int], None]

RESULTS_MARGIN = 1.5  # times the seconds that results are estimated to take
SMALLEST_MATRIX = 4096  # weights; smaller ones that no map uses are scales


@dataclass(frozen=True)
class TextSource:
    """Description of the tokens that a model is calibrated on.

    words: what they are, for messages. bytes_per_token: of the text, None if unknown.
    """

    words: str = "batches"
    bytes_per_token: float | None = None


def calibrate(
    model: AnyModel,
    batches: Iterable[Tensor],
    *,
    seconds: float | None = None,
    seed: int = 0,
    text: TextSource | None = None,
    checkpoint: Checkpoint | None = None,
    progress: Progress | None = None,
    resume_file: ResumeFile | None = None,
    ranks: Ranks = ALONE,
) -> CurvatureSet:
    """Second moments of the inputs of every linear map and the Fisher of its outputs.

    batches: int64 [windows, time]; labels are sampled from the model's own predictions (`seed`),
    which makes this the true Fisher. seconds: limit from the call on, setup and results included.
    A batch is not begun if it would exceed the limit by taking as long as the longest before it;
    with one process, one that exceeds it nevertheless is stopped at its next torch call, and left
    out completely. checkpoint: the weights whose names and fingerprint the result has; default: the
    model's own. resume_file: the file that sums are saved to regularly, and from which an
    interrupted run over the same batches is resumed. ranks: the processes that share the batches;
    each returns the whole result, equal to that of one process except for the order of additions.
    Raises CurvatureError: no batch could be read in time, or the results not computed in the rest
    of it, no gradients, logits that are not finite. ScoreError: the model only returns losses.
    """
    started, text = time.perf_counter(), text or TextSource()
    module = _module_of(model)
    checkpoint = checkpoint or from_state_dict(module.state_dict())
    contents = contents_fingerprint(checkpoint)
    with sharing_copies(module, checkpoint.ties), evaluation_mode([model]):
        uses = JoinedWeightUses(live_weights(module, checkpoint))
        run = _Run(model, uses, SampledLabels(seed, device_of(model)), ranks)
        started -= run.resume(resume_file)
        limit = math.inf if seconds is None else seconds
        deadline = partial(run.deadline, started, limit)
        with gradients_for(uses.weights.values()):
            for group, until in within(batches, deadline, progress, ranks, run.batches):
                if not run.read(group, until):
                    limit = math.inf  # one call stalled: that is no reason to lose what was read
                    break
                if resume_file is not None and ranks.first_says(resume_file.due):
                    run.keep(resume_file, time.perf_counter() - started)
    if run.tokens == 0:
        raise _nothing_read(text, seconds, time.perf_counter() - started)
    spent = time.perf_counter() - started + run.seconds_to_collect()
    _keep_limit(limit, ranks.first_says(spent))  # all add up their sums now, or none
    result = run.result(checkpoint, contents, text, started)
    _keep_limit(limit, result.seconds)
    return result


@dataclass(frozen=True)
class Known:
    """What warnings depend on, of the curvature of one tensor."""

    columns: int
    is_table: bool
    has_fisher: bool


class _Run:
    """A running calibration: the sums of this process, and how much all processes have read."""

    def __init__(
        self, model: AnyModel, uses: WeightUses, labels: SampledLabels, ranks: Ranks
    ) -> None:
        self.model, self.uses, self.labels, self.ranks = model, uses, labels, ranks
        self.device = device_of(model)
        self.batches = self.tokens = 0
        self._to_collect: float | None = None
        self.vocab_size: int | None = None

    def resume(self, file: ResumeFile | None) -> float:
        """Resumes an interrupted run, its sums in the first process only. Returns the seconds that
        it took.

        Raises CurvatureError: the file is damaged, or not of these weights.
        """

        def read() -> ResumeState | None:
            earlier = file.read() if file is not None and self.ranks.rank == 0 else None
            if earlier is None:
                return None
            _restore(earlier, self.uses, self.device)
            return replace(earlier, sums={})

        state = self.ranks.first_says(self.ranks.together(read))
        if state is None:
            return 0.0
        self.labels.generator.set_state(state.generator)
        self.batches, self.tokens = state.batches, state.tokens
        self.vocab_size = state.vocab_size
        return state.seconds

    def read(self, group: Sequence[Tensor], until: float) -> bool:
        """Reads a round of batches, one of them in this process if there are enough. Returns
        whether it ended in time; if not, the sums are those of before.
        """
        uses = self.uses
        uses.until, before = until, None
        if until < math.inf:
            before = copy.deepcopy(uses.moments)
        try:
            width = self.ranks.together(partial(self._width, group))
        except OutOfTimeError:
            uses.moments = before or AllMoments()
            return False
        self.vocab_size = self.ranks.first_says(width)  # the first has a batch in every round
        self.batches += len(group)
        self.tokens += sum(batch.numel() for batch in group)
        return True

    def deadline(self, started: float, seconds: float) -> float:
        """When reading ends, so that the results are there `seconds` after `started`."""
        results = RESULTS_MARGIN * self.seconds_to_collect()
        return started + min(seconds - results, WORKING_SHARE * seconds)

    def seconds_to_collect(self) -> float:
        """How long the results will take, estimated once from the largest; 0 before any batch."""
        maps = self.uses.moments.maps
        if self._to_collect is None and self.tokens and maps:
            shapes = {name: self.uses.weights[name].shape for name in maps}
            sizes = {name: sum(side**2 for side in shape) for name, shape in shapes.items()}
            largest, begun = max(sizes, key=lambda name: sizes[name]), time.perf_counter()
            keys = self.uses.moments.inputs_by_name()[largest]
            moment = input_moment(self.uses.moments, keys, self.tokens)
            maps[largest].curvature(moment, self.tokens, None)
            spent = time.perf_counter() - begun
            self._to_collect = spent * sum(sizes.values()) / sizes[largest]
        return self._to_collect or 0.0

    def result(
        self, checkpoint: Checkpoint, contents: str, text: TextSource, started: float
    ) -> CurvatureSet:
        """The curvature of what all processes have read."""
        uses = self.uses
        self.ranks.add_up(uses, self.device)
        unreached = unreached_matrices(uses, checkpoint)
        known: dict[str, Known] = {}

        def collected() -> Iterator[tuple[str, Curvature]]:
            for name, one in collect(uses, self.tokens):
                known[name] = Known(one.columns, one.row_usage is not None, one.fisher is not None)
                yield name, one

        by_tensor = compact(collected(), self.tokens)
        notes = (
            *warnings(known, unreached, uses.met, self.tokens),
            *left_out(by_tensor, unreached, uses, checkpoint.meta_tensors),
        )
        return CurvatureSet(
            by_tensor,
            contents,
            text.words,
            self.tokens,
            time.perf_counter() - started,
            self.vocab_size,
            text.bytes_per_token,
            unreached,
            notes,
        )

    def _width(self, group: Sequence[Tensor]) -> int | None:
        """Reads this process's batch. Returns the width of its logits."""
        width = None
        for rank, batch in enumerate(group):
            if rank == self.ranks.rank:
                width = _observe(self.model, self.uses, batch.to(self.device), self.labels)
            else:
                self.labels.pass_over(batch.numel())
        return width

    def keep(self, file: ResumeFile, seconds: float) -> None:
        """Saves the sums of all processes, from the first, in the same form as those of one alone.

        Raises OutputError.
        """
        self.ranks.hand_over(self.uses, self.device)
        generator = self.labels.generator.get_state()
        sums = self.uses.moments.sums()
        state = ResumeState(self.batches, self.tokens, self.vocab_size, seconds, sums, generator)
        self.ranks.together(lambda: file.keep(state) if self.ranks.rank == 0 else None)


def _keep_limit(seconds: float, spent: float) -> None:
    """Raises CurvatureError: a calibration that is over after `spent` seconds is too late."""
    if spent > seconds:
        raise CurvatureError(
            f"calibration with its results takes {spent:.3g} seconds, and {seconds:g} are allowed; "
            "allow more"
        )


def _module_of(model: AnyModel) -> torch.nn.Module:
    """Raises CurvatureError: the model is not a torch module."""
    module = named_module(model)
    if module is None:
        kind = type(model).__name__
        raise CurvatureError(f"{kind} is no torch module: its weights have no names")
    return module


def _nothing_read(text: TextSource, seconds: float | None, spent: float) -> CurvatureError:
    within_time = ""
    if seconds is not None:
        within_time = (
            f" within {seconds:g} seconds; allow more (the first had not ended after {spent:.3g}), "
            "or take smaller batches"
        )
    return CurvatureError(f"no batch of {text.words} was read{within_time}")


def live_weights(module: nn.Module, checkpoint: Checkpoint) -> dict[str, Tensor]:
    """The model's float tensors by the checkpoint's names, tied ones once."""
    return live_tensors(module, checkpoint.tensors, checkpoint.ties)


def within(
    batches: Iterable[Tensor],
    deadline: Callable[[], float],
    progress: Progress | None = None,
    ranks: Ranks = ALONE,
    first: int = 0,
) -> Iterator[tuple[tuple[Tensor, ...], float]]:
    """(round of batches, its deadline) after the `first`, as long as one that takes as long as the
    longest so far would end in time.

    deadline: by the performance counter, asked before each round; a round's is infinite unless one
    process is in doubt: several would have to leave out the same batches.
    """
    total = len(batches) if isinstance(batches, Sequence) else 0
    longest, done = 0.0, first
    for group in ranks.rounds(batches, first):
        limit, begun = deadline(), time.perf_counter()
        if ranks.first_says(begun + longest > limit):
            return
        doubtful = not longest or begun + MAY_TAKE * longest > limit
        if progress is not None:
            all_batches = max(total, done + 1)
            what = f"batch {done + 1:,} of {all_batches:,}"
            progress(what, done - first, all_batches - first)
        yield group, limit if doubtful and ranks.size == 1 else math.inf
        done += len(group)
        longest = max(longest, time.perf_counter() - begun)


def _restore(earlier: ResumeState, uses: WeightUses, device: torch.device) -> None:
    """Raises CurvatureError: sums of other weights, or an invalid generator state."""
    try:
        uses.moments.restore(earlier.sums, uses.weights, device)
        torch.Generator(device).set_state(earlier.generator)
    except (ValueError, RuntimeError, TypeError) as error:
        raise CurvatureError(f"the unfinished calibration is damaged: {error}") from None


def _observe(model: AnyModel, uses: WeightUses, tokens: Tensor, labels: SampledLabels) -> int:
    """One forward and backward pass. Returns the width of the logits."""

    def logits_of(ids: Tensor) -> Tensor:
        return tail_logits(model, ids, ids.size(1), None)

    return observe(logits_of, uses, tokens, labels.gradient)


def unreached_matrices(uses: WeightUses, checkpoint: Checkpoint) -> tuple[str, ...]:
    """Matrices that are used by no linear map or lookup that was observed."""
    return tuple(
        name
        for name, weight in sorted(checkpoint.meta_tensors.items())
        if weight.dim() >= 2
        and weight.numel() >= SMALLEST_MATRIX
        and weight.is_floating_point()
        and name not in uses.moments.maps
        and name not in uses.moments.tables
    )


def warnings(
    known: Mapping[str, Known],
    unreached: Sequence[str],
    met: Mapping[str, Iterable[str]],
    tokens: int,
) -> tuple[str, ...]:
    """met: by weight, the calls that used it and are not followed."""
    lines = [
        f"{name}: no linear map or lookup was seen to use it"
        + (f", only {', '.join(met[name])}; " if name in met else "; ")
        + ("its own gradient stands in" if name in known else "nothing is known of it")
        for name in unreached
    ]
    for name, one in known.items():
        if not one.is_table and name not in unreached and one.columns > tokens:
            lines.append(
                f"{name} has {one.columns:,} inputs and {tokens:,} tokens were read: its "
                f"second moment has rank {tokens:,} at most; calibrate on more"
            )
    blind = [name for name, one in known.items() if not one.has_fisher]
    if blind:
        lines.append(
            f"no gradient came back to {len(blind)} weights, such as {blind[0]}: nothing is known "
            "of the Fisher of their rows"
        )
    return tuple(lines)
