"""Continuations: the same draws every time, and only pieces that exist."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from packer.eval.errors import ScoreError
from packer.eval.sample import continue_text, sample_windows
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

    with pytest.raises(ScoreError, match="returns only losses"):
        continue_text(Losses(), Letters(), "ab")


class Remembering:
    """Logits by the last two tokens; keeps the one before in `past`, as a test of who is asked."""

    def __init__(self) -> None:
        self.table = torch.randn(11, 11, 11, generator=torch.Generator().manual_seed(0))
        self.asked = 0

    def start(self, length: int) -> dict[str, Tensor]:
        assert length == 12
        return {"before": torch.zeros(0, dtype=torch.int64)}

    def next_logits(self, tokens: Tensor, past: dict[str, Tensor]) -> Tensor:
        self.asked += 1
        before = past["before"] if tokens.size(1) > 1 else torch.zeros_like(tokens[:, 0])
        past["before"] = tokens[:, -1].clone()
        return self.table[before, tokens[:, -1]]

    def __call__(self, tokens: Tensor) -> Tensor:
        return self.table[torch.nn.functional.pad(tokens[:, :-1], (1, 0)), tokens]


def test_what_is_kept_changes_nothing_in_the_text() -> None:
    model = Remembering()
    settings = {"windows": 5, "window": 12, "start": 10, "vocab_size": 11, "batch": 3}
    kept = list(sample_windows(model, **settings))
    anew = list(sample_windows(lambda tokens: model(tokens), **settings))
    assert [len(part) for part in kept] == [3, 2] and model.asked == 2 * 11
    assert all(torch.equal(one, other) for one, other in zip(kept, anew, strict=True))
    assert all(bool((part[:, 0] == 10).all()) for part in kept)


def test_windows_are_told_as_they_are_written(tiny: Make) -> None:
    told: list[tuple[int, int]] = []
    settings = {"windows": 4, "window": 6, "start": 10, "vocab_size": 11, "batch": 3}
    parts = list(
        sample_windows(tiny(0), **settings, progress=lambda done, all: told.append((done, all)))
    )
    assert told[0] == (6, 24) and told[-1] == (24, 24) and told == sorted(told)
    assert len({tuple(window.tolist()) for part in parts for window in part}) == 4
