"""Labels sampled from a model's own predictions, the same for any number of processes."""

from __future__ import annotations

import torch
from torch import Tensor

NUMBERS_AT_ONCE = 1 << 20  # more take memory from the system anew each time


class SampledLabels:
    """Samples labels for one batch after the other, as one process that reads all of them would.

    For the batches of other processes, the same number of random numbers is drawn and discarded.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self.generator = torch.Generator(device).manual_seed(seed)

    def pass_over(self, tokens: int) -> None:
        """The next batch, of this many tokens, belongs to another process."""
        uniform(tokens, self.generator)

    def gradient(self, logits: Tensor) -> Tensor:
        """At logits [windows, time, vocab], of the summed nats of labels sampled from them."""
        return gradient_of_sampled_labels(logits, self.generator)


def uniform(tokens: int, generator: torch.Generator) -> Tensor:
    """One random number a token, float64 [tokens]."""
    return torch.rand(tokens, dtype=torch.float64, generator=generator, device=generator.device)


def gradient_of_sampled_labels(logits: Tensor, generator: torch.Generator) -> Tensor:
    """The gradient at logits [windows, time, vocab] of the summed nats of labels sampled from them:
    probabilities less one at the label, the first at which their sum exceeds a random number.
    """
    with torch.no_grad():
        gradient = torch.empty(logits.shape, device=logits.device)
        flat, draws = gradient.flatten(0, 1), uniform(logits.shape[:-1].numel(), generator)
        count = max(1, NUMBERS_AT_ONCE // logits.size(-1))
        for at in range(0, len(flat), count):
            part = flat[at : at + count]
            torch.softmax(logits.flatten(0, 1)[at : at + count], -1, out=part)
            sums = part.cumsum(-1, dtype=torch.float64)
            draw = draws[at : at + count, None] * sums[:, -1:]
            labels = torch.searchsorted(sums, draw, right=True)
            part.scatter_add_(1, labels, torch.full_like(part[:, :1], -1.0))
        return gradient
