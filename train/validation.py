"""Bits per byte of a model on the validation shards, every rank its share of the windows."""

from __future__ import annotations

from collections.abc import Mapping

import torch
import torch.distributed
from packer.eval import score as scoring
from packer.eval.batches import BATCH_TOKENS, Setting
from packer.eval.errors import EvalError
from packer.eval.forward import worker_count
from packer.eval.ranks import gathered
from packer.eval.score import Score
from packer.train.gradients import compiles, multiplies_bfloat16
from packer.train.model import GPT
from packer.train.settings import TrainConfig
from packer.train.training_data import TrainingData
from torch import Tensor, nn

from packer.curvature.ranks import ALONE, Ranks
from packer.errors import PackerError

TIMED_BATCHES = 2  # of each worker


class CompiledTail(nn.Module):
    """A model whose last logits are compiled for batches [windows, window] of one shape with
    `count` scored positions; others, at either end of a text, are computed as they were.
    """

    def __init__(self, model: GPT, shape: tuple[int, int], count: int) -> None:
        super().__init__()
        self.model, self.shape, self.count = model, shape, count
        self.compiled = torch.compile(model.tail_logits, fullgraph=True, dynamic=False)

    def tail_logits(self, tokens: Tensor, count: int) -> Tensor:
        """As that of `GPT`."""
        fits = (tuple(tokens.shape), count) == (self.shape, self.count)
        logits: Tensor = (self.compiled if fits else self.model.tail_logits)(tokens, count)
        return logits


def validate(
    model: GPT | CompiledTail,
    data: TrainingData,
    window: int,
    tokens: int = 0,
    *,
    stride: int | None = None,
    batch: int | None = None,
    ranks: Ranks = ALONE,
) -> Score | None:
    """The score of all ranks together, on each of them; None without validation data.

    tokens: number of tokens to score from the start; 0 for all. Raises PackerError: the data cannot
    be scored.
    """
    stream, counter = data.valid, data.counter
    if stream is None or counter is None:
        return None
    available = len(stream) - 1
    window, device = min(window, available), next(model.parameters()).device
    setting = Setting(
        window=window,
        stride=None if stride is None else min(stride, window),
        tokens=min(tokens or available, available),
        batch=batch,
        workers=1 if isinstance(model, CompiledTail) else None,
        autocast=device.type == "cuda" and multiplies_bfloat16(device),
        rank=ranks.rank,
        world_size=ranks.size,
    )
    try:
        part = ranks.together(lambda: scoring.score(model, stream, counter, setting))
    except EvalError as error:
        raise PackerError(f"validation: {error}") from None
    return gathered(part, scoring.combine)


class Validation:
    """Scores of weights at the end of a run, by one model that is made and compiled once.

    Every rank calls the same methods, and each returns the same on all.
    """

    def __init__(
        self, config: TrainConfig, data: TrainingData, device: torch.device, ranks: Ranks = ALONE
    ) -> None:
        self.data, self.ranks, self.run = data, ranks, config.run
        self.window = config.batch.sequence
        with torch.device("meta"):  # nothing is drawn only to be replaced
            model = GPT(config.model)
        self.model = model.to_empty(device=device).eval()
        self.batch = max(1, BATCH_TOKENS[device.type] // self.window)
        self.scored: GPT | CompiledTail = self.model
        if compiles(config.run.compile, device):
            shape = self.batch, self.window
            self.scored = CompiledTail(self.model, shape, self.run.stride or self.window)

    def score(self, weights: Mapping[str, Tensor] | None) -> Score | None:
        """Of the first rank's weights, which the others need not have."""
        return self._score(weights, self.run.final_eval_tokens)

    def _score(self, weights: Mapping[str, Tensor] | None, tokens: int) -> Score | None:
        if not self.data.validates:
            return None
        if weights is not None:
            self.model.load_state_dict(weights)
        if self.ranks.size > 1:
            for weight in self.model.state_dict().values():
                torch.distributed.broadcast(weight, 0)
        return validate(
            self.scored,
            self.data,
            self.window,
            tokens,
            stride=self.run.stride or None,
            batch=self.batch,
            ranks=self.ranks,
        )

    @property
    def tokens(self) -> int:
        """That a score is of."""
        available = 0 if self.data.valid is None else len(self.data.valid) - 1
        return min(self.run.final_eval_tokens or available, available)

    def seconds(self, weights: Mapping[str, Tensor]) -> float:
        """What a score will take, by the time of a few batches of it.

        Raises PackerError: the data cannot be scored.
        """
        stride = self.run.stride or self.window
        batches = TIMED_BATCHES * self.ranks.size * worker_count([self.scored], None)
        timed = batches * self.batch * stride
        first = self.window if stride < self.window else 0  # a whole window, scored for the start
        few = min(first + timed, self.tokens)
        self._score(weights, few)  # compiles, and fills caches
        score = self._score(weights, few)
        return 0.0 if score is None else score.seconds * self.tokens / max(few - first, 1)
