"""Fake quantization is the round trip through a file, with the gradient of the identity."""

import pytest
import torch
from packer.quantizers import fake_quant
from packer.quantizers.attachment import (
    attach,
    detach,
    hold_scales,
    plain_name,
    rounded_once,
    set_strength,
)
from packer.quantizers.choice import parse_choice
from packer.quantizers.fake_quant import fake_quantize, quantize_held, stored_scale
from packer.quantizers.formats import FormatError
from packer.quantizers.quantize import dequantize, quantize
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from packer.artifact.decoder import read_weights
from packer.artifact.encoder import Artifact

SCALED = [
    *(f"int{bits}.{axis}" for bits in range(2, 9) for axis in ("row", "tensor")),
    "int6.row.wide",
    "int8.row.scale32",
    "int8.row+kstd@1.5",
    "int5.row+percentile",
    "int5.row+percentile-matrix",
    "int4.row+mse",
    "int6.row~brotli+prune@0.3",
    "ternary.row",
    "ternary.row+absmean",
]
CHOICES = ["raw", "fp32", "fp16", "bf16", *SCALED]


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return 0.3 * torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def network() -> nn.Sequential:
    layers = [nn.Linear(12, 8), nn.Tanh(), nn.Linear(8, 4)]
    for seed, layer in enumerate(layers[::2]):
        with torch.no_grad():
            layer.weight.copy_(normal(*layer.weight.shape, seed=seed))
    return nn.Sequential(*layers)


@pytest.mark.parametrize("text", CHOICES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_value_is_what_a_file_gives_back(text, dtype):
    choice = parse_choice(text)
    weight = normal(5, 24).to(dtype)
    weight[1] = 0
    quantized = quantize(weight, choice)
    data = Artifact({"w": quantized}, coders={"w": choice.coder}).to_bytes()
    faked = fake_quantize(weight.requires_grad_(), choice)
    assert faked.dtype == dtype
    assert torch.equal(faked, dequantize(quantized))
    assert torch.equal(faked, read_weights(data)["w"])


@pytest.mark.parametrize("text", CHOICES)
def test_the_gradient_is_that_of_the_identity(text):
    """Also where codes were clipped and weights pruned."""
    weight, mixing = normal(4, 16), normal(4, 16, seed=1)
    faked, plain = weight.clone().requires_grad_(), weight.clone().requires_grad_()
    strength = torch.tensor(0.4)
    for given in (None, strength):
        for leaf in (faked, plain):
            leaf.grad = None
        (fake_quantize(faked, parse_choice(text), strength=given) * mixing).sum().backward()
        (plain * mixing).sum().backward()
        assert torch.equal(faked.grad, plain.grad)


@pytest.mark.parametrize("text", ["int4.row", "fp16"])
def test_strength_blends_and_is_exact_at_both_ends(text):
    choice = parse_choice(text)
    weight = normal(3, 8)
    decoded = dequantize(quantize(weight, choice))
    for strength, expected in ((0.0, weight), (1.0, decoded)):
        found = fake_quantize(weight, choice, strength=torch.tensor(strength))
        assert torch.equal(found, expected)
    half = fake_quantize(weight, choice, strength=torch.tensor(0.5))
    torch.testing.assert_close(half, (weight + decoded) / 2)


def test_a_weight_that_overflows_a_float_format_stays_infinite_at_full_strength():
    weight = torch.tensor([1e6, 1.0])
    found = fake_quantize(weight, parse_choice("fp16"), strength=torch.tensor(1.0))
    assert found.tolist() == [torch.inf, 1.0]


@pytest.mark.parametrize("text", SCALED)
def test_held_scales_stay_while_weights_move(text):
    choice = parse_choice(text)
    before, after = normal(4, 10), 2 * normal(4, 10, seed=1)
    scale = stored_scale(before, choice)
    assert torch.equal(scale, quantize(before, choice).side["scale"])
    leaf = after.clone().requires_grad_()
    faked = fake_quantize(leaf, choice, scale=scale)
    packed = quantize_held(after, choice, scale)
    assert torch.equal(packed.side["scale"], scale)
    assert torch.equal(faked, dequantize(packed))
    assert torch.equal(faked, read_weights(Artifact({"w": packed}).to_bytes())["w"])
    assert not torch.equal(faked, fake_quantize(after, choice))
    faked.sum().backward()
    assert torch.equal(leaf.grad, torch.ones_like(leaf))


def test_what_a_format_cannot_hold_is_refused():
    int6, fp16 = parse_choice("int6.row"), parse_choice("fp16")
    with pytest.raises(FormatError, match=r"int6.row cannot hold torch.int64 \[3\]; use raw"):
        fake_quantize(torch.arange(3), int6)
    with pytest.raises(FormatError, match="no scales to hold"):
        quantize_held(normal(2, 2), fp16, torch.ones(2))
    with pytest.raises(FormatError, match=r"found torch.float32 \[2\]"):
        quantize_held(normal(2, 2), int6, torch.ones(2))


@pytest.mark.parametrize("contiguous", [True, False])
def test_the_operator_keeps_its_promises_to_the_compiler(contiguous):
    weight = normal(4, 6) if contiguous else normal(6, 4).t()
    operator = torch.ops.bytecap.fake_quantize.default
    for strength in (0.0, 0.3, 1.0):
        arguments = (weight.detach().requires_grad_(), "int4.row", torch.tensor(strength), None)
        torch.library.opcheck(operator, arguments)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_switching_on_reaches_a_graph_that_is_compiled_already(backend):
    model = network()
    inputs = normal(3, 12, seed=5)
    plain = model(inputs)
    assert attach(model, {"0.weight": "int3.row", "2.weight": "int3.row"}, strength=0.0) == ()
    graphs = []

    def count(graph, examples):
        graphs.append(graph)
        return torch._dynamo.lookup_backend(backend)(graph, examples)

    torch._dynamo.reset()
    compiled = torch.compile(model, backend=count, fullgraph=True)
    assert torch.equal(compiled(inputs), plain)
    outputs = {}
    for strength in (1.0, 0.5, 0.0, 1.0):
        set_strength(model, strength)
        outputs[strength] = compiled(inputs)
        assert torch.equal(outputs[strength], model(inputs))
    assert len(graphs) == 1
    assert not torch.equal(outputs[1.0], plain)
    assert not torch.equal(outputs[1.0], outputs[0.5])
    assert torch.equal(outputs[0.0], plain)
    compiled(inputs).sum().backward()
    quick = {name: p.grad.clone() for name, p in model.named_parameters()}
    model.zero_grad()
    model(inputs).sum().backward()
    for name, parameter in model.named_parameters():
        assert torch.equal(quick[name], parameter.grad)
    torch._dynamo.reset()


def test_a_plan_is_attached_by_name_and_taken_off():
    model = network()
    originals = {name: p.detach().clone() for name, p in model.named_parameters()}
    identities = {name: id(p) for name, p in model.named_parameters()}
    choices = {"0.weight": parse_choice("int4.row"), "nothing": "fp16", "0.bias": "raw"}
    assert attach(model, choices) == ("nothing",)
    assert torch.equal(
        model[0].weight, dequantize(quantize(originals["0.weight"], choices["0.weight"]))
    )
    assert torch.equal(model[2].weight, originals["2.weight"])
    names = {plain_name(name): id(p) for name, p in model.named_parameters()}
    assert names == identities
    with pytest.raises(FormatError, match=r"0.weight is fake-quantized already; detach it first"):
        attach(model, {"0.weight": "fp16"})
    detach(model)
    after = dict(model.named_parameters())
    assert {name: id(p) for name, p in after.items()} == identities
    assert all(torch.equal(after[name], originals[name]) for name in originals)


def test_a_tied_parameter_is_quantized_under_each_of_its_names():
    model = nn.ModuleDict({"embedding": nn.Embedding(8, 6), "head": nn.Linear(6, 8, bias=False)})
    model["head"].weight = model["embedding"].weight
    with pytest.raises(FormatError, match=r"tied: int4\.row and int5\.row disagree"):
        attach(model, {"embedding.weight": "int4.row", "head.weight": "int5.row"})
    assert {plain_name(name) for name in model.state_dict()} == set(model.state_dict())
    attach(model, {"head.weight": "int4.row"})
    assert torch.equal(model["embedding"].weight, model["head"].weight)
    stored = model["head"].parametrizations.weight.original
    assert not torch.equal(model["embedding"].weight, stored)
    assert len(list(model.parameters())) == 1
    detach(model)
    assert model["head"].weight is model["embedding"].weight


def test_a_module_that_is_used_twice_is_wrapped_once():
    layer = nn.Linear(6, 6)
    model = nn.Sequential(layer, nn.Tanh(), layer)
    assert attach(model, {"2.weight": "int4.row"}) == ()
    assert len(layer.parametrizations.weight) == 1
    detach(model)
    assert isinstance(layer.weight, nn.Parameter)


def test_held_scales_of_a_model_are_saved_and_renewed_when_asked():
    model = network()
    attach(model, {"0.weight": "int4.row", "0.bias": "fp16"}, held=True)
    wrapper = model[0].parametrizations.weight[0]
    first = wrapper.scale.clone()
    assert torch.equal(model.state_dict()["0.parametrizations.weight.0.scale"], first)
    with torch.no_grad():
        model[0].parametrizations.weight.original.mul_(3)
    model(normal(1, 12))
    assert torch.equal(wrapper.scale, first)
    hold_scales(model)
    torch.testing.assert_close(wrapper.scale, 3 * first, rtol=1e-3, atol=0)
    choice = parse_choice("int4.row")
    original = model[0].parametrizations.weight.original.detach()
    assert torch.equal(model[0].weight, dequantize(quantize(original, choice)))


def test_training_through_the_round_trip_lowers_the_loss_of_the_decoded_weights():
    model = network()
    inputs, targets = normal(64, 12, seed=7), normal(64, 4, seed=8)
    attach(model, {"0.weight": "int3.row", "2.weight": "int3.row"})
    optimizer = torch.optim.SGD(model.parameters(), lr=0.2)
    losses = []
    for _ in range(30):
        loss = (model(inputs) - targets).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]


@pytest.mark.parametrize("strength", [-0.1, 1.1, float("nan")])
def test_a_strength_outside_the_range_is_refused(strength):
    with pytest.raises(FormatError, match="strength lies in"):
        set_strength(network(), strength)


class NoHost(TorchDispatchMode):
    """Raises where a GPU would be waited for: a number is read, or a tensor of the host is used."""

    def __torch_dispatch__(self, func, _, args=(), kwargs=None):
        found = {x.device.type for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        if func is torch.ops.aten._local_scalar_dense.default or found == {"cpu", "meta"}:
            raise AssertionError(f"{func} waits for the device")
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    "text",
    [
        *("int6.row", "int5.row+prune@0.1", "int6.row+quantile@0.9995", "int8.tensor+kstd@12"),
        *(
            "int6.row+percentile",
            "int6.row+percentile-matrix",
            "int4.row+zero@1",
            "int8.row.scale32",
        ),
    ],
)
def test_rounding_never_waits_for_the_device(text: str) -> None:
    weight = torch.empty(16, 300, device="meta")
    with NoHost():
        decoded = fake_quant._round_trip(weight, parse_choice(text), None)
    assert decoded.device.type == "meta" and decoded.shape == weight.shape
    with pytest.raises(AssertionError, match="waits"), NoHost():
        torch.where(weight > 0, weight, torch.zeros(()))


def test_a_weight_is_rounded_once_for_all_reads() -> None:
    module = nn.Linear(8, 4, bias=False)
    attach(module, {"weight": "int4.row"})
    fresh, calls = module.weight.detach().clone(), []
    original = fake_quant._round_trip
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fake_quant, "_round_trip", lambda *a: calls.append(1) or original(*a))
        with rounded_once(module):
            for _ in range(3):
                module(torch.ones(2, 8)).sum().backward()
            assert torch.equal(module.weight, fresh)
        assert len(calls) == 1
        module(torch.ones(2, 8))
        assert len(calls) == 2
    weight = module.parametrizations.weight.original
    torch.testing.assert_close(weight.grad, torch.full((4, 8), 6.0))
