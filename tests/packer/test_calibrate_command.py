"""`packer calibrate` as its users meet it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import torch
from packer.train.config import settings_of
from packer.train.model import GPT, GPTConfig

from packer.checkpoint import read_checkpoint
from packer.curvature_file import read_curvature

CONFIG = GPTConfig(64, 2, 32, 4, 2, rope_train_length=64, embedding_init_std=0.5)
BANKED = """
import torch
import torch.nn.functional as F
from torch import nn

class Banked(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(64, 16)
        self.bank = nn.Parameter(torch.zeros(2, 64, 16))
        self.odd = nn.Parameter(torch.ones(64, 64))
    def forward(self, ids, targets):
        x = self.embed(ids)
        hidden = F.linear(x, self.bank[0].to(x.dtype)).relu()
        logits = F.linear(hidden @ self.bank[1], self.embed.weight) * self.odd.mean()
        return F.cross_entropy(logits.view(-1, 64), targets.view(-1))
"""


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """model.pt of the companion family, banked.pt of somebody's, text, shards and tokenizers."""
    folder = tmp_path_factory.mktemp("lab")
    torch.manual_seed(0)
    model = GPT(CONFIG)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    torch.save(model.state_dict(), folder / "model.pt")
    (folder / "model.config.json").write_text(json.dumps(settings_of(CONFIG)))
    (folder / "banked.py").write_text(BANKED)
    shapes = {"embed.weight": (64, 16), "bank": (2, 64, 16), "odd": (64, 64)}
    torch.save({name: 0.3 * torch.randn(s) for name, s in shapes.items()}, folder / "banked.pt")
    words = ["lorem", "ipsum", "dolor", "sit", "amet", "qui", "vexat", "bonum", "jazz", "hyphen"]
    chosen = np.random.default_rng(0).choice(words, 4000)
    (folder / "train.txt").write_text("\n".join(" ".join(chosen[i::400]) for i in range(400)))
    for size in (56, 64):
        sentencepiece.SentencePieceTrainer.train(
            input=str(folder / "train.txt"),
            model_prefix=str(folder / f"t{size}"),
            vocab_size=size,
            model_type="bpe",
            minloglevel=2,
            num_threads=1,
        )
    return folder


def test_a_text_gives_curvature_of_every_tensor(lab: Path, run) -> None:
    text = ("--data", lab / "train.txt", "--tokenizer", lab / "t64.model")
    amount = ("--tokens", 2048, "--window", 64)
    result = run("calibrate", lab / "model.pt", *text, *amount, "-o", "c.safetensors")
    assert result.exit_code == 0, result.output
    assert "2,048 tokens of" in result.stdout and " s\n" in result.stdout
    checkpoint = read_checkpoint(lab / "model.pt")
    found = read_curvature("c.safetensors", checkpoint)
    assert set(found.by_tensor) == set(checkpoint.tensors)
    assert found.vocab_size == 64 and found.bytes_per_token and 1 < found.bytes_per_token < 9
    again = run("calibrate", lab / "model.pt", *text, *amount, "-o", "again", "--json")
    value = json.loads(again.stdout)
    assert value["sha256"] == found.sha256 and value["tokens"] == 2048
    assert value["seconds"] > 0 and str(lab / "train.txt") in value["source"]


def test_somebodys_banked_model_with_a_loss_alone(lab: Path, run) -> None:
    result = run(
        "calibrate", lab / "banked.pt", "--model", f"{lab / 'banked.py'}:Banked", "--data",
        lab / "train.txt", "--tokenizer", lab / "t64.model", "--tokens", 512, "--window", 32,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "odd: no linear map or lookup was seen to use it" in result.stderr
    found = read_curvature("curvature.safetensors", read_checkpoint(lab / "banked.pt"))
    assert found.by_tensor["bank"].hessian.shape == (2, 16, 16)
    assert found.by_tensor["embed.weight"].lookup is not None


def test_the_model_may_write_the_text_itself(lab: Path, run) -> None:
    own = ("--self-generate", 96, "--window", 32, "--tokenizer", lab / "t64.model", "--json")
    values = []
    for seed in (0, 0, 1):
        result = run("calibrate", lab / "model.pt", *own, "--seed", seed)
        assert result.exit_code == 0, result.output
        values.append(json.loads(result.stdout))
    assert values[0]["sha256"] == values[1]["sha256"] != values[2]["sha256"]
    assert values[0]["tokens"] == 96 and "by the model itself" in values[0]["source"]


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        ([], 2, "give --data, or --self-generate"),
        (["--data", "train.txt", "--self-generate", 64], 2, "give --data, or --self-generate"),
        (["--self-generate", 64], 2, "needs the sentencepiece model"),
        (["--data", "train.txt", "--tokenizer", "t56.model"], 1, "vocabulary of 64"),
        (["--data", "train.txt"], 1, "name its sentencepiece model with --tokenizer"),
        (["--data", "no.txt", "--tokenizer", "t64.model"], 1, "no such data"),
        (
            ["--data", "train.txt", "--tokenizer", "t64.model", "--tokens", 8],
            1,
            "a window of 512 tokens is longer than the 8 tokens",
        ),
        (
            ["--data", "train.txt", "--tokenizer", "t64.model", "--seconds", "1e-9"],
            1,
            "was read within 1e-09 seconds; allow more",
        ),
        (
            ["--data", "train.txt", "--tokenizer", "t64.model", "--model-config", "model.pt"],
            2,
            "--model-config goes with --model",
        ),
    ],
)
def test_what_cannot_be_is_refused(
    lab: Path, run, options: list[object], code: int, said: str
) -> None:
    files = ("train.txt", "t56.model", "t64.model", "no.txt", "model.pt")
    given = [lab / str(option) if option in files else option for option in options]
    result = run("calibrate", lab / "model.pt", *given)
    assert result.exit_code == code, result.output
    assert said in " ".join(result.stderr.split()), result.stderr
    assert not Path("curvature.safetensors").exists()


def test_few_tokens_are_warned_of(lab: Path, run) -> None:
    text = ("--data", lab / "train.txt", "--tokenizer", lab / "t64.model")
    result = run("calibrate", lab / "model.pt", *text, "--tokens", 32, "--window", 32)
    assert result.exit_code == 0
    assert "rank 32 at most" in result.stderr
