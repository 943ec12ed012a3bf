"""A continuation of a prompt, so that a person sees what a difference in bits per byte means."""

from __future__ import annotations

from typing import Any

import torch

from .errors import ScoreError
from .forward import AnyModel, TokenNats, device_of, scoring, tail_logits


def continue_text(
    model: AnyModel,
    tokenizer: Any,
    prompt: str,
    *,
    count: int = 60,
    temperature: float = 0.8,
    seed: int = 0,
    context: int = 1024,
) -> str:
    """The prompt and `count` sampled tokens after it, decoded.

    Args:
        tokenizer: a sentencepiece processor; its BOS starts the prompt.
        temperature: 0 takes the likeliest token each time.
        seed: equal seeds give equal text on one machine; different models see the same draws.
        context: tokens the model sees at once, at most.

    Raises:
        ScoreError: a model that only tells losses.
    """
    if isinstance(model, TokenNats):
        raise ScoreError("this model only tells losses; it cannot continue a text")
    tokens = [tokenizer.bos_id(), *tokenizer.encode(prompt)]
    generator = torch.Generator().manual_seed(seed)
    device = device_of(model)
    for _ in range(count):
        window = torch.tensor([tokens[-context:]], device=device)
        with scoring([model], autocast=False):
            logits = tail_logits(model, window, 1, tokenizer.vocab_size())[0, -1].float().cpu()
        if temperature == 0:
            tokens.append(int(logits.argmax()))
            continue
        probabilities = torch.softmax(logits / temperature, dim=-1)
        tokens.append(int(torch.multinomial(probabilities, 1, generator=generator)))
    return str(tokenizer.decode(tokens))
