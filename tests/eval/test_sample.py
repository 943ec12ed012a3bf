"""Continuations: the same draws every time, and only pieces that exist."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from packer.eval.errors import ScoreError
from packer.eval.sample import continue_text
from torch import Tensor

Make = Callable[..., torch.nn.Module]


class Letters:
    """A tokenizer of ten letters and, at 10, a BOS that decodes to nothing."""

    def __init__(self, bos: int = 10) -> None:
        self.bos = bos

    def bos_id(self) -> int:
        return self.bos

    def vocab_size(self) -> int:
        return 11

    def encode(self, text: str) -> list[int]:
        return ["abcdefghij".index(letter) for letter in text]

    def decode(self, tokens: list[int]) -> str:
        assert all(0 <= token < 11 for token in tokens)
        return "".join("abcdefghij"[token] for token in tokens if token < 10)


def test_equal_seeds_give_equal_text(tiny: Make) -> None:
    def text(seed: int, model: int = 0) -> str:
        return continue_text(tiny(model), Letters(), "abc", count=40, seed=seed)

    assert text(0) == text(0)
    assert len({text(0), text(1), text(0, model=1)}) == 3
    assert text(0).startswith("abc") and len(text(0)) > 20


def test_temperature_zero_takes_the_likeliest(tiny: Make) -> None:
    model = tiny(3)
    tokens = [10, 0]
    with torch.no_grad():
        for _ in range(12):
            tokens.append(int(model(torch.tensor([tokens]))[0, -1].argmax()))
    found = continue_text(model, Letters(), "a", count=12, temperature=0)
    assert found == Letters().decode(tokens)
    assert found == continue_text(model, Letters(), "a", count=12, temperature=0, seed=5)


def test_the_model_sees_no_more_than_its_context() -> None:
    lengths: list[int] = []

    def model(tokens: Tensor) -> Tensor:
        lengths.append(tokens.size(1))
        return torch.zeros(*tokens.shape, 11)

    continue_text(model, Letters(), "abc", count=6, context=5)
    assert lengths == [4, 5, 5, 5, 5, 5]


def test_pieces_beyond_the_vocabulary_are_never_drawn() -> None:
    def model(tokens: Tensor) -> Tensor:
        logits = torch.zeros(*tokens.shape, 128)  # rounded up for speed
        logits[..., 11:] = 50
        return logits

    assert len(continue_text(model, Letters(), "ab", count=30)) > 10
    assert continue_text(model, Letters(), "ab", count=3, temperature=0) == "abaaa"


def test_a_tokenizer_without_bos(tiny: Make) -> None:
    assert continue_text(tiny(0), Letters(bos=-1), "ab", count=5).startswith("ab")
    with pytest.raises(ScoreError, match="at least one letter"):
        continue_text(tiny(0), Letters(bos=-1), "")
    assert continue_text(tiny(0), Letters(), "", count=5) != ""


def test_numbers_that_are_not_finite_are_refused() -> None:
    def model(tokens: Tensor) -> Tensor:
        return torch.full((*tokens.shape, 11), float("nan"))

    with pytest.raises(ScoreError, match="not finite"):
        continue_text(model, Letters(), "ab")


def test_a_model_of_losses_is_refused() -> None:
    class Losses:
        def token_nats(self, tokens: Tensor, targets: Tensor, count: int) -> Tensor:
            raise NotImplementedError

    with pytest.raises(ScoreError, match="only tells losses"):
        continue_text(Losses(), Letters(), "ab")
