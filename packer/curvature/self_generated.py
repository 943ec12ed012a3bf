"""How much text a model writes to be calibrated on, and how long that will take.

Text sampled at temperature 1 has the distribution whose Fisher information is wanted, and token ids
are enough: no tokenizer is needed. On a trained model it calibrates as well as a text of its
training does (docs/methods.md).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from packer.curvature.windows import token_batches
from packer.eval.foreign_forward import named_module
from packer.eval.forward import AnyModel, NextLogits, device_of, scoring, tail_logits
from packer.eval.sample import sample_windows

TEMPERATURE = 1.0
# In forward passes a token, by processor time on a model of 4 M weights: calibrating, measuring
# damage to fit predictions to, and writing where earlier positions are kept.
CALIBRATING, FITTING, CACHED_STEP = 4.0, 6.0, 2.0
SECONDS = {"cpu": 4e-11, "cuda": 4e-13}  # of a forward pass, by weight and token; one core
WARM_UP = 8  # tokens


@dataclass(frozen=True)
class TextSize:
    """windows: to calibrate on. window: tokens in each."""

    windows: int
    window: int

    @property
    def tokens(self) -> int:
        return self.windows * self.window


# With the windows held out to fit damage on, 64 are written side by side.
KEPT = TextSize(53, 256)
# A model that keeps nothing computes a window anew for each of its tokens.
ANEW = TextSize(384, 32)


def size_for(model: AnyModel) -> TextSize:
    """The amount that costs little and gains most, in windows that the model allows."""
    size = KEPT if isinstance(model, NextLogits) else ANEW
    window = min(size.window, getattr(model, "longest_window", None) or size.window)
    return TextSize(size.tokens // window, window)


def vocabulary_of(model: AnyModel) -> int:
    """The width of the model's logits. Raises ScoreError: it gives none."""
    tokens = torch.zeros(1, WARM_UP, dtype=torch.long, device=device_of(model))
    with scoring([model], autocast=False):
        return tail_logits(model, tokens, 1, None).size(-1)


def sample_batches(model: AnyModel, seed: int = 0) -> list[Tensor]:
    """Text to calibrate on, int64 [windows, window], every window from a random first token.

    Raises ScoreError: the model only returns losses, or values that are not finite.
    """
    size = size_for(model)
    parts = sample_windows(
        model,
        windows=size.windows,
        window=size.window,
        start=None,
        vocab_size=vocabulary_of(model),
        temperature=TEMPERATURE,
        seed=seed,
    )
    tokens = torch.cat(list(parts)).flatten().cpu().numpy()
    return token_batches(tokens, size.window, size.tokens, device_of(model))


def estimated_seconds(model: AnyModel, size: TextSize) -> float:
    """What writing, calibrating and fitting take on an idle machine.

    From the number of weights, and not from a trial, so that what follows from it repeats.
    """
    module = named_module(model)
    weights = 0 if module is None else sum(one.numel() for one in module.parameters())
    writing = CACHED_STEP if isinstance(model, NextLogits) else size.window / 2
    device = device_of(model).type
    per_forward = SECONDS.get(device, SECONDS["cuda"])
    if device == "cpu":
        per_forward /= torch.get_num_threads()
    return per_forward * weights * size.tokens * (writing + CALIBRATING + FITTING)
