"""On a trained model: the numbers that others measured, and that full GPTQ is worth its trouble."""

from __future__ import annotations

from pathlib import Path

import brotli
import pytest
import torch
from packer.eval.batches import Setting
from packer.eval.compare import divergence
from packer.quantizers.choice import parse_choice
from packer.quantizers.curvature import Curvature
from packer.quantizers.formats import QuantizedTensor
from packer.quantizers.quantize import dequantize, quantize
from packer.train.config import infer_config, read_config
from packer.train.model import GPT

from packer.artifact.encoder import encode_tensor
from packer.evaluation import open_data

LEADER = "int6.row+kstd@12.85+gptq"
NEAREST = "int6.row+kstd@12.85"
GPTQ_LITE = "int6.row+percentile-matrix+reach@8"
Weights = dict[str, torch.Tensor]


def model_of(shared: Path, weights: Weights) -> GPT:
    settings = read_config(str(shared / "checkpoints" / "ref6x256.config.json"))
    model = GPT(infer_config(weights).complete(settings))
    model.load_state_dict(weights)
    return model.eval()


def second_moments(model: GPT, names: list[str], tokens: torch.Tensor) -> dict[str, Curvature]:
    """Mean of x xᵀ over tokens [windows, time], of every linear map named; by hooks, in float64."""
    sums = dict.fromkeys(names, torch.zeros(()))

    def hook(name: str):
        def add(_module: object, inputs: tuple[torch.Tensor], _output: object) -> None:
            x = inputs[0].flatten(0, 1).double()
            sums[name] = sums[name] + x.T @ x

        return add

    hooks = [
        model.get_submodule(n.removesuffix(".weight")).register_forward_hook(hook(n)) for n in names
    ]
    with torch.inference_mode():
        for batch in tokens.split(4):
            model(batch)
    for one in hooks:
        one.remove()
    count = tokens.numel()
    return {name: Curvature((total / count).float(), None, count) for name, total in sums.items()}


@pytest.fixture(scope="module")
def quantized(shared: Path) -> dict[str, dict[str, QuantizedTensor]]:
    """The 36 block matrices under each choice, calibrated on 64 × 512 tokens of a training text."""
    weights = torch.load(shared / "checkpoints" / "ref6x256.pt", weights_only=True)
    names = [n for n, w in weights.items() if n.startswith("blocks.") and w.numel() > 1 << 14]
    assert len(names) == 36 and sum(weights[name].numel() for name in names) == 3_538_944
    data = open_data(
        [shared / "corpus" / "train" / "jack_sheppard.txt"],
        tokenizer=shared / "tokenizers" / "fineweb_1024_bpe.model",
    )
    tokens = torch.tensor(data.stream[: 64 * 512], dtype=torch.int64).reshape(64, 512)
    curvature = second_moments(model_of(shared, weights), names, tokens)
    return {
        text: {n: quantize(weights[n], parse_choice(text), curvature[n]) for n in names}
        for text in (LEADER, NEAREST, GPTQ_LITE)
    }


@pytest.fixture(scope="module")
def damage(shared: Path, quantized: dict[str, dict[str, QuantizedTensor]]) -> dict[str, float]:
    """KL in bits per byte over 128 × 256 tokens of a book that the model never saw."""
    weights = torch.load(shared / "checkpoints" / "ref6x256.pt", weights_only=True)
    data = open_data(
        [shared / "corpus" / "valid" / "sherlock.txt"],
        tokenizer=shared / "tokenizers" / "fineweb_1024_bpe.model",
    )
    models = [
        model_of(shared, {**weights, **{name: dequantize(q) for name, q in one.items()}})
        for one in quantized.values()
    ]
    setting = Setting(256, tokens=128 * 256)
    found = divergence(model_of(shared, weights), models, data.stream, data.counter, setting)
    return {text: one.kl_bits_per_byte for text, one in zip(quantized, found, strict=True)}


def coded_bytes(tensors: dict[str, QuantizedTensor]) -> int:
    return sum(encode_tensor(one).size_bytes for one in tensors.values())


def test_the_leaders_recipe_weighs_and_loses_what_others_measured(quantized, damage) -> None:
    tensors = quantized[LEADER]
    codes = b"".join(one.codes.numpy().tobytes() for one in tensors.values())
    scales = sum(one.side["scale"].nbytes for one in tensors.values())
    coded = len(brotli.compress(codes, quality=11, lgwin=24))
    assert 8 * (coded + scales) / 3_538_944 == pytest.approx(3.42, rel=0.01)
    assert damage[LEADER] == pytest.approx(0.0047, rel=0.07)


def test_full_gptq_loses_half_of_what_nearest_rounding_and_gptq_lite_lose(
    quantized, damage
) -> None:
    leader = coded_bytes(quantized[LEADER])
    for other in (NEAREST, GPTQ_LITE):
        assert coded_bytes(quantized[other]) == pytest.approx(leader, rel=0.02)
        assert damage[LEADER] < 0.55 * damage[other]
