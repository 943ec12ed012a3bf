"""A continuation of a prompt, so that a person sees what a difference in bits per byte means."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from .batches import Progress, ignore
from .errors import ScoreError
from .forward import (
    AnyModel,
    NextLogits,
    TokenNats,
    are_sound,
    device_of,
    following_logits,
    scoring,
    tail_logits,
)

# Windows written side by side, where what was computed of them is kept and where it is not.
BATCH_KEPT, BATCH_ANEW = 64, 16


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
        tokenizer: a sentencepiece processor; its BOS, if it has one, starts the prompt.
        temperature: 0 takes the likeliest token each time.
        seed: equal seeds give equal text on one machine; different models see the same draws.
        context: tokens the model sees at once, at most.

    Raises ScoreError: a model that returns only losses, or values that are not finite, or an empty
    prompt where no BOS could stand for it.
    """
    if isinstance(model, TokenNats):
        raise ScoreError("this model returns only losses; it cannot continue a text")
    bos, size = tokenizer.bos_id(), tokenizer.vocab_size()
    tokens = [*([bos] if bos >= 0 else []), *tokenizer.encode(prompt)]
    if not tokens:
        raise ScoreError("the tokenizer has no BOS piece: give a prompt of at least one letter")
    generator = torch.Generator().manual_seed(seed)
    device = device_of(model)
    for _ in range(count):
        window = torch.tensor([tokens[-context:]], device=device)
        with scoring([model], autocast=device.type == "cuda"):
            # Where the vocabulary was rounded up, the last logits stand for no piece.
            logits = tail_logits(model, window, 1, size)[0, -1, :size].float().cpu()
        if not are_sound(logits):
            raise ScoreError("the model's logits are not finite; it cannot continue a text")
        if temperature == 0:
            tokens.append(int(logits.argmax()))
            continue
        probabilities = torch.softmax(logits / temperature, dim=-1)
        tokens.append(int(torch.multinomial(probabilities, 1, generator=generator)))
    return str(tokenizer.decode(tokens))


def sample_windows(
    model: AnyModel,
    *,
    windows: int,
    window: int,
    start: int | None,
    vocab_size: int,
    temperature: float = 0.8,
    seed: int = 0,
    batch: int | None = None,
    progress: Progress = ignore,
) -> Iterator[torch.Tensor]:
    """Yield int64 [at most batch, window], `windows` in all, of text by the model itself.

    A model of `NextLogits` computes every position once, any other its whole window anew.

    Args:
        start: the token that every window begins with, such as BOS; None draws each at random.
        vocab_size: pieces of the tokenizer; where the vocabulary was rounded up, the last logits
            stand for none.
        seed: equal seeds give equal text on one machine, for one `batch`.
        batch: windows side by side; None chooses.
        progress: called with the number of tokens written and the total.

    Raises ScoreError: a model that returns only losses, or values that are not finite.
    """
    if isinstance(model, TokenNats):
        raise ScoreError("this model returns only losses; it cannot write a text")
    if batch is None:
        batch = BATCH_KEPT if isinstance(model, NextLogits) else BATCH_ANEW
    generator = torch.Generator(device_of(model)).manual_seed(seed)
    for first in range(0, windows, batch):
        shape, device = (min(batch, windows - first), window), device_of(model)
        tokens = torch.full(shape, 0 if start is None else start, device=device)
        if start is None:
            tokens[:, 0] = torch.randint(vocab_size, shape[:1], generator=generator, device=device)
        for at in _written(model, tokens, vocab_size, temperature, generator):
            progress(first * window + len(tokens) * at, windows * window)
        yield tokens


def _written(
    model: AnyModel,
    tokens: torch.Tensor,
    vocab_size: int,
    temperature: float,
    generator: torch.Generator,
) -> Iterator[int]:
    """Draws all tokens [batch, window] but the first ones, in place; yields how many of each window
    there are. Raises ScoreError.
    """
    past = model.start(tokens.size(1)) if isinstance(model, NextLogits) else None
    with scoring([model], autocast=tokens.is_cuda):
        for at in range(1, tokens.size(1)):
            seen = tokens[:, :at].contiguous()  # other people's models take views of it
            logits = following_logits(model, seen, past, vocab_size)[:, :vocab_size]
            if not are_sound(logits):
                raise ScoreError("the model's logits are not finite; it cannot write a text")
            probabilities = torch.softmax(logits / temperature, dim=-1)
            drawn = torch.multinomial(probabilities, 1, generator=generator)
            tokens[:, at] = drawn.squeeze(1)
            yield at + 1
