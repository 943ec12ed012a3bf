"""Under autocast the stream and all of attention are of 16 bits, and the model is one graph."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType

import pytest
import torch
from packer.quantizers.attachment import rounded_once
from packer.train import attention, gradients
from packer.train.layers import Block
from packer.train.loop import Trainer
from packer.train.model import GPT, GPTConfig
from packer.train.presets import PRESETS
from packer.train.qat import FakeQuantization
from packer.train.settings import TrainConfig
from torch import Tensor
from torch._dynamo.utils import counters

from packer.errors import PackerError

TOKENS = torch.arange(24).reshape(2, 12)
HOPPER, AMPERE, TURING = (9, 0), (8, 0), (7, 5)


def small(config: GPTConfig) -> GPTConfig:
    layers = tuple(layer % 4 for layer in config.value_embedding_layers)
    return replace(
        config,
        num_layers=4,
        model_dim=64,
        num_heads=4,
        num_kv_heads=2,
        rope_dims=8,
        xsa_last_n=min(config.xsa_last_n, 4),
        value_embedding_layers=layers,
    )


@torch.library.custom_op("bytecap_tests::flash", mutates_args=())
def flash_stand_in(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    assert q.dtype == k.dtype == v.dtype == torch.bfloat16
    return attention.causal_attention(q, k, v).contiguous()


@flash_stand_in.register_fake
def _(q: Tensor, k: Tensor, v: Tensor) -> Tensor:  # noqa: ARG001
    return q.new_empty(q.shape, dtype=v.dtype)


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """A GPU of this capability, with these modules of FlashAttention installed."""

    def make(capability: tuple[int, int], *modules: str) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)
        monkeypatch.setattr(attention, "FLASH_DEVICE", "cpu")
        for name in ("flash_attn_interface", "flash_attn"):
            module = ModuleType(name)

            def function(q: Tensor, k: Tensor, v: Tensor, *, causal: bool) -> Tensor:
                assert causal
                return flash_stand_in(q, k, v)

            function.__module__ = name
            module.flash_attn_func = function  # type: ignore[attr-defined]
            monkeypatch.setitem(sys.modules, name, module if name in modules else None)

    return make


@pytest.mark.parametrize("name", PRESETS)
def test_attention_and_stream_are_of_16_bits_in_every_layer(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[torch.dtype, ...]] = []
    original, streams = attention.causal_attention, []

    def spy(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        seen.append((q.dtype, k.dtype, v.dtype))
        return original(q, k, v)

    monkeypatch.setattr(attention, "causal_attention", spy)
    monkeypatch.setattr(gradients, "causal_attention", spy)
    model = GPT(small(PRESETS[name].model))
    for block in model.blocks:
        block.register_forward_pre_hook(lambda _, inputs: streams.append(inputs[0].dtype))
        block.register_forward_hook(lambda _, __, outputs: streams.append(outputs[0].dtype))
        assert isinstance(block, Block)
        block.attn.proj.register_forward_pre_hook(lambda _, inputs: streams.append(inputs[0].dtype))
    with torch.autocast("cpu", torch.bfloat16):
        model(TOKENS, TOKENS).backward()
    assert seen == [(torch.bfloat16,) * 3] * 4
    assert streams == [torch.bfloat16] * 3 * 4
    assert {p.grad.dtype for p in model.parameters() if p.grad is not None} == {torch.float32}
    seen.clear()
    model(TOKENS)
    assert seen == [(torch.float32,) * 3] * 4


def test_heads_without_a_flash_kernel_take_another(card: Callable[..., None]) -> None:
    card(HOPPER, "flash_attn")
    for head_dim, flash in ((64, True), (256, True), (20, False), (264, False)):
        chosen = attention.chosen_attention(head_dim)
        assert (chosen is not attention.causal_attention) == flash, head_dim


def test_bfloat16_on_a_gpu_without_it_is_refused(
    card: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "Tesla T4")
    gpu = torch.device("cuda:0")
    card(TURING)
    assert gradients.autocast_dtype("auto", gpu) is None
    with pytest.raises(PackerError, match=r"Tesla T4 \(compute capability 7\.5\).*precision=auto"):
        gradients.autocast_dtype("bfloat16", gpu)
    card(AMPERE)
    assert gradients.autocast_dtype("bfloat16", gpu) == torch.bfloat16


def test_norms_are_computed_in_float32() -> None:
    x = 0.005 * torch.randn(4, 256, generator=torch.Generator().manual_seed(0))
    rounded = x.bfloat16()
    exact = (rounded.double() / rounded.double().square().mean(-1, keepdim=True).sqrt()).bfloat16()
    with torch.autocast("cpu", torch.bfloat16):
        found = attention.rms_norm(rounded)
    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found, exact, rtol=2**-7, atol=0)


@pytest.mark.parametrize(
    ("capability", "installed", "chosen"),
    [
        (HOPPER, ("flash_attn_interface", "flash_attn"), "flash_attn_interface"),
        (HOPPER, ("flash_attn",), "flash_attn"),
        (HOPPER, (), None),
        (AMPERE, ("flash_attn_interface", "flash_attn"), "flash_attn"),
        (AMPERE, ("flash_attn_interface",), None),
        (TURING, ("flash_attn_interface", "flash_attn"), None),
    ],
)
def test_attention_is_chosen_by_the_card(
    card: Callable[..., None],
    capability: tuple[int, int],
    installed: tuple[str, ...],
    chosen: str | None,
) -> None:
    card(capability, *installed)
    name = attention.attention_name(GPT(small(PRESETS["demo"].model)).attend)
    assert name == (f"FlashAttention of {chosen}" if chosen else "scaled_dot_product_attention")


@pytest.mark.parametrize(
    ("name", "installed"),
    [
        ("11l-backout-int6", ("flash_attn_interface",)),
        ("11l-xsa4-ema-int5mlp", ()),
        ("11l-vrl-leaky-gptq", ("flash_attn_interface",)),
        ("11l-vrl-leaky-gptq", ("flash_attn",)),
        ("11l-vrl-leaky-gptq", ()),
    ],
)
def test_a_compiled_model_is_one_graph(
    card: Callable[..., None],
    name: str,
    installed: tuple[str, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = PRESETS[name]
    card(HOPPER, *installed)
    torch.manual_seed(0)
    model = GPT(small(config.model))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)  # a compiler asks too
    qat = replace(config.qat, formats={"blocks.*.weight": "int6.row"}, mode="on")
    FakeQuantization.attached(model, qat)
    torch._dynamo.reset()
    counters.clear()
    compiled = torch.compile(model, backend="eager", fullgraph=True, dynamic=False)
    with torch.autocast("cpu", torch.bfloat16), rounded_once(model):
        loss, plain = compiled(TOKENS, TOKENS), model(TOKENS, TOKENS)
    assert (counters["stats"]["unique_graphs"], sum(counters["graph_break"].values())) == (1, 0)
    torch.testing.assert_close(loss, plain, rtol=1e-2, atol=0)
    torch._dynamo.reset()


def test_a_model_of_a_gpu_computes_on_a_cpu_too(
    card: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    config = small(PRESETS["demo"].model)
    torch.manual_seed(0)
    plain = GPT(config)
    card(HOPPER, "flash_attn_interface")
    monkeypatch.setattr(attention, "FLASH_DEVICE", "cuda")
    other = GPT(config)
    other.load_state_dict(plain.state_dict())
    assert other.attend is not attention.causal_attention
    torch.testing.assert_close(other(TOKENS), plain(TOKENS), rtol=0, atol=0)


def test_grouped_heads_without_repeating(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 6, heads, 8, generator=generator) for heads in (4, 2, 2))
    assert attention.GROUPED_HEADS
    with monkeypatch.context() as patch:
        patch.setattr(Tensor, "repeat_interleave", None)
        grouped = attention.causal_attention(q, k, v)
    monkeypatch.setattr(attention, "GROUPED_HEADS", False)
    torch.testing.assert_close(attention.causal_attention(q, k, v), grouped)


def test_attention_of_a_cpu_is_in_a_dtype_that_it_multiplies_in(
    trainer: Callable[..., Trainer], tiny: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[torch.dtype] = []
    original = attention.causal_attention

    def spy(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        seen.append(v.dtype)
        return original(q, k, v)

    monkeypatch.setattr(attention, "causal_attention", spy)
    monkeypatch.setattr(gradients, "causal_attention", spy)
    run = replace(tiny.run, precision="bfloat16")
    for able in (False, True):
        monkeypatch.setattr(gradients, "multiplies_bfloat16", lambda _, able=able: able)
        began = trainer(str(able), run=run)
        seen.clear()
        began.gradients.add(0)
        assert set(seen) == {torch.bfloat16 if able else torch.float32}
        state = began.state()
    monkeypatch.setattr(gradients, "multiplies_bfloat16", lambda _: False)
    resumed = trainer("resumed", run=run)
    resumed.restore(state)
    seen.clear()
    resumed.gradients.add(0)
    assert set(seen) == {torch.bfloat16}, "a resumed run goes on as it began"
