"""The training loop: steps, averages, checkpoints, a log; nothing here knows a command line."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from packer.quantizers.attachment import plain_name
from packer.train.averaging import Averages
from packer.train.batches import Batches
from packer.train.gradients import Gradients, multiplies_bfloat16
from packer.train.ledger import Ledger
from packer.train.log_line import log_line
from packer.train.metrics import MetricsLog
from packer.train.model import GPT, model_of
from packer.train.optim import (
    Orthogonalize,
    make_optimizers,
    orthogonalized,
    set_rates,
    shared_among,
)
from packer.train.qat import FakeQuantization, selected
from packer.train.run_config import run_settings
from packer.train.run_state import StateWriter
from packer.train.schedule import (
    Pace,
    is_finished,
    lr_scale,
    muon_momentum,
    remaining_steps,
    training_seconds,
)
from packer.train.settings import TrainConfig
from packer.train.size_watch import SizeWatch
from packer.train.stop_requests import stop_requests
from packer.train.training_data import TrainingData
from packer.train.validation import validate
from torch import Tensor

from packer.curvature.ranks import Ranks
from packer.errors import PackerError
from packer.planning.account import count_code

STATE = "state.pt"
METRICS = "metrics.jsonl"
INT5_MLP = {"blocks.*.mlp.*.weight": "int5.row"}
Say = Callable[[str], None]


class TrainingError(PackerError):
    """A run that cannot go on, with what is left of it."""


class Trainer:
    """A run in this process. folder: where its files go; only rank 0 writes.

    Raises PackerError: settings, model and data that do not fit one another.
    """

    def __init__(
        self,
        config: TrainConfig,
        data: TrainingData,
        folder: Path,
        device: torch.device,
        *,
        rank: int = 0,
        world_size: int = 1,
        say: Say = print,
    ) -> None:
        self.config, self.data, self.folder, self.device = config, data, folder, device
        self.rank, self.world_size, self.say = rank, world_size, say
        self.step = 0
        self.states = StateWriter(folder / STATE, say)
        self.ledger = Ledger(self._wait)
        self.pace = Pace()
        self.metrics = MetricsLog(folder / METRICS)
        torch.manual_seed(config.run.seed)
        self.model = GPT(config.model).to(device)
        batches = Batches(
            data.train, config.batch, config.model.vocab_size, config.run.seed, rank, world_size
        )
        self.qat = FakeQuantization.attached(self.model, config.qat)
        dtype = self._iteration_dtype()
        self.gradients = Gradients(self.model, config, batches, device, world_size, say)
        newton_schulz: Orthogonalize = orthogonalized
        if self.gradients.compiled:
            newton_schulz = torch.compile(orthogonalized, dynamic=False)
        newton_schulz = shared_among(self.ranks, newton_schulz)
        self.optimizers = make_optimizers(self.model, config.optimizer, dtype, newton_schulz)
        self.weights = dict(self._plain_parameters())
        self.averages = Averages(config.averaging, self.weights)
        self.size = SizeWatch(
            {**self.qat.choices, **selected(self.pins(), self.weights)},
            self.weights,
            config.run.size_share,
            limit=config.pack.size_cap or config.pack.cap,
            code_bytes=sum(file.size_bytes for file in count_code(config.pack.code)),
        )
        self._loss: Tensor | None = None
        self._last_save = time.monotonic()

    def _iteration_dtype(self) -> torch.dtype:
        """Of Muon's iteration: bfloat16, but on CPUs that emulate it, at up to thirteen times the
        seconds. Not measured, so that the same run has the same weights on a busy machine too.
        """
        emulated = self.device.type == "cpu" and not multiplies_bfloat16(self.device)
        return torch.float32 if emulated else torch.bfloat16

    def _plain_parameters(self) -> list[tuple[str, Tensor]]:
        """Every weight under the name that the model itself has for it."""
        return [
            (plain_name(name), parameter.data) for name, parameter in self.model.named_parameters()
        ]

    def train(self) -> None:
        """Steps until the schedule ends. A Ctrl-C saves the state after the step and stops.

        Raises TrainingError: the loss is not finite, or the run was interrupted.
        """
        self._begin()
        try:
            self._steps()
            self.qat.finish()
            self._log(None, evaluating=True)
            self.save()
        finally:
            self.states.wait()

    def _steps(self) -> None:
        with stop_requests() as stopping, self.ledger.time("training"):
            while True:
                seconds, pace, stop = self._agreed(stopping())
                if self.step == 1:
                    self._refuse_short_clock(seconds)
                if is_finished(self.config.schedule, self.step, seconds):
                    break
                if stop:
                    self.save()
                    raise TrainingError(
                        f"stopped after step {self.step}; go on from {self._saved()} with --resume"
                    )
                self._one_step(seconds, pace)

    def _begin(self) -> None:
        if self.rank == 0:
            self.metrics.begin(self.step)
        steps = self.config.schedule.priming_steps or int(self.gradients.compiled)
        if steps:
            with self.ledger.time("compilation"):
                self._prime(steps)

    def _prime(self, steps: int) -> None:
        """Whole steps, so that all is compiled before the clock starts, and everything put back."""
        weights = {name: value.clone() for name, value in self.model.state_dict().items()}
        states = [copy.deepcopy(optimizer.state_dict()) for optimizer in self.optimizers]
        for step in range(self.step, self.step + steps):
            self.gradients.add(step)
            for optimizer in self.optimizers:
                optimizer.step()
            self._zero()
        self.model.load_state_dict(weights)
        for optimizer, state in zip(self.optimizers, states, strict=True):
            optimizer.load_state_dict(state)

    def _one_step(self, seconds: float, pace: float = 0.0) -> None:
        run = self.config.run
        with self.ledger.time("training"):
            scale = lr_scale(self.config.schedule, self.step, seconds, pace)
            momentum = muon_momentum(self.config.optimizer, self.step)
            set_rates(self.optimizers, scale, momentum)
            self.qat.begin_step(self.config.schedule, self.step, seconds, pace)
            self._loss = self.gradients.add(self.step)
            self._clip()
            for optimizer in self.optimizers:
                optimizer.step()
            self._zero()
            self.step += 1
            self.averages.update(self.weights, self.step, scale)
            logging = self.step % run.log_every == 0
            if logging:
                self._refuse_nonfinite()
            if self.rank == 0:
                self.size.look(self.weights, self.ledger.seconds.get("training", 0.0))
        self.pace.add(self.ledger.training_budget)
        evaluating = bool(run.eval_every) and self.step % run.eval_every == 0
        if logging or evaluating:
            self._log(scale, evaluating)
        if self._save_is_due():
            with self.ledger.time("saving"):
                self.save()

    def _clip(self) -> None:
        limit = self.config.optimizer.grad_clip
        if limit:
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit)
        if self.device.type == "cpu":
            self._refuse_nonfinite()  # costs nothing here, and no bad step is taken

    def _zero(self) -> None:
        for optimizer in self.optimizers:
            optimizer.zero_grad(set_to_none=True)

    def _refuse_nonfinite(self) -> None:
        loss = self._mean_loss()
        if loss == loss and abs(loss) != float("inf"):
            return
        raise TrainingError(
            f"step {self.step}: the loss is {loss}. The last good state is {self._saved()}. "
            "Lower the learning rates (optimizer.*_lr), clip gradients (optimizer.grad_clip), or "
            "lengthen the warm-up (schedule.lr_warmup)."
        )

    def _refuse_short_clock(self, seconds: float) -> None:
        """Raises TrainingError: the one step so far took longer than all may."""
        schedule = self.config.schedule
        if schedule.max_wallclock and seconds > training_seconds(schedule):
            raise TrainingError(
                f"one step took {seconds:.3g} s, and all together may take "
                f"{training_seconds(schedule):.3g}: allow more (schedule.max_wallclock, less "
                "schedule.calibration_reserve), or set batch.tokens lower"
            )

    def _mean_loss(self) -> float:
        """The last step's loss over all ranks."""
        assert self._loss is not None
        if self.world_size == 1:
            return float(self._loss)
        mean = self._loss.clone()
        torch.distributed.all_reduce(mean)
        return float(mean) / self.world_size

    def _agreed(self, stop: bool) -> tuple[float, float, bool]:
        """(seconds of training so far, of a step lately, whether to stop) of rank 0, since all must
        decide alike."""
        seconds, pace = self.ledger.training_budget, self.pace.seconds
        if self.world_size == 1:
            return seconds, pace, stop
        # On the CPU, since reading it from a GPU would wait for the whole step.
        shared = torch.tensor([seconds, pace, stop], dtype=torch.float64)
        torch.distributed.broadcast(shared, 0)
        return float(shared[0]), float(shared[1]), bool(shared[2])

    @property
    def ranks(self) -> Ranks:
        """This process and those beside it."""
        return Ranks(self.rank, self.world_size)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)

    # Saying and saving

    def _log(self, scale: float | None, evaluating: bool) -> None:
        line = self._metrics_line(evaluating, scale)
        if self.rank:
            return
        try:
            self.metrics.add(line)
        except OSError as error:
            self.say(f"warning: {self.metrics.path} could not be written ({error.strerror})")
        seconds = self.ledger.training_budget
        left = remaining_steps(self.config.schedule, self.step, seconds, self.pace.seconds)
        self.say(log_line(line, left, self.config.batch.tokens))
        news = self.size.news()
        if news is not None:
            self.say(news)

    def _metrics_line(self, evaluated: bool, scale: float | None) -> dict[str, Any]:
        seconds = self.ledger.seconds.get("training", 0.0)
        tokens = self.step * self.config.batch.tokens
        line: dict[str, Any] = {"step": self.step, "tokens": tokens, "seconds": round(seconds, 3)}
        if self._loss is not None:
            line["loss"] = self._mean_loss()
        if scale is not None:
            line["lr_scale"] = scale
        if self.qat.since is not None:
            line["qat_strength"] = self.qat.strength(self.step - 1)
        if self.size.estimate is not None:
            line["size_bytes"] = self.size.estimate
        if evaluated:
            found = self.evaluate(self.config.run.eval_tokens)
            if found is not None:
                line["bits_per_byte"] = found
        return line

    def evaluate(self, tokens: int) -> float | None:
        """Bits per byte of what the forward sees now; None without validation data."""
        if not self.data.validates:
            return None
        with self.ledger.time("evaluation"):
            sequence = self.config.batch.sequence
            score = validate(self.snapshot(), self.data, sequence, tokens, ranks=self.ranks)
            return None if score is None else score.bits_per_byte

    def snapshot(self) -> GPT:
        """A plain model with the weights as the forward sees them, rounded where QAT is on."""
        with torch.no_grad():
            seen = {
                name: getattr(self.model.get_submodule(name.rpartition(".")[0]), _leaf(name))
                for name in self.weights
            }
        return model_of(self.config.model, {name: w.detach() for name, w in seen.items()})

    def final_weights(self) -> dict[str, dict[str, Tensor]]:
        """raw, ema and swa, as far as there are such."""
        averages = {"raw": self.weights, "ema": self.averages.ema, "swa": self.averages.swa}
        return {name: dict(found) for name, found in averages.items() if found is not None}

    def pins(self) -> dict[str, str]:
        """Selector -> choice that packing should keep: what the weights were trained for."""
        pins = dict(self.config.pack.formats)
        if not pins and self.qat.since is not None:
            pins = {name: str(choice) for name, choice in self.qat.choices.items()}
        return pins | (INT5_MLP if self.config.pack.int5_mlp else {})

    def _save_is_due(self) -> bool:
        """Only rank 0 saves, so its clock alone may decide."""
        run = self.config.run
        late = bool(run.save_seconds) and time.monotonic() - self._last_save >= run.save_seconds
        return late or (bool(run.save_every) and self.step % run.save_every == 0)

    def save(self) -> None:
        """Begin to write the state; the loop waits for it where it ends."""
        if self.rank:
            return
        self._last_save = time.monotonic()
        self.states.begin(self.state())

    def _saved(self) -> str:
        self.states.wait()
        if self.states.saved_step is None:
            return "none: nothing was saved yet"
        return f"{self.states.path}, of step {self.states.saved_step}"

    def state(self) -> dict[str, Any]:
        return {
            "config": run_settings(self.config),
            "step": self.step,
            "qat_since": self.qat.since,
            "model": self.model.state_dict(),
            "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
            "averages": self.averages.state(),
            "seconds": dict(self.ledger.seconds),
            "float32_attention": self.gradients.float32_attention,
            "rng": torch.get_rng_state(),
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on from a state of the same configuration.

        Raises PackerError: the state is of another model or other optimizers.
        """
        try:
            self.model.load_state_dict(state["model"])
            pairs = zip(self.optimizers, state["optimizers"], strict=True)
            for optimizer, found in pairs:
                optimizer.load_state_dict(found)
            self.averages.restore(state["averages"])
            if state.get("float32_attention", False) != self.gradients.float32_attention:
                self.gradients.attend_in_float32(not self.gradients.float32_attention)
            torch.set_rng_state(state["rng"])
            self.ledger.seconds = {str(k): float(v) for k, v in state["seconds"].items()}
        except (RuntimeError, ValueError, KeyError, TypeError) as error:
            reason = str(error).partition("\n")[0]
            raise PackerError(
                f"{self.folder / STATE} does not fit this configuration: {reason}"
            ) from None
        self.step = self.states.saved_step = state["step"]
        self.qat.restore(state["qat_since"], self.step)


def _leaf(name: str) -> str:
    return name.rpartition(".")[2]
