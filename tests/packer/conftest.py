"""Small models and what the commands make of them, shared by the tests of this folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import sentencepiece
import torch
from click.testing import CliRunner, Result

from packer import api
from packer.cli import main

CAP = 12_000
Weights = dict[str, torch.Tensor]


def make_weights(seed: int = 0) -> Weights:
    """A two-block model of about 13,000 weights: tied head, buffers, a scalar, an empty tensor."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> torch.Tensor:
        return 0.1 * torch.randn(*shape, generator=generator)

    weights = {"tok_emb.weight": normal(64, 32)}
    for block in range(2):
        weights[f"blocks.{block}.attn_scale"] = normal(32) + 1
        weights[f"blocks.{block}.attn.c_k.weight"] = normal(32, 32)
        weights[f"blocks.{block}.mlp.fc.weight"] = normal(64, 32)
        weights[f"blocks.{block}.mlp.proj.weight"] = normal(32, 64)
    weights["late.half"] = normal(16, 32).half()
    weights["step"] = torch.tensor(7)
    weights["mask"] = torch.tensor([True, False, True])
    weights["empty"] = torch.zeros(0, 4)
    weights["lm_head.weight"] = weights["tok_emb.weight"]
    return weights


@pytest.fixture(scope="session")
def weights() -> Weights:
    return make_weights()


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory, weights: Weights) -> Path:
    """A folder with model.pt, candidates.json, plan.json and model.pack; nobody writes there."""
    folder = tmp_path_factory.mktemp("made")
    checkpoint = folder / "model.pt"
    torch.save(weights, checkpoint)
    api.measure(checkpoint, out=folder / "candidates.json")
    plan = api.plan(folder / "candidates.json", CAP, out=folder / "plan.json")
    api.pack(checkpoint, plan, out=folder / "model.pack")
    return folder


@pytest.fixture(scope="session")
def train_bpe() -> Callable[[Path, int], None]:
    """Writes tSIZE.model beside a text: a sentencepiece tokenizer of it with so many pieces."""

    def train(text: Path, size: int) -> None:
        sentencepiece.SentencePieceTrainer.train(
            input=str(text),
            model_prefix=str(text.with_name(f"t{size}")),
            vocab_size=size,
            model_type="bpe",
            minloglevel=2,
            num_threads=1,
        )

    return train


Run = Callable[..., Result]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs a command line inside an empty folder; an exception that escapes fails the test."""
    monkeypatch.chdir(tmp_path)

    def invoke(*arguments: object) -> Result:
        result = CliRunner().invoke(main, [str(argument) for argument in arguments])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return invoke
