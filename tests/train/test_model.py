"""The companion model: somebody else's checkpoint to the last digit, and each switch by itself."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from packer.train import attention, layers
from packer.train.config import config_from, read_config
from packer.train.model import GPT, GPTConfig

SMALL = GPTConfig(
    vocab_size=50,
    num_layers=5,
    model_dim=32,
    num_heads=4,
    num_kv_heads=2,
    mlp_mult=2.0,
    rope_dims=4,
    xsa_last_n=2,
    ln_scale=True,
    smear_gate=True,
    bigram_vocab_size=64,
    bigram_dim=8,
    value_embedding_dim=6,
    value_embedding_layers=(3, 4),
    value_residual=True,
    backout=True,
)

OFF = [
    {"xsa_last_n": 0},
    {"ln_scale": False},
    {"smear_gate": False},
    {"bigram_vocab_size": 0},
    {"value_embedding_dim": 0, "value_embedding_layers": ()},
    {"value_residual": False},
    {"backout": False},
    {"u_net_skips": False},
    {"qk_norm": False},
    {"resid_mix": False},
    {"output_scales": False},
    {"tie_embeddings": False},
    {"logit_softcap": 0.0},
    {"activation": "leaky_relu_squared"},
    {"rope_dims": 0},
    {"bigram_dim": 32},
    {"value_embedding_dim": 16},
    {"num_kv_heads": 4},
    {"memory_tokens": 3},
]


def lively(config: GPTConfig) -> GPT:
    """A model whose every parameter matters: nothing zero, nothing one."""
    torch.manual_seed(0)
    model = GPT(config)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


def tokens_of(shape: tuple[int, int], vocab: int = 50) -> torch.Tensor:
    return torch.randint(0, vocab, shape, generator=torch.Generator().manual_seed(1))


def test_golden_logits(shared: Path) -> None:
    folder = shared / "checkpoints"
    model = GPT(config_from(read_config(folder / "ref6x256.config.json")))
    model.load_state_dict(torch.load(folder / "ref6x256.pt", weights_only=True), strict=True)
    golden = np.load(folder / "ref6x256.golden.npz")
    tokens = torch.from_numpy(golden["tokens"]).long()
    with torch.inference_mode():
        logits = model(tokens)
        tail = model.tail_logits(tokens, 16)
    torch.testing.assert_close(logits, torch.from_numpy(golden["logits"]), atol=3e-5, rtol=0)
    torch.testing.assert_close(tail, logits[:, -16:], atol=1e-5, rtol=0)


def test_names_of_the_whole_family() -> None:
    names = set(GPT(SMALL).state_dict())
    attention = {"c_q.weight", "c_k.weight", "c_v.weight", "proj.weight", "q_gain", "vrl_alpha"}
    block = {f"attn.{name}" for name in attention}
    block |= {"mlp.fc.weight", "mlp.proj.weight", "attn_scale", "mlp_scale", "resid_mix"}
    assert {name for name in names if name.startswith("blocks.2.")} == {
        f"blocks.2.{name}" for name in block
    }
    rest = {"tok_emb.weight", "smear.gate", "skip_weights", "backout_lambda"}
    rest |= {f"bigram.{name}" for name in ("embed.weight", "proj.weight", "scale")}
    rest |= {f"ve_shared.{name}" for name in ("embed.weight", "proj.weight", "scale")}
    rest |= {"ve_layer_scales.0", "ve_layer_scales.1"}
    assert {name for name in names if not name.startswith("blocks.")} == rest
    assert "blocks.0.attn.vrl_alpha" not in names
    assert "lm_head.weight" in GPT(replace(SMALL, tie_embeddings=False)).state_dict()


@pytest.mark.parametrize("switch", OFF, ids=lambda s: next(iter(s)))
def test_every_switch_changes_the_logits_and_trains(switch: dict[str, object]) -> None:
    plain, config = lively(SMALL), replace(SMALL, **switch)
    model = lively(config)
    shared = {
        name: tensor
        for name, tensor in plain.state_dict().items()
        if name in model.state_dict() and tensor.shape == model.state_dict()[name].shape
    }
    model.load_state_dict(shared, strict=False)
    tokens = tokens_of((2, 12))
    assert not torch.allclose(model(tokens), plain(tokens), atol=1e-4)
    model(tokens, tokens.roll(-1, 1)).backward()
    without = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert without == []


@pytest.mark.parametrize("switch", [{}, *OFF], ids=lambda s: next(iter(s), "all"))
def test_tail_logits_are_the_last_logits(switch: dict[str, object]) -> None:
    model, tokens = lively(replace(SMALL, **switch)), tokens_of((3, 20))
    with torch.inference_mode():
        torch.testing.assert_close(
            model.tail_logits(tokens, 7), model(tokens)[:, -7:], atol=2e-5, rtol=1e-4
        )


@pytest.mark.parametrize(
    "switch", [{}, *OFF, {"rope_train_length": 8}], ids=lambda s: next(iter(s), "all")
)
def test_one_position_after_another_gives_the_logits_of_the_window(
    switch: dict[str, object],
) -> None:
    model, tokens = lively(replace(SMALL, **switch)), tokens_of((3, 20))
    with torch.inference_mode():
        past, whole = model.start(20), model(tokens)
        for at in range(20):
            found = model.next_logits(tokens[:, : at + 1], past)
            torch.testing.assert_close(found, whole[:, at], atol=1e-4, rtol=1e-4)
        with pytest.raises(ValueError, match="20 of them were seen"):
            model.next_logits(tokens, past)


def test_a_model_starts_as_its_settings_say() -> None:
    torch.manual_seed(0)
    config = replace(
        SMALL, scaled_projections=True, resid_mix_phase=True, value_residual_init=0.0,
        memory_tokens=3,
    )  # fmt: skip
    start = GPT(config).state_dict()
    for name in ("bigram.proj.weight", "ve_shared.proj.weight"):
        singular = torch.linalg.svdvals(start[name])
        torch.testing.assert_close(singular, torch.full_like(singular, 1 / math.sqrt(10)))
    for layer in range(5):
        phase = 1 / (1 + math.exp(-3 * (layer / 4 - 0.5)))
        expected = torch.tensor([[phase], [1 - phase]]).expand(2, 32)
        torch.testing.assert_close(start[f"blocks.{layer}.resid_mix"], expected)
    assert float(start["blocks.1.attn.vrl_alpha"]) == 0.0 and start["memory"].any()
    plain = GPT(SMALL).state_dict()
    assert not plain["ve_shared.proj.weight"].any()
    assert float(plain["blocks.1.attn.vrl_alpha"]) == -1.5 and "memory" not in plain
    assert plain["blocks.4.resid_mix"].tolist() == [[1.0] * 32, [0.0] * 32]


def test_memory_is_seen_by_the_first_position() -> None:
    model = lively(replace(SMALL, memory_tokens=3))
    before = model(tokens_of((1, 4)))
    assert before.shape == (1, 4, 50)
    with torch.no_grad():
        model.memory[0] += torch.randn(32, generator=torch.Generator().manual_seed(2))
    assert not torch.allclose(model(tokens_of((1, 4)))[:, 0], before[:, 0], atol=1e-4)


def test_one_position_after_another_on_a_real_checkpoint(shared: Path) -> None:
    folder = shared / "checkpoints"
    model = GPT(config_from(read_config(folder / "ref6x256.config.json"))).eval()
    model.load_state_dict(torch.load(folder / "ref6x256.pt", weights_only=True), strict=True)
    golden = np.load(folder / "ref6x256.golden.npz")
    tokens = torch.from_numpy(golden["tokens"]).long()
    past = model.start(tokens.size(1))
    with torch.inference_mode():
        steps = [model.next_logits(tokens[:, : at + 1], past) for at in range(tokens.size(1))]
    found = torch.stack(steps, dim=1)
    torch.testing.assert_close(found, torch.from_numpy(golden["logits"]), atol=1e-4, rtol=0)


def test_causal() -> None:
    model, tokens = lively(SMALL), tokens_of((1, 16))
    changed = tokens.clone()
    changed[0, 9] = (changed[0, 9] + 1) % 50
    before, after = model(tokens), model(changed)
    assert torch.equal(before[:, :9], after[:, :9])
    assert not torch.allclose(before[:, 9:], after[:, 9:])


def test_loss_is_the_mean_over_all_targets() -> None:
    model, tokens = lively(SMALL), tokens_of((2, 8))
    targets = tokens.roll(-1, 1)
    probabilities = torch.log_softmax(model(tokens), dim=-1).gather(2, targets[..., None])
    torch.testing.assert_close(model(tokens, targets), -probabilities.mean())


def test_attention_by_the_definition() -> None:
    generator = torch.Generator().manual_seed(2)
    q = torch.randn(2, 3, 4, 8, generator=generator)
    k, v = (torch.randn(2, 5, 2, 8, generator=generator) for _ in range(2))
    expected = torch.zeros_like(q)
    for batch in range(2):
        for head in range(4):
            for query in range(3):
                seen = query + 3  # the three queries are the last of five positions
                keys = k[batch, :seen, head // 2]
                weights = torch.softmax(keys @ q[batch, query, head] / math.sqrt(8), dim=0)
                expected[batch, query, head] = weights @ v[batch, :seen, head // 2]
    torch.testing.assert_close(attention.causal_attention(q, k, v), expected)


def test_flash_attention_is_not_used_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise AssertionError("asked for FlashAttention on a CPU")

    monkeypatch.setattr(attention, "flash_attention", refuse)
    q = torch.ones(1, 2, 1, 8, dtype=torch.bfloat16)
    assert attention.causal_attention(q, q, q).dtype == torch.bfloat16


def test_xsa_leaves_nothing_along_the_own_value() -> None:
    generator = torch.Generator().manual_seed(3)
    y = torch.randn(2, 5, 4, 8, generator=generator)
    v = torch.randn(2, 5, 2, 8, generator=generator)
    out = attention.exclude_self(y, v)
    along = (out.view(2, 5, 2, 2, 8) * v[:, :, :, None]).sum(-1)
    torch.testing.assert_close(along, torch.zeros_like(along), atol=1e-5, rtol=0)


def test_rope_turns_by_distance_only() -> None:
    cos, sin = attention.rope_tables(32, 8, 10_000.0, 1024, torch.device("cpu"))
    q, k = torch.randn(2, 12, generator=torch.Generator().manual_seed(4))
    turned_q = attention.rotate(q.expand(1, 32, 1, 12), cos, sin)[0, :, 0]
    turned_k = attention.rotate(k.expand(1, 32, 1, 12), cos, sin)[0, :, 0]
    assert torch.equal(turned_q[:, 8:], q[8:].expand(32, 4))
    products = turned_q @ turned_k.T
    for distance in (0, 3, 10):
        diagonal = products.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), atol=1e-4, rtol=1e-4)


def test_rope_base_grows_beyond_the_training_length() -> None:
    device = torch.device("cpu")
    within, _ = attention.rope_tables(16, 8, 100.0, 16, device)
    beyond, _ = attention.rope_tables(32, 8, 100.0, 16, device)
    grown, _ = attention.rope_tables(32, 8, 100.0 * 2 ** (8 / 6), 1024, device)
    torch.testing.assert_close(beyond, grown)
    assert not torch.allclose(within, beyond[:16])
    plain, _ = attention.rope_tables(32, 8, 100.0, 0, device)
    torch.testing.assert_close(plain[:16], within)


def test_bigram_rows() -> None:
    table = layers.BigramHash(64, 8, 32)
    tokens = torch.tensor([[3, 17, 1023]])
    expected = [63, (36313 * 17 ^ 27191 * 3) % 63, (36313 * 1023 ^ 27191 * 17) % 63]
    assert table.rows(tokens).tolist() == [expected]


def test_initial_weights() -> None:
    torch.manual_seed(0)
    model = GPT(SMALL)
    state = model.state_dict()
    q = state["blocks.1.attn.c_q.weight"]
    torch.testing.assert_close(q @ q.T, torch.eye(32), atol=1e-5, rtol=0)
    assert not state["blocks.1.attn.proj.weight"].any()
    assert not state["blocks.1.mlp.proj.weight"].any()
    assert state["blocks.1.attn.vrl_alpha"].item() == -1.5
    assert state["backout_lambda"].item() == pytest.approx(0.2)
    assert state["tok_emb.weight"].std().item() == pytest.approx(0.005, rel=0.1)
    plain = GPT(replace(SMALL, orthogonal_init=False)).state_dict()["blocks.1.attn.c_q.weight"]
    assert not torch.allclose(plain @ plain.T, torch.eye(32), atol=1e-2)


def test_a_fresh_model_can_learn_its_bigrams() -> None:
    torch.manual_seed(0)
    model, tokens = GPT(SMALL), tokens_of((4, 16))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    losses = []
    for _ in range(30):
        loss = model(tokens, tokens.roll(-1, 1))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.5 * losses[0]
    assert model.bigram is not None and model.bigram.embed.weight.any()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"num_heads": 5}, "num_heads = 5 cannot be: it must be a divisor of model_dim = 32"),
        ({"num_kv_heads": 3}, "divisor of num_heads = 4"),
        ({"rope_dims": 5}, "rope_dims"),
        ({"rope_dims": 10}, "from 4 to the head's 8"),
        ({"activation": "gelu"}, "relu_squared or leaky_relu_squared"),
        ({"xsa_last_n": 6}, "xsa_last_n"),
        ({"value_embedding_layers": (4, 5)}, "different layers from 0 to 4"),
        ({"value_embedding_dim": 0}, "value_embedding_layers"),
        ({"bigram_vocab_size": 1}, "at least 2 rows"),
        ({"logit_softcap": -1.0}, "logit_softcap"),
        ({"num_layers": 0}, "num_layers"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, object], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        replace(SMALL, **settings)
