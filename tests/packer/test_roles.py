"""Roles from names and shapes, and selectors."""

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from packer.checkpoint.roles import Role, TensorRole, nearest, roles_of, select
from packer.errors import SelectorError

# (name, axes, role, layer), by family
CONTEST = """
tok_emb.weight 2 token-embedding -
lm_head.weight 2 head -
mtp_heads.0.weight 2 head -
bigram.embed.weight 2 hashed-bigram -
bigram.proj.weight 2 hashed-bigram -
bigram.scale 0 control -
smear.gate 1 gate -
skip_weights 2 control -
skip_gates 2 gate -
pass_gate 2 gate -
blocks.3.attn.c_q.weight 2 attention-q 3
blocks.3.attn.c_k.weight 2 attention-k 3
blocks.3.attn.c_v.weight 2 attention-v 3
blocks.3.attn.proj.weight 2 attention-o 3
blocks.3.attn.q_gain 1 control 3
blocks.3.attn.attn_gate_w 2 gate 3
blocks.3.mlp.fc.weight 2 mlp-in 3
blocks.3.mlp.proj.weight 2 mlp-out 3
blocks.3.mlp.gate_up.weight 2 mlp-in 3
blocks.10.attn_scale 1 control 10
blocks.10.mlp_scale 1 control 10
blocks.10.resid_mix 2 control 10
ve_shared.embed.weight 2 value-embedding -
ve_shared.proj.weight 2 value-embedding -
ve_shared.scale 0 control -
ve_layer_scales.1 1 control -
qo_bank 3 attention -
kv_bank 3 attention -
mlp_up_bank 3 mlp-in -
mlp_down_bank 3 mlp-out -
parallel_post_lambdas 2 control -
backout_lambda 0 control -
"""
GPT2 = """
transformer.wte.weight 2 token-embedding -
transformer.wpe.weight 2 other -
transformer.h.7.ln_1.weight 1 norm 7
transformer.h.7.ln_1.bias 1 norm 7
transformer.h.7.attn.c_attn.weight 2 attention 7
transformer.h.7.attn.c_attn.bias 1 control 7
transformer.h.7.attn.bias 4 other 7
transformer.h.7.attn.c_proj.weight 2 attention-o 7
transformer.h.7.mlp.c_fc.weight 2 mlp-in 7
transformer.h.7.mlp.c_proj.weight 2 mlp-out 7
transformer.ln_f.weight 1 norm -
h.0.attn.c_attn.weight 2 attention 0
value_embeds.2.weight 2 value-embedding -
transformer.h.2.attn.ve_gate.weight 2 gate 2
resid_lambdas 1 control -
"""
LLAMA = """
model.embed_tokens.weight 2 token-embedding -
model.layers.31.self_attn.q_proj.weight 2 attention-q 31
model.layers.31.self_attn.k_proj.weight 2 attention-k 31
model.layers.31.self_attn.k_proj.bias 1 control 31
model.layers.31.self_attn.v_proj.weight 2 attention-v 31
model.layers.31.self_attn.o_proj.weight 2 attention-o 31
model.layers.31.self_attn.q_norm.weight 1 norm 31
model.layers.31.mlp.gate_proj.weight 2 mlp-gate 31
model.layers.31.mlp.up_proj.weight 2 mlp-in 31
model.layers.31.mlp.down_proj.weight 2 mlp-out 31
model.layers.31.input_layernorm.weight 1 norm 31
model.layers.31.post_attention_layernorm.weight 1 norm 31
model.norm.weight 1 norm -
lm_head.weight 2 head -
model.layers.4.block_sparse_moe.gate.weight 2 gate 4
model.layers.4.block_sparse_moe.experts.6.w1.weight 2 mlp-gate 4
model.layers.4.block_sparse_moe.experts.6.w2.weight 2 mlp-out 4
model.layers.4.block_sparse_moe.experts.6.w3.weight 2 mlp-in 4
tok_embeddings.weight 2 token-embedding -
layers.1.attention.wq.weight 2 attention-q 1
layers.1.attention.wk.weight 2 attention-k 1
layers.1.attention.wv.weight 2 attention-v 1
layers.1.attention.wo.weight 2 attention-o 1
layers.1.feed_forward.w1.weight 2 mlp-gate 1
layers.1.feed_forward.w2.weight 2 mlp-out 1
layers.1.feed_forward.w3.weight 2 mlp-in 1
layers.1.attention_norm.weight 1 norm 1
output.weight 2 head -
"""
OTHERS = """
gpt_neox.embed_in.weight 2 token-embedding -
gpt_neox.layers.2.attention.query_key_value.weight 2 attention 2
gpt_neox.layers.2.attention.dense.weight 2 attention-o 2
gpt_neox.layers.2.attention.dense.bias 1 control 2
gpt_neox.layers.2.attention.rotary_emb.inv_freq 1 control 2
gpt_neox.layers.2.mlp.dense_h_to_4h.weight 2 mlp-in 2
gpt_neox.layers.2.mlp.dense_4h_to_h.weight 2 mlp-out 2
gpt_neox.final_layer_norm.weight 1 norm -
embed_out.weight 2 head -
transformer.blocks.0.attn.Wqkv.weight 2 attention 0
transformer.blocks.0.attn.out_proj.weight 2 attention-o 0
encoder.layer.5.attention.self.query.weight 2 attention-q 5
encoder.layer.5.attention.self.key.weight 2 attention-k 5
encoder.layer.5.attention.self.value.weight 2 attention-v 5
encoder.layer.5.attention.output.dense.weight 2 attention-o 5
encoder.layer.5.intermediate.dense.weight 2 mlp-in 5
encoder.layer.5.output.dense.weight 2 mlp-out 5
embeddings.word_embeddings.weight 2 token-embedding -
encoder.block.1.layer.0.SelfAttention.k.weight 2 attention-k 1
encoder.block.1.layer.1.DenseReluDense.wi_0.weight 2 mlp-gate 1
encoder.block.1.layer.1.DenseReluDense.wi_1.weight 2 mlp-in 1
encoder.block.1.layer.1.DenseReluDense.wo.weight 2 mlp-out 1
encoder.layers.3.self_attn.in_proj_weight 2 attention 3
encoder.layers.3.linear1.weight 2 mlp-in 3
encoder.layers.3.linear2.weight 2 mlp-out 3
layers.0.mixer.in_proj.weight 2 other 0
layers.0.mixer.conv1d.weight 3 other 0
something.odd 2 other -
something.small 1 control -
counter 0 control -
"""


def rows(text: str) -> list[list[str]]:
    return [line.split() for line in text.splitlines() if line]


@pytest.mark.parametrize(
    ("name", "axes", "role", "layer"), rows(CONTEST + GPT2 + LLAMA + OTHERS), ids=lambda part: part
)
def test_role_and_layer(name: str, axes: str, role: str, layer: str) -> None:
    found = roles_of({name: (8,) * int(axes)})[name]
    assert (found.role.value, found.layer) == (role, None if layer == "-" else int(layer))


def test_long_unknown_vectors_are_not_control() -> None:
    assert roles_of({"x": (65_537,)})["x"].role is Role.OTHER
    assert roles_of({"x": (65_536,)})["x"].role is Role.CONTROL
    assert roles_of({"x": (0,)})["x"].role is Role.CONTROL


@given(st.dictionaries(st.text(max_size=30), st.lists(st.integers(0, 9), max_size=4).map(tuple)))
def test_every_name_has_a_role_in_the_order_given(shapes: dict[str, tuple[int, ...]]) -> None:
    assert list(roles_of(shapes)) == list(shapes)


def test_a_head_tied_to_the_embedding_is_the_embedding() -> None:
    shapes = {"lm_head.weight": (9, 4)}
    assert roles_of(shapes)["lm_head.weight"].role is Role.HEAD
    roles = roles_of(shapes, {"model.embed_tokens.weight": "lm_head.weight"})
    assert roles["lm_head.weight"].role is Role.TOKEN_EMBEDDING
    assert select("embeddings", roles) == ("lm_head.weight",)


def test_the_reference_checkpoint_has_no_other(shared: Path) -> None:
    state = torch.load(shared / "checkpoints" / "ref6x256.pt", weights_only=True)
    roles = roles_of({name: tuple(tensor.shape) for name, tensor in state.items()})
    assert Role.OTHER not in {role.role for role in roles.values()}
    assert {role.layer for role in roles.values()} == {None, *range(6)}
    assert select("embeddings", roles) == (
        "tok_emb.weight",
        "bigram.embed.weight",
        "ve_shared.embed.weight",
    )
    assert select("late-k", roles) == ("blocks.5.attn.c_k.weight",)


CONTEST_ROLES = roles_of(
    {
        "tok_emb.weight": (9, 4),
        "bigram.proj.weight": (4, 4),
        **{f"blocks.{i}.attn.c_k.weight": (4, 4) for i in (10, 9, 2)},
        "blocks.11.attn.c_q.weight": (4, 4),
        "blocks.2.mlp.fc.weight": (8, 4),
        "wpe.weight": (5, 4),
        "odd [1]": (2, 2),
        "gate": (3,),
    }
)


@pytest.mark.parametrize(
    ("selector", "names"),
    [
        ("tok_emb.weight", ("tok_emb.weight",)),
        ("odd [1]", ("odd [1]",)),
        ("embeddings", ("tok_emb.weight", "wpe.weight")),
        ("late-k", ("blocks.10.attn.c_k.weight",)),
        ("late-k:2", ("blocks.10.attn.c_k.weight", "blocks.9.attn.c_k.weight")),
        ("mlp-in", ("blocks.2.mlp.fc.weight",)),
        ("hashed-bigram", ("bigram.proj.weight",)),
        ("blocks.2.*", ("blocks.2.attn.c_k.weight", "blocks.2.mlp.fc.weight")),
        ("blocks.?.attn.*", ("blocks.9.attn.c_k.weight", "blocks.2.attn.c_k.weight")),
        ("gate", ("gate",)),
    ],
)
def test_selectors(selector: str, names: tuple[str, ...]) -> None:
    assert select(selector, CONTEST_ROLES) == names


@pytest.mark.parametrize(
    ("selector", "word"),
    [
        ("tok_emb.wieght", "'tok_emb.weight'"),
        ("TOK_EMB.*", "nearest"),
        ("embedings", "'embeddings'"),
        ("mlp-inn", "'mlp-in'"),
        ("mlp-out", "'mlp-in'"),
        ("late_k", "'late-k'"),
        ("late-k:4", "4 blocks where 3"),
        ("late-k:0", "1 or more"),
        ("late-k:two", "1 or more"),
        ("late-k:", "1 or more"),
    ],
)
def test_a_selector_that_matches_nothing(selector: str, word: str) -> None:
    with pytest.raises(SelectorError) as caught:
        select(selector, CONTEST_ROLES)
    assert word in str(caught.value) and repr(selector) in str(caught.value)


def test_keys_inside_a_bank_cannot_be_chosen() -> None:
    with pytest.raises(SelectorError, match="'kv_bank'"):
        select("late-k", roles_of({"qo_bank": (4, 8, 8), "kv_bank": (4, 4, 8)}))


def test_selecting_from_nothing() -> None:
    for selector in ("late-k", "embeddings", "x*"):
        with pytest.raises(SelectorError):
            select(selector, {})
    assert nearest("anything", []) is None


def test_keys_outside_blocks_count_as_one_block() -> None:
    roles = {"attn.c_k.weight": TensorRole(Role.ATTENTION_K, None)}
    assert select("late-k", roles) == ("attn.c_k.weight",)
    with pytest.raises(SelectorError):
        select("late-k:2", roles)
