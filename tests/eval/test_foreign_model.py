"""Models from strangers' files: imported, built, loaded strictly, scored."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from packer.eval.batches import Setting
from packer.eval.compare import divergence
from packer.eval.errors import ModelError, ScoreError
from packer.eval.flash_stand_in import flash_attn_func, flash_attn_varlen_func, flash_stand_in
from packer.eval.foreign_forward import (
    ForwardLogits,
    LossForward,
    MeanLoss,
    ShiftedLoss,
)
from packer.eval.foreign_model import load_foreign_model
from packer.eval.foreign_weights import load_strictly
from packer.eval.score import nats_per_token, score
from packer.eval.token_bytes import TokenBytes
from packer.train.attention import causal_attention
from packer.train.model import GPT, GPTConfig

FILE = Path(__file__).parent / "strangers" / "loss_only.py"
SETTINGS = {"vocab_size": 11, "heads": 4}

WAYS = [
    "Loss",
    "ForwardLogits",
    "LogitsAndLoss",
    "Plain",
    "FromNamespace",
    "FromDataclass",
    "factory",
    "HandmadeLoss",
    "ShiftsInside",
    "ShiftsByPadding",
    "InParts",
    "HiddenWithoutTargets",
    "Turned",
    "OneRow",
]


@pytest.fixture(scope="module")
def weights() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {"tok_emb.weight": (11, 16), "qkv.weight": (32, 16)}
    return {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}


@pytest.mark.parametrize("name", WAYS)
def test_every_way_gives_the_same_score(
    name: str, weights: dict[str, torch.Tensor], stream: NDArray[np.int64]
) -> None:
    expected = nats_per_token(
        load_foreign_model(f"{FILE}:ForwardLogits", SETTINGS, weights), stream, Setting(32, 8)
    )
    found = load_foreign_model(f"{FILE}:{name}", SETTINGS, weights)
    np.testing.assert_allclose(nats_per_token(found, stream, Setting(32, 8)), expected, rtol=1e-5)
    assert expected.std() > 0.1


def test_ways_are_tried_in_order(weights: dict[str, torch.Tensor]) -> None:
    kinds = {"factory": ForwardLogits, "Loss": LossForward, "HandmadeLoss": LossForward}
    kinds |= {"ShiftsInside": ShiftedLoss, "Opaque": MeanLoss}
    for name, kind in kinds.items():
        assert isinstance(load_foreign_model(f"{FILE}:{name}", SETTINGS, weights), kind)


def test_a_mean_loss_alone_gives_sums_of_windows(
    weights: dict[str, torch.Tensor], stream: NDArray[np.int64], table: TokenBytes
) -> None:
    full, mean = (
        load_foreign_model(f"{FILE}:{name}", SETTINGS, weights)
        for name in ("ForwardLogits", "Opaque")
    )
    setting = Setting(32)  # 4,999 targets: the last window is not full
    expected, found = (score(model, stream, table, setting) for model in (full, mean))
    assert found.nats == pytest.approx(expected.nats, rel=1e-6)
    np.testing.assert_allclose(found.block_nats, expected.block_nats, rtol=1e-5)
    with pytest.raises(ScoreError, match="back to back"):
        score(mean, stream, table, Setting(32, 8))
    with pytest.raises(ScoreError, match="only returns losses"):
        divergence(full, [mean], stream, table, setting)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("OpaqueShift", "does not depend on target 0 of 8"),
        ("OpaqueBits", "all 11 targets sums to"),
        ("OpaqueSum", "of two windows it is not the mean"),
        ("OpaqueTerm", r"all 11 targets sums to 0.980"),
        ("OpaqueAbove", "mean"),
        ("Probabilities", "gave probabilities"),
        ("SeesAhead", "depend on later tokens"),
        ("TellsTargets", "taken from the targets"),
        ("Keeps", "kept between calls"),
        ("Beside", "with another in a batch"),
    ],
)
def test_what_would_be_a_wrong_score_is_refused(
    name: str, words: str, weights: dict[str, torch.Tensor]
) -> None:
    with pytest.raises(ModelError, match=words) as caught:
        load_foreign_model(f"{FILE}:{name}", SETTINGS, weights)
    assert "return logits" in str(caught.value)


def test_a_window_too_long_for_one_more_token_says_so(
    weights: dict[str, torch.Tensor], stream: NDArray[np.int64]
) -> None:
    model = load_foreign_model(f"{FILE}:ShiftsInside", SETTINGS, weights)
    forward = model.model.forward

    def within(input_ids: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        assert input_ids.size(1) <= 32, "32 at most"
        loss: torch.Tensor = forward(input_ids, labels)
        return loss

    model.model.forward = within  # type: ignore[method-assign]
    assert len(nats_per_token(model, stream, Setting(31))) == 4999
    with pytest.raises(ScoreError, match=r"window of 32 tokens needs 33.*32 at most"):
        nats_per_token(model, stream, Setting(32))


def test_importing_leaves_nothing_behind(weights: dict[str, torch.Tensor]) -> None:
    path = list(sys.path)
    load_foreign_model(f"{FILE}:Loss", SETTINGS, weights)
    assert sys.path == path
    assert "flash_attn_interface" not in sys.modules or importlib.util.find_spec("flash_attn")


def test_no_way_lists_what_was_tried(weights: dict[str, torch.Tensor]) -> None:
    with pytest.raises(ModelError) as caught:
        load_foreign_model(f"{FILE}:Nothing", SETTINGS, weights)
    for words in ("forward_logits(tokens)", "forward(tokens): gave (11, 16)", "its loss"):
        assert words in str(caught.value)


@pytest.mark.parametrize(
    ("spec", "settings", "words"),
    [
        (str(FILE), SETTINGS, "should be FILE.py:NAME"),
        (f"{FILE}x:Loss", SETTINGS, "no such model file"),
        (f"{FILE}:Los", SETTINGS, "no class or function 'Los'; the nearest is 'Loss'"),
        (f"{FILE}:Loss", {"vocab": 11}, r"does not fit .*vocab"),
        (f"{FILE}:FromDataclass", {"vocab_size": 11, "head": 4}, "Config.*head"),
        (f"{FILE}:factory", {"vocab_size": 11}, "missing a required argument: 'heads'"),
        (f"{FILE}:Loss", {"vocab_size": -1}, "failed with RuntimeError"),
        (f"{FILE}:Hyperparameters", {}, "not a torch module"),
    ],
)
def test_what_cannot_be_built_is_refused(
    spec: str, settings: dict[str, int], words: str, weights: dict[str, torch.Tensor]
) -> None:
    with pytest.raises(ModelError, match=words):
        load_foreign_model(spec, settings, weights)


def test_a_file_that_does_not_import_is_refused(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import no_such_package\n")
    with pytest.raises(ModelError, match=r"failed with ModuleNotFoundError.*no_such_package"):
        load_foreign_model(f"{tmp_path / 'broken.py'}:GPT", {}, {})


def test_weights_that_differ_are_listed_by_name() -> None:
    model = GPT(GPTConfig(vocab_size=8, num_layers=1, model_dim=8, num_heads=2, num_kv_heads=1))
    weights = dict(model.state_dict())
    weights["blocks.0.attn.c_qq.weight"] = weights.pop("blocks.0.attn.c_q.weight")
    weights["tok_emb.weight"] = torch.zeros(9, 8)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(ModelError) as caught:
        load_strictly(model, weights)
    lines = str(caught.value).splitlines()
    assert lines[0] == "the checkpoint is not this model, 3 differences:"
    assert [line.strip() for line in lines[1:]] == [
        "missing: blocks.0.attn.c_q.weight (8, 8)",
        "not in the model: blocks.0.attn.c_qq.weight (8, 8)",
        "tok_emb.weight is (9, 8), the model has (8, 8)",
    ]
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())


def test_the_stand_in_is_attention() -> None:
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 6, 4, 8, generator=generator)
    k, v = (torch.randn(2, 6, 2, 8, generator=generator) for _ in range(2))
    torch.testing.assert_close(flash_attn_func(q, k, v, causal=True), causal_attention(q, k, v))
    late = flash_attn_func(q[:, -2:], k, v, causal=True)
    torch.testing.assert_close(late, causal_attention(q[:, -2:], k, v))
    narrow = flash_attn_func(q, k, v, causal=True, window_size=(1, 0))
    pair = causal_attention(q[:, 4:], k[:, 3:], v[:, 3:])[:, -1:]
    assert not torch.allclose(narrow[:, -1:], pair)
    torch.testing.assert_close(narrow[:, -1:], causal_attention(q[:, -1:], k[:, -2:], v[:, -2:]))
    assert not torch.allclose(flash_attn_func(q, k, v), narrow)
    lengths = torch.tensor([0, 2, 6])
    packed = flash_attn_varlen_func(q[0], k[0], v[0], lengths, lengths, 4, 4, causal=True)
    torch.testing.assert_close(packed[2:], causal_attention(q[:1, 2:], k[:1, 2:], v[:1, 2:])[0])


@pytest.mark.parametrize("option", [{"softcap": 30.0}, {"dropout_p": 0.1}, {"qv": 1}])
def test_the_stand_in_refuses_what_it_lacks(option: dict[str, float]) -> None:
    q = torch.zeros(1, 2, 1, 8)
    with pytest.raises(NotImplementedError, match=next(iter(option)).removesuffix("_p")):
        flash_attn_func(q, q, q, **option)


def test_the_stand_in_covers_both_releases() -> None:
    with flash_stand_in():
        import flash_attn
        import flash_attn_interface

        assert callable(flash_attn.flash_attn_func)
        assert callable(flash_attn_interface.flash_attn_func)
