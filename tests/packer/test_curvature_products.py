"""However a model multiplies with a weight, its curvature is that of the same map by F.linear."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from packer.eval.damage import second_order_nats
from packer.quantizers.curvature import Curvature
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from packer.checkpoint.checkpoint import from_state_dict
from packer.curvature.calibration import calibrate

VOCAB, WIDTH = 11, 6
Use = Callable[[Tensor, Tensor], Tensor]  # of x [batch, time, WIDTH] and a weight


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) / 2


class Around(nn.Module):
    """A table, a use of `w`, and a head that reads whatever this gives."""

    def __init__(self, weight: Tensor, use: Use) -> None:
        super().__init__()
        self.table = nn.Embedding.from_pretrained(normal(VOCAB, WIDTH), freeze=False)
        self.w = nn.Parameter(weight)
        self.use = use

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.table(tokens)
        y = torch.tanh(self.use(x, self.w).reshape(*tokens.shape, -1))
        return F.linear(y, normal(VOCAB, y.size(-1), seed=2))


@pytest.fixture(scope="module")
def tokens() -> Tensor:
    return torch.randint(0, VOCAB, (12, 5), generator=torch.Generator().manual_seed(9))


def curvature(
    weight: Tensor, use: Use, tokens: Tensor, left_out: tuple[str, ...] = ()
) -> Curvature:
    """Of `w`; left_out: the tensors that a warning says get none, and no other warning."""
    found = calibrate(Around(weight.clone(), use), tokens.split(6))
    assert found.unreached == ()
    assert tuple(one.partition(":")[0] for one in found.warnings) == left_out
    return found.by_tensor["w"]


def same(one: Curvature, other: Curvature) -> None:
    for field in ("hessian", "fisher", "outputs"):
        ours, theirs = getattr(one, field), getattr(other, field)
        assert ours is not None and theirs is not None, field
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


def flat(x: Tensor) -> Tensor:
    return x.reshape(-1, x.size(-1))


def banks(x: Tensor, w: Tensor) -> Tensor:
    """Every bank [in, out] of w, by F.linear, beside each other: [..., banks, out]."""
    return torch.stack([F.linear(x, bank.mT) for bank in w], dim=-2)


def rows_of(x: Tensor, w: Tensor) -> Tensor:
    return F.linear(x, w)


def columns_of(x: Tensor, w: Tensor) -> Tensor:
    return F.linear(x, w.mT)


BIAS, OTHER = normal(8, seed=3), normal(60, 8, seed=4)
MATRIX: dict[str, tuple[tuple[int, ...], Use, Use]] = {
    "addmm": (
        (WIDTH, 8),
        lambda x, w: torch.addmm(BIAS, flat(x), w),
        lambda x, w: F.linear(x, w.mT, BIAS),
    ),
    "addmm of a transpose": (
        (8, WIDTH),
        lambda x, w: torch.addmm(BIAS, flat(x), w.t()),
        lambda x, w: F.linear(x, w, BIAS),
    ),
    "addmm scaled": (
        (8, WIDTH),
        lambda x, w: torch.addmm(BIAS, flat(x), w.T, beta=0.5, alpha=3.0),
        lambda x, w: F.linear(3 * x, w, BIAS / 2),
    ),
    "addmm_": (
        (WIDTH, 8),
        lambda x, w: OTHER[: flat(x).size(0)].clone().addmm_(flat(x), w),
        lambda x, w: F.linear(flat(x), w.mT) + OTHER[: flat(x).size(0)],
    ),
    "mm": ((WIDTH, 8), lambda x, w: flat(x).mm(w), columns_of),
    "weight on the left": ((8, WIDTH), lambda x, w: (w @ x.mT).mT, rows_of),
    "mm on the left": ((8, WIDTH), lambda x, w: torch.mm(w, flat(x).t()).t(), rows_of),
    "permuted": ((WIDTH, 8), lambda x, w: torch.matmul(x, w.permute(1, 0).mT), columns_of),
    "cast": ((8, WIDTH), lambda x, w: torch.matmul(x, w.double().float().t()), rows_of),
    "einsum": ((WIDTH, 8), lambda x, w: torch.einsum("bsd,df->bsf", x, w), columns_of),
    "einsum with dots": ((8, WIDTH), lambda x, w: torch.einsum("fd,...d->...f", w, x), rows_of),
    "einsum of heads": (
        (WIDTH, 8),
        lambda x, w: torch.einsum("bsd,dhe->bshe", x, w.view(WIDTH, 2, 4)),
        columns_of,
    ),
    "einsum of heads of rows": (
        (8, WIDTH),
        lambda x, w: torch.einsum("bsd,hed->bshe", [x, w.unflatten(0, (2, 4))]),
        rows_of,
    ),
    "tensordot": ((WIDTH, 8), lambda x, w: torch.tensordot(x, w, dims=1), columns_of),
    "tensordot of axes": ((8, WIDTH), lambda x, w: torch.tensordot(x, w, ([2], [1])), rows_of),
    "bmm of one matrix": (
        (WIDTH, 8),
        lambda x, w: torch.bmm(x, w.expand(x.size(0), -1, -1)),
        columns_of,
    ),
    "baddbmm": (
        (WIDTH, 8),
        lambda x, w: torch.baddbmm(BIAS, x, w[None].expand(len(x), -1, -1), alpha=2),
        lambda x, w: F.linear(2 * x, w.mT, BIAS),
    ),
    "a product by time": (
        (8, WIDTH),
        lambda x, w: torch.stack([torch.mv(w, one) for one in flat(x)]),
        rows_of,
    ),
    "slices": (
        (8, WIDTH),
        lambda x, w: torch.cat([x @ part.T for part in w.split([2, 6])], dim=-1),
        lambda x, w: torch.cat([F.linear(x, part) for part in w.split([2, 6])], dim=-1),
    ),
    "heads merged": (
        (2, WIDTH, 4),
        lambda x, w: x @ w.permute(1, 0, 2).reshape(WIDTH, 8),
        banks,
    ),
    "einsum of banks": ((2, WIDTH, 4), lambda x, w: torch.einsum("bsd,hde->bshe", x, w), banks),
    "matmul of banks": (
        (2, WIDTH, 4),
        lambda x, w: (x[:, None] @ w).transpose(1, 2),
        banks,
    ),
    "bmm of banks": (
        (2, WIDTH, 4),
        lambda x, w: torch.bmm(flat(x).expand(2, -1, -1), w).transpose(0, 1),
        banks,
    ),
    "banks of inputs": (
        (2, 3, 8),
        lambda x, w: torch.einsum("bshe,hed->bsd", x.unflatten(-1, (2, 3)), w),
        lambda x, w: F.linear(x[..., :3], w[0].mT) + F.linear(x[..., 3:], w[1].mT),
    ),
    "bilinear": (
        (8, 1, WIDTH),
        lambda x, w: F.bilinear(torch.ones(*x.shape[:-1], 1), x, w),
        lambda x, w: torch.cat([F.linear(x, bank) for bank in w], dim=-1),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", MATRIX)
def test_a_product_has_the_curvature_of_its_linear_maps(name: str, tokens: Tensor) -> None:
    shape, use, by_linear = MATRIX[name]
    weight = normal(*shape, seed=1)
    torch.testing.assert_close(
        use(normal(3, 5, WIDTH), weight).flatten(), by_linear(normal(3, 5, WIDTH), weight).flatten()
    )
    same(curvature(weight, use, tokens), curvature(weight, by_linear, tokens))


class Attending(nn.Module):
    """Attention of two heads with one fused matrix, by PyTorch's own module or by hand."""

    def __init__(self, by_hand: bool) -> None:
        super().__init__()
        self.by_hand = by_hand
        self.table = nn.Embedding.from_pretrained(normal(VOCAB, WIDTH), freeze=False)
        self.mix = nn.MultiheadAttention(WIDTH, 2, batch_first=True)
        self.head = nn.Linear(WIDTH, VOCAB)

    def forward(self, tokens: Tensor) -> Tensor:
        x = self.table(tokens)
        if not self.by_hand:
            return self.head(self.mix(x, x, x, need_weights=False)[0])
        parts = F.linear(x, self.mix.in_proj_weight, self.mix.in_proj_bias).chunk(3, dim=-1)
        q, k, v = (part.unflatten(-1, (2, -1)).transpose(1, 2) for part in parts)
        y = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.head(self.mix.out_proj(y))


def test_attention_of_pytorchs_own_is_seen_inside(tokens: Tensor) -> None:
    torch.manual_seed(0)
    own, by_hand = Attending(False), Attending(True)
    by_hand.load_state_dict(own.state_dict())
    one, other = (calibrate(model, [tokens]).by_tensor for model in (own, by_hand))
    for name in ("mix.in_proj_weight", "mix.out_proj.weight", "head.weight"):
        same(one[name], other[name])


@pytest.mark.parametrize("grad", [True, False])
def test_layers_of_pytorchs_own_are_seen_inside(tokens: Tensor, grad: bool) -> None:
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(64, 2, 64, activation="gelu", batch_first=True)
    model = nn.Sequential(
        nn.Embedding(VOCAB, 64), nn.TransformerEncoder(layer, 2), nn.Linear(64, 11)
    )
    with torch.no_grad():
        for parameter in model.parameters():  # whose layers are copies of one
            parameter += 0.1 * torch.randn(parameter.shape)
    if not grad:
        model[1].forward = torch.no_grad()(model[1].forward)  # type: ignore[method-assign]
    found = calibrate(model, [tokens])
    assert found.unreached == ()
    for name, weight in model.state_dict().items():
        if name.startswith("1.") and weight.dim() == 2:
            assert (found.by_tensor[name].outputs is not None) == grad, name
            assert found.by_tensor[name].hessian.diagonal().min() > 0, name


@pytest.mark.parametrize(
    "how", ["checkpointed", "checkpointed reentrant", "compiled", "functional"]
)
def test_the_way_a_block_is_run_changes_nothing(how: str, tokens: Tensor) -> None:
    class Blocks(nn.Module):
        def __init__(self, how: str = "") -> None:
            super().__init__()
            torch.manual_seed(0)
            self.table, self.head = nn.Embedding(VOCAB, WIDTH), nn.Linear(WIDTH, VOCAB)
            self.block = nn.Sequential(nn.Linear(WIDTH, 8), nn.GELU(), nn.Linear(8, WIDTH))
            self.how = how
            self.run = torch.compile(self.block) if how == "compiled" else self.block

        def forward(self, ids: Tensor) -> Tensor:
            x = self.table(ids)
            if self.how.startswith("checkpointed"):
                y = checkpoint(self.block, x, use_reentrant=self.how.endswith("reentrant"))
            elif self.how == "functional":
                parameters = dict(self.block.named_parameters())
                y = torch.func.functional_call(self.block, parameters, (x,))
            else:
                y = self.run(x)
            return self.head(x + y)

    plain, model = Blocks(), Blocks(how)
    state = from_state_dict(plain.state_dict())
    expected, found = (
        calibrate(one, [tokens], checkpoint=state).by_tensor for one in (plain, model)
    )
    assert set(found) == set(expected)
    for name in ("block.0.weight", "block.2.weight"):
        same(found[name], expected[name])


def test_rows_selected_are_looked_up(tokens: Tensor) -> None:
    use = [
        lambda x, w: F.embedding(tokens[: len(x)], w),
        lambda x, w: torch.index_select(w, 0, tokens[: len(x)].flatten()),
        lambda x, w: w.index_select(0, tokens[: len(x)].flatten()),
    ]
    one, *others = (
        curvature(normal(VOCAB, 8, seed=1), by, tokens, ("table.weight",)) for by in use
    )
    for other in others:
        torch.testing.assert_close(one.hessian, other.hessian)
        torch.testing.assert_close(one.row_usage, other.row_usage)


CONVOLUTIONS: dict[str, tuple[tuple[int, ...], Use]] = {
    "kernel 1": ((8, WIDTH, 1), lambda x, w: F.conv1d(x.mT, w).mT),
    "causal": ((8, WIDTH, 3), lambda x, w: F.conv1d(F.pad(x.mT, (2, 0)), w).mT),
    "same, dilated": ((8, WIDTH, 3), lambda x, w: F.conv1d(x.mT, w, None, 1, "same", 2).mT),
    "depthwise": (
        (WIDTH, 1, 3),
        lambda x, w: F.conv1d(x.mT, w, padding=2, groups=WIDTH)[..., :-2].mT,
    ),
    "two groups": ((8, 3, 2), lambda x, w: F.conv1d(x.mT, w, padding=1, groups=2)[..., 1:].mT),
    "images": (
        (4, 1, 3, 2),
        lambda x, w: F.conv2d(x[:, None], w, None, (1, 2), padding=(1, 2)).transpose(1, 2),
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", [*CONVOLUTIONS, "einsum of inputs", "banks"])
def test_predicted_damage_of_convolutions_is_the_true_divergence(name: str) -> None:
    """½ Σ fisher · Δ H Δᵀ against the KL of slightly changed weights, with large inputs beside
    small ones.
    """
    shape, use = {
        **CONVOLUTIONS,
        "einsum of inputs": (
            (8, 2, 3),
            lambda x, w: torch.einsum("bshe,dhe->bsd", x.unflatten(-1, (2, 3)), w),
        ),
        "banks": MATRIX["banks of inputs"][:2],
    }[name]
    tokens = torch.randint(0, VOCAB, (600, 5), generator=torch.Generator().manual_seed(9))
    model = Around(normal(*shape, seed=1), use).requires_grad_(False)
    model.table.weight[:, ::2] *= 3
    found = calibrate(model, tokens.split(5)).by_tensor["w"]
    assert found.fisher is not None
    kept, measured, predicted = model.w.clone(), 0.0, 0.0
    with torch.no_grad():
        before = torch.log_softmax(model(tokens), dim=-1)
        for draw in range(40):
            model.w.copy_(kept + 0.02 * normal(*shape, seed=draw))
            after = torch.log_softmax(model(tokens), dim=-1)
            measured += float((before.exp() * (before - after)).sum(-1).mean())
            change = (model.w - kept).reshape(-1, found.columns)
            predicted += second_order_nats(change, found.hessian, found.fisher)
    assert predicted == pytest.approx(measured, rel=0.35)


@pytest.mark.parametrize(
    ("shape", "use", "said"),
    [
        ((64, 80), lambda x, w: F.linear(F.pad(x, (0, 74)), w * 2), "mul"),
        ((6, 800), lambda x, w: torch.einsum("bsd,df,bs->bsf", x, w, x[..., 0]), "bsd,df,bs->bsf"),
        ((6, 800), lambda x, w: torch.vmap(lambda one: one @ w)(flat(x)), "matmul"),
        ((6, 800), lambda x, w: x @ (w + w[:, :1] @ w[:1]), "matmul, add"),
    ],
)  # fmt: skip
def test_what_is_not_followed_is_named_with_the_call(
    shape: tuple[int, ...], use: Use, said: str, tokens: Tensor
) -> None:
    found = calibrate(Around(normal(*shape, seed=1), use), [tokens])
    assert found.unreached == ("w",)
    (warning,) = [text for text in found.warnings if text.startswith("w: ")]
    assert said in warning and "its own gradient stands in" in warning
