"""The predicted size is near the real one, and costs no more than its share."""

from __future__ import annotations

import time

import pytest
import torch
from packer.quantizers.choice import parse_choice
from packer.quantizers.quantize import quantize
from packer.train import size_watch
from packer.train.model import GPT, GPTConfig
from packer.train.size_watch import SizeWatch, sampled_size

from packer import api
from packer.artifact.encoder import encode_tensor

CONFIG = GPTConfig(
    vocab_size=512, num_layers=3, model_dim=192, num_heads=4, num_kv_heads=2, mlp_mult=3.0
)


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    model = GPT(CONFIG)
    found = {name: weight.detach() for name, weight in model.named_parameters()}
    for number, name in enumerate(sorted(found)):
        if name.endswith("proj.weight"):  # they start at zero
            found[name] = torch.randn(found[name].shape) * 0.02 * (1 + number)
    return found


def test_the_estimate_is_near_what_packing_gives(weights: dict[str, torch.Tensor]) -> None:
    choices = {name: parse_choice("int6.row") for name in weights if name.startswith("blocks.")}
    choices = {name: choice for name, choice in choices.items() if weights[name].dim() == 2}
    watch = SizeWatch(choices, weights, share=0.9)
    assert watch.estimate is None
    watch.look(weights, training_seconds=1000.0)
    assert set(watch.sizes) == set(weights)
    pins = {name: str(choices.get(name, "fp16")) for name in weights}
    packed = api.pack(weights, api.plan(weights, 10**7, api.MeasureOptions(pins=pins)))
    assert watch.estimate == pytest.approx(len(packed.data), rel=0.02)


def test_a_first_look_at_few_tensors_is_near_too(
    weights: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    choices = {name: parse_choice("int6.row") for name, w in weights.items() if w.dim() == 2}
    whole = SizeWatch(choices, weights, share=0.9)
    whole.look(weights, training_seconds=1000.0)
    monkeypatch.setattr(size_watch, "HEAD_START", 0.0)
    first = SizeWatch(choices, weights, share=0.01)
    clock = iter(range(100))
    monkeypatch.setattr(time, "perf_counter", lambda: 0.001 * next(clock))
    first.look(weights, training_seconds=1.0)  # ten ticks of a millisecond
    assert 0 < len(first.sizes) < len(weights) / 2
    assert first.estimate == pytest.approx(whole.estimate, rel=0.15)


def test_time_is_kept_to_its_share(
    weights: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    watch = SizeWatch({}, weights, share=0.01)
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def costs(weight: torch.Tensor, choice: object) -> float:
        del choice
        now[0] += 0.02
        return float(weight.numel())

    monkeypatch.setattr(size_watch, "sampled_size", costs)
    for step in range(1, 2001):
        watch.look(weights, training_seconds=0.1 * step)
        assert watch.spent <= max(size_watch.HEAD_START, 0.001 * step) + 0.02
    assert watch.spent >= 0.01 * 200 - 0.02


def test_crossing_the_limit_is_said_once_each_way(weights: dict[str, torch.Tensor]) -> None:
    watch = SizeWatch({}, weights, share=0.9, limit=10_000, code_bytes=4_000)
    said = []
    for size in (5_000, 5_900, 6_100, 9_000, 5_000, 5_000):
        watch.sizes = {"w": float(size)}
        watch.choices, watch.header = {}, 0
        said.append(watch.news())
    assert [text is not None for text in said] == [False, False, True, False, True, False]
    assert "10,100 bytes is over 10,000" in said[2] and "9,000 bytes is within" in said[4]


def test_choices_that_need_data_are_taken_without_it(weights: dict[str, torch.Tensor]) -> None:
    name = "blocks.0.mlp.fc.weight"
    sizes = {}
    for text in ("int6.row+gptq", "int6.row", "step.row.col+gptq@0.4", "int8.tensor+kstd@50.8"):
        watch = SizeWatch({name: parse_choice(text)}, weights, share=0.9)
        watch.look(weights, training_seconds=1000.0)
        sizes[text] = watch.sizes[name]
    assert sizes["int6.row+gptq"] == sizes["int6.row"]
    assert sizes["step.row.col+gptq@0.4"] == sizes["int8.tensor+kstd@50.8"]


def test_no_share_no_look(weights: dict[str, torch.Tensor]) -> None:
    watch = SizeWatch({}, weights, share=0.0)
    watch.look(weights, 1e6)
    assert watch.estimate is None


@pytest.mark.parametrize("text", ["int6.row", "int4.tensor", "int8.tensor+kstd@30", "fp16"])
def test_a_sample_of_rows_stands_for_all(text: str) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(1024, 256, generator=generator)
    weight *= torch.linspace(0.5, 2.0, 1024)[:, None]
    choice = parse_choice(text)
    whole = encode_tensor(quantize(weight, choice)).size_bytes
    assert sampled_size(weight, choice) == pytest.approx(whole, rel=0.02)
    small = weight[:20]
    assert sampled_size(small, choice) == encode_tensor(quantize(small, choice)).size_bytes
