"""Labels sampled from a model's own predictions, the same for any number of processes."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


class SampledLabels:
    """Samples labels for one batch after the other, as one process that reads all of them would.

    For the batches of other processes, the same number of random numbers is drawn and discarded.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self.generator = torch.Generator(device).manual_seed(seed)
        self._passed: list[int] = []

    def pass_over(self, tokens: int) -> None:
        """The next batch, of this many tokens, belongs to another process."""
        self._passed.append(tokens)

    def catch_up(self, width: int) -> None:
        """Advances the generator past the batches passed over. width: of the model's logits."""
        for tokens in self._passed:
            torch.multinomial(
                torch.ones(tokens, width, device=self.generator.device),
                1,
                generator=self.generator,
            )
        self._passed.clear()

    def nats(self, logits: Tensor) -> Tensor:
        """The summed nats of labels sampled from logits [windows, time, vocab]."""
        self.catch_up(logits.size(-1))
        return nats_of_sampled_labels(logits, self.generator)


def nats_of_sampled_labels(logits: Tensor, generator: torch.Generator) -> Tensor:
    """The summed nats of labels sampled from logits [windows, time, vocab]."""
    flat = logits.flatten(0, 1)
    probabilities = torch.softmax(flat.detach(), dim=-1)
    labels = torch.multinomial(probabilities, 1, generator=generator).squeeze(1)
    return F.cross_entropy(flat, labels, reduction="sum")
