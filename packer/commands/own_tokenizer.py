"""The tokenizer next to a model, for commands that were given no other."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from packer.commands.options.scoring import ScoredText
from packer.commands.options.text import TextOptions

Text = TypeVar("Text", ScoredText, TextOptions)


def with_own_tokenizer(text: Text, sources: Sequence[str]) -> Text:
    """The text with the tokenizer of the first source that has one, if nothing else is named.

    sources: checkpoints and artifacts. Raises PackerError: an artifact is damaged.
    """
    if text.tokenizer is not None or text.bytes_table is not None:
        return text
    from packer.huggingface.tokenizer import tokenizer_beside

    tokenizer = tokenizer_beside(sources)
    return text if tokenizer is None else replace(text, tokenizer=tokenizer)
