"""The artifact's size while training goes on, from samples through the real coder.

A share of the training time is spent on it: each look encodes as many tensors as that share has
paid for, one after the other, and the estimate adds up the latest size of each. Of a large tensor
some rows are encoded, evenly spaced, and count for all.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import replace

import torch
from packer.quantizers.choice import Choice, parse_choice
from packer.quantizers.fake_quant import quantize_held, stored_scale
from packer.quantizers.formats import LowRank, Passthrough, Stepped, row_shape
from packer.quantizers.quantize import quantizable, quantize
from torch import Tensor

from packer.artifact.encoder import encode_tensor, header_bytes
from packer.checkpoint.checkpoint import from_state_dict
from packer.planning.measure import exact_choice, header_of, tensor_infos

SAMPLE_ELEMENTS = 32_768
HEAD_START = 0.3  # seconds, so that a run of minutes has an estimate early on
KEEP = parse_choice("fp16")


class SizeWatch:
    """choices: what packing would choose; tensors without one count as fp16. share: of the time.

    limit: of artifact and `code_bytes` together; 0 for none.
    """

    def __init__(
        self,
        choices: Mapping[str, Choice],
        weights: Mapping[str, Tensor],
        share: float,
        *,
        limit: int = 0,
        code_bytes: int = 0,
    ) -> None:
        self.share, self.limit, self.code_bytes = share, limit, code_bytes
        self.is_over = False
        self.spent = 0.0
        self.choices = {name: _choice(choices, name, weight) for name, weight in weights.items()}
        self.elements = {name: weight.numel() for name, weight in weights.items()}
        # Each look goes on from here; large strides mix the kinds of tensors from the beginning.
        self.queue = sorted(self.choices)
        self.sizes: dict[str, float] = {}
        checkpoint = from_state_dict({name: weight.cpu() for name, weight in weights.items()})
        self.header = header_bytes(header_of(tensor_infos(checkpoint), checkpoint.ties, {}))

    def look(self, weights: Mapping[str, Tensor], training_seconds: float) -> None:
        """Encode what the share of `training_seconds` pays for, at most every tensor once."""
        if not self.share:
            return
        allowed = max(HEAD_START, self.share * training_seconds)
        started = time.perf_counter()
        for _ in range(len(self.queue)):
            if self.spent + time.perf_counter() - started >= allowed:
                break
            name = self.queue.pop(0)
            self.queue.append(name)
            self.sizes[name] = sampled_size(weights[name], self.choices[name])
        self.spent += time.perf_counter() - started

    @property
    def estimate(self) -> int | None:
        """Bytes of the artifact; None before the first look. Tensors not yet seen are taken to
        need as many bits per weight as those seen under the same choice, else as all seen."""
        if not self.sizes:
            return None
        total = sum(self.sizes.values())
        for name in set(self.choices) - set(self.sizes):
            alike = [n for n in self.sizes if self.choices[n] == self.choices[name]]
            seen = alike or list(self.sizes)
            rate = sum(self.sizes[n] for n in seen) / sum(self.elements[n] for n in seen)
            total += rate * self.elements[name]
        return round(total) + self.header

    def news(self) -> str | None:
        """A message when the estimate crosses its limit in either direction, else None."""
        if not self.limit or self.estimate is None:
            return None
        total = self.estimate + self.code_bytes
        if (total > self.limit) == self.is_over:
            return None
        self.is_over = total > self.limit
        if not self.is_over:
            return f"the predicted size of {total:,} bytes is within {self.limit:,} again"
        return (
            f"warning: the predicted size of {total:,} bytes is over {self.limit:,} under the "
            "formats trained for; more weight decay or coarser formats would shrink it"
        )


def _choice(choices: Mapping[str, Choice], name: str, weight: Tensor) -> Choice:
    """What the tensor's choice is without curvature: rounded to nearest, uncorrected, one step."""
    if not quantizable(weight):
        return exact_choice(weight.dtype)
    choice = choices.get(name, KEEP)
    if isinstance(choice.format, Stepped):
        return parse_choice(f"int8.tensor+kstd@{127 * (choice.step or 1.0):g}")
    if isinstance(choice.format, LowRank):
        choice = replace(choice, format=choice.format.base)
    return replace(choice, rounding="nearest")


@torch.no_grad()
def sampled_size(weight: Tensor, choice: Choice) -> float:
    """Bytes of the tensor's block, from evenly spaced rows of about `SAMPLE_ELEMENTS` weights."""
    rows, columns = row_shape(tuple(weight.shape))
    every = min(max(1, weight.numel() // SAMPLE_ELEMENTS), max(1, rows // 8))
    whole = weight.detach()
    if every == 1:
        return encode_tensor(quantize(whole.cpu(), choice), choice.coder).size_bytes
    sample = whole.reshape(rows, columns)[::every].cpu()
    assert not isinstance(choice.format, Stepped)  # see `_choice`
    if isinstance(choice.format, Passthrough) or choice.format.axis == "row":
        quantized = quantize(sample, choice)
    else:  # the one scale is that of all rows
        quantized = quantize_held(sample, choice, stored_scale(whole, choice).cpu())
    size = encode_tensor(quantized, choice.coder).size_bytes
    return size * weight.numel() / sample.numel()
