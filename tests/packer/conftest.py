"""Small models and what the commands make of them, shared by the tests of this folder."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

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


SIZES = {
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
}
GPT2 = {"vocab_size": 300, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
# Two layers of what people have; class of the configuration, what differs from `SIZES`.
ARCHITECTURES: dict[str, tuple[str, dict[str, object]]] = {
    "llama": ("LlamaConfig", {**SIZES, "tie_word_embeddings": True}),
    "qwen2": ("Qwen2Config", SIZES),
    "qwen3": ("Qwen3Config", {**SIZES, "head_dim": 8}),
    "gpt2": ("GPT2Config", {**GPT2, "bos_token_id": 0, "eos_token_id": 1}),
    "gpt-neox": ("GPTNeoXConfig", SIZES),
    "mistral": ("MistralConfig", SIZES),
    "gemma": ("GemmaConfig", {**SIZES, "head_dim": 8, "pad_token_id": None}),
    "mixtral": ("MixtralConfig", {**SIZES, "num_local_experts": 4}),
    "qwen2-moe": (
        "Qwen2MoeConfig",
        {
            **SIZES,
            "num_experts": 4,
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 32,
        },
    ),
}
TEXT = "The cat sat on the mat, and the hat was on the cat; naïve Zoë paid 5 € for it.\n" * 60


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A folder of a random model of one of `ARCHITECTURES`, with a tokenizer; nobody writes there.

    Skips where transformers is not installed.
    """
    transformers = pytest.importorskip("transformers")
    made: dict[str, Path] = {}

    def make(name: str) -> Path:
        if name not in made:
            made[name] = tmp_path_factory.mktemp("models") / name
            kind, settings = ARCHITECTURES[name]
            with torch.random.fork_rng():
                torch.manual_seed(0)
                configuration = getattr(transformers, kind)(**settings)
                model = transformers.AutoModelForCausalLM.from_config(configuration)
            for parameter in model.parameters():
                parameter.data *= 3 if parameter.dim() > 1 else 1  # far from uniform predictions
            model.save_pretrained(made[name])
            byte_tokenizer().save(str(made[name] / "tokenizer.json"))
        return made[name]

    return make


def byte_tokenizer() -> Any:
    """A byte-level tokenizer of the library tokenizers with 300 tokens."""
    import tokenizers

    kinds = tokenizers.pre_tokenizers.ByteLevel
    made = tokenizers.Tokenizer(tokenizers.models.BPE())
    made.pre_tokenizer = kinds(add_prefix_space=False)
    made.decoder = tokenizers.decoders.ByteLevel()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=["<s>", "</s>"],
        initial_alphabet=kinds.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator([TEXT], trainer)
    return made


@pytest.fixture
def text(tmp_path: Path) -> Path:
    """Some text of letters of one to three bytes."""
    path = tmp_path / "text.txt"
    path.write_text(TEXT, "utf-8")
    return path
