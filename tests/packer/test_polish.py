"""Polish: codes stay, everything else follows the unquantized model, and the cap holds."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import Result
from hypothesis import given, settings
from hypothesis import strategies as st
from packer.eval.batches import Setting
from packer.eval.damage import DamageMeter
from packer.eval.token_bytes import TokenBytes
from packer.quantizers.choice import parse_choice
from packer.quantizers.formats import QuantizedTensor, Stepped
from packer.quantizers.quantize import dequantize, quantize
from packer.train.config import settings_of
from packer.train.model import GPT, GPTConfig

from packer import api
from packer.artifact import Artifact
from packer.errors import PolishError
from packer.polishing.distilling import Distilled, Pace, distil
from packer.polishing.polished_file import ROOM_BYTES, Polisher
from packer.polishing.tuning import TunedPoints, TunedScales, TunedValues, tuned

CONFIG = GPTConfig(64, 2, 32, 4, 2, rope_train_length=64, smear_gate=True)
CHOICES = (
    *("fp16", "bf16", "fp32", "raw", "int8.row", "int4.tensor.wide", "ternary.row"),
    *("int8.row.scale32", "int3.row.rank1x4", "step+nearest@0.4", "step.row.col+nearest@0.7"),
)


def weight_of(shape: tuple[int, ...], seed: int = 0) -> torch.Tensor:
    return 0.3 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def moved(quantized: QuantizedTensor, by: float, seed: int = 0) -> QuantizedTensor:
    one = tuned(quantized)
    assert one is not None
    noise = torch.randn(one.free.shape, generator=torch.Generator().manual_seed(seed))
    with torch.no_grad():
        one.free.copy_(by * noise)
    stored = one.stored()
    weights = one.weights()
    assert torch.equal(weights.detach(), dequantize(stored))
    assert weights.requires_grad
    return stored


@pytest.mark.parametrize("choice", CHOICES)
@pytest.mark.parametrize("shape", [(6,), (72, 64)], ids=["few", "many"])
def test_what_is_tuned_is_what_the_file_would_hold(choice: str, shape: tuple[int, ...]) -> None:
    quantized = quantize(weight_of(shape), parse_choice(choice))
    same, other = moved(quantized, 0.0), moved(quantized, 0.2)
    assert torch.equal(dequantize(same), dequantize(quantized))
    assert not torch.equal(dequantize(other), dequantize(quantized))
    assert other.format == quantized.format
    if not isinstance(tuned(quantized), TunedValues):
        assert torch.equal(other.codes, quantized.codes)


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(CHOICES), st.floats(0, 30), st.integers(0, 9))
def test_no_move_leaves_the_grids_of_the_file(choice: str, by: float, seed: int) -> None:
    stored = moved(quantize(weight_of((5, 12), seed), parse_choice(choice)), by, seed)
    artifact = Artifact({"w": stored})
    back = Artifact.from_bytes(artifact.to_bytes()).tensors["w"]
    assert torch.equal(dequantize(back), dequantize(stored))


@pytest.mark.parametrize("choice", ["int8.row", "int3.row.rank1x4", "step.row.col+nearest@0.7"])
def test_gradients_are_those_of_the_smooth_function(choice: str) -> None:
    one = tuned(quantize(weight_of((72, 64)), parse_choice(choice)))
    assert isinstance(one, TunedScales | TunedPoints)
    out = weight_of((72, 64), seed=1)
    (one.weights() * out).sum().backward()
    with torch.no_grad():
        before = (one.smooth() * out).sum(dtype=torch.float64)
        one.free[0] += 1e-2
        after = (one.smooth() * out).sum(dtype=torch.float64)
    assert one.free.grad is not None
    assert float(after - before) / 1e-2 == pytest.approx(float(one.free.grad[0]), rel=2e-2)


def test_integers_and_large_tables_of_floats_are_left_alone() -> None:
    assert tuned(quantize(torch.arange(5), parse_choice("raw"))) is None
    assert tuned(quantize(torch.zeros(256, 256), parse_choice("fp16"))) is None


def lively(seed: int = 0) -> GPT:
    torch.manual_seed(seed)
    model = GPT(CONFIG)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.2 * torch.randn(parameter.shape)
    return model.eval()


def bench(tokens: np.ndarray) -> DamageMeter:
    model, copy = lively(), lively()
    no = np.zeros(64, dtype=np.bool_)
    table = TokenBytes(np.full(64, 2), no, no, no)
    live = dict(copy.named_parameters())
    return DamageMeter(model, copy, live, tokens, table, Setting(32, tokens=len(tokens) - 1))


TOKENS = np.random.default_rng(0).integers(0, 64, 6000).astype(np.uint16)


def coarse(model: GPT) -> dict[str, QuantizedTensor]:
    choices = {True: parse_choice("step.row+nearest@0.6"), False: parse_choice("fp16")}
    return {
        name: quantize(weight.detach(), choices[weight.numel() >= 512])
        for name, weight in model.named_parameters()
    }


def test_distilling_lowers_the_divergence_and_repeats() -> None:
    meter, tensors = bench(TOKENS[:641]), coarse(lively())
    pace = Pace(40, 256, rate=0.01, seed=3)
    kept = {name: weight.detach().clone() for name, weight in meter.live.items()}
    found = distil(tensors, meter, TOKENS[700:], 32, seconds=600.0, pace=pace)
    again = distil(tensors, meter, TOKENS[700:], 32, seconds=600.0, pace=pace)
    assert found.steps == 40 and not found.cut_short
    assert Artifact(found.tensors).to_bytes() == Artifact(again.tensors).to_bytes()
    assert all(torch.equal(meter.live[name], kept[name]) for name in kept)

    def kl(tensors: dict[str, QuantizedTensor]) -> float:
        weights = {name: dequantize(one) for name, one in tensors.items()}
        return meter.divergence(weights).kl_bits_per_byte

    assert kl(dict(found.tensors)) < 0.97 * kl(tensors)
    for name, one in tensors.items():
        if "step" in str(one.format):
            assert torch.equal(found.tensors[name].codes, one.codes)


def test_a_short_time_is_heeded() -> None:
    meter, tensors = bench(TOKENS[:641]), coarse(lively())
    with pytest.raises(PolishError, match="not enough for a single step"):
        distil(tensors, meter, TOKENS, 32, seconds=0.0)
    with pytest.raises(PolishError, match="20 tokens of calibration text are left"):
        distil(tensors, meter, TOKENS[:20], 32, seconds=9.0)


def polisher(meter: DamageMeter, steps: int = 8) -> Polisher:
    return Polisher(meter, TOKENS[700:], 32, seconds=600, pace=Pace(steps, 256))


def test_the_cap_holds_whatever_the_tuning_makes_of_the_floats() -> None:
    meter = bench(TOKENS[:641])
    weights = {name: weight.detach() for name, weight in lively().named_parameters()}
    cap = 11_400
    made = api.plan(weights, cap, margin_bytes=ROOM_BYTES)
    plain, packed = api.pack(weights, made), api.pack(weights, made, polisher=polisher(meter, 30))
    assert packed.polish is not None and packed.polish.kept
    assert packed.plan.choices == plain.plan.choices == made.choices
    assert packed.account.total_bytes == len(packed.data) <= cap
    assert packed.plan.limits.margin_bytes == packed.plan.plan.margin_bytes == 0
    assert packed.plan.plan.artifact_bytes == len(packed.data)
    before = meter.divergence(api.unpack(plain.data)).kl_bits_per_byte
    after = meter.divergence(api.unpack(packed.data)).kl_bits_per_byte
    assert packed.polish.before == pytest.approx(before, rel=1e-9)
    assert packed.polish.after == pytest.approx(after, rel=1e-9)
    assert not api.verify(packed.data, weights, made).problems


def test_a_margin_beyond_the_room_stays_free() -> None:
    weights = {name: weight.detach() for name, weight in lively().named_parameters()}
    made = api.plan(weights, 14_000, margin_bytes=ROOM_BYTES + 500)
    packed = api.pack(weights, made, polisher=polisher(bench(TOKENS[:641]), steps=2))
    assert len(packed.data) <= 13_500
    tight = api.plan(weights, 14_000, margin_bytes=ROOM_BYTES - 1)
    with pytest.raises(PolishError, match="plan again with --margin"):
        api.pack(weights, tight, polisher=polisher(bench(TOKENS[:641])))


@pytest.fixture(scope="module")
def lab(tmp_path_factory: pytest.TempPathFactory, train_bpe: Callable[[Path, int], None]) -> Path:
    """model.pt, its configuration, its class for strangers, a text and its tokenizer."""
    folder = tmp_path_factory.mktemp("polish")
    torch.save(lively().state_dict(), folder / "model.pt")
    (folder / "model.config.json").write_text(json.dumps(settings_of(CONFIG)))
    (folder / "strange.py").write_text(
        "from packer.train.config import config_from\nfrom packer.train.model import GPT\n"
        "def make(**settings):\n    return GPT(config_from(settings))\n"
    )
    words = ["lorem", "ipsum", "dolor", "sit", "amet", "qui", "vexat", "bonum", "jazz", "hyphen"]
    chosen = np.random.default_rng(0).choice(words, 3000)
    (folder / "train.txt").write_text("\n".join(" ".join(chosen[i::300]) for i in range(300)))
    train_bpe(folder / "train.txt", 64)
    return folder


def text_of(lab: Path) -> tuple[object, ...]:
    size = ("--calibration-tokens", 1024, "--calibration-window", 32)
    return ("--calibration", lab / "train.txt", "--tokenizer", lab / "t64.model", *size)


def test_pack_polishes_under_the_cap(lab: Path, run: Callable[..., Result]) -> None:
    asked = ("--cap", 11_400, *text_of(lab), "--polish", 9, "--polish-steps", 30, "--json")
    result = run("pack", lab / "model.pt", *asked, "-o", "a.pack")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)["polish"]
    assert told["kept"] and told["kl_after_bits_per_byte"] < told["kl_before_bits_per_byte"]
    assert told["steps"] == 30 and told["seconds"] > 0 and "the end of" in told["held_out"]
    assert 11_400 - 200 <= Path("a.pack").stat().st_size <= 11_400
    run("pack", lab / "model.pt", *asked, "-o", "b.pack")
    assert Path("a.pack").read_bytes() == Path("b.pack").read_bytes()
    report = run("report", "a.pack")
    assert "polished: all but the codes was tuned" in report.stderr
    checked = run("verify", "a.pack", "--against", lab / "model.pt")
    assert checked.exit_code == 0, checked.output


def test_a_strange_model_and_a_plan(lab: Path, run: Callable[..., Result]) -> None:
    curvature = ("--curvature", "plan.curvature.safetensors")
    strange = ("--model", f"{lab / 'strange.py'}:make")
    room = ("--cap", 11_400, "--margin", ROOM_BYTES)
    planned = run("plan", lab / "model.pt", *room, *text_of(lab), "-o", "plan.json")
    assert planned.exit_code == 0, planned.output
    asked = ("--plan", "plan.json", *curvature, *text_of(lab), "--polish", 9, "--polish-steps", 2)
    result = run("pack", lab / "model.pt", *asked, *strange, "-o", "a.pack")
    assert result.exit_code == 0, result.output
    assert "polished: KL" in result.stdout and "2 steps" in result.stdout
    assert Path("a.pack").stat().st_size <= 11_400
    checked = run("verify", "a.pack", "--against", lab / "model.pt", "--plan", "plan.json")
    assert checked.exit_code == 0, checked.output


def test_verify_still_sees_what_no_polish_moves() -> None:
    weights = {name: weight.detach() for name, weight in lively().named_parameters()}
    name = max(weights, key=lambda name: weights[name].numel())
    pins = {name: "step.row+nearest@0.6"}
    made = api.plan(weights, 11_400, margin_bytes=ROOM_BYTES, pins=pins)
    packed = api.pack(weights, made, polisher=polisher(bench(TOKENS[:641]), 30))
    whole = Artifact.from_bytes(packed.data)
    assert "polished" in whole.metadata and not api.verify(packed.data, weights, made).problems
    old = whole.tensors[name]
    other = replace(old, side={**old.side, "row": 2 * old.side["row"]})
    bad = replace(whole, tensors={**whole.tensors, name: other}).to_bytes()
    assert api.verify(bad, weights, made).problems == (
        f"{name}: the row steps differ from what {made.choices[name]} gives",
    )


@pytest.mark.parametrize(
    ("asked", "minutes", "words"),
    [
        ((), 1, "there is none: name text or shards with --calibration"),
        (("text", "--recipe", "int6-rowmax-zstd"), 1, "--plan or --policy, not --recipe"),
        (("text",), 0, "0.0 is not in the range x>0"),
        (("text", "--calibration-tokens", 64), 1e-9, "not enough for a single step"),
    ],
)
def test_what_cannot_be_polished_is_refused(
    lab: Path, run: Callable[..., Result], asked: tuple[object, ...], minutes: float, words: str
) -> None:
    text = text_of(lab) if "text" in asked else ()
    more = (*text, *asked[1:], "--polish", minutes)
    result = run("pack", lab / "model.pt", "--cap", 11_400, *more, "-o", "a.pack")
    assert result.exit_code and words in " ".join(result.output.split())
    assert not Path("a.pack").exists()


def test_text_without_tokenizer_and_a_plan_without_room(
    lab: Path, run: Callable[..., Result]
) -> None:
    run("plan", lab / "model.pt", "--cap", 11_400, "-o", "plan.json")
    asked = ("--polish", 1, "-o", "a.pack")
    tight = run("pack", lab / "model.pt", "--plan", "plan.json", *text_of(lab), *asked)
    assert tight.exit_code == 1 and "plan again with --margin 64" in tight.output
    bare = ("--calibration", lab / "train.txt")
    wordless = run("pack", lab / "model.pt", "--cap", 11_400, *bare, *asked)
    assert wordless.exit_code == 1 and "--tokenizer" in wordless.output
    assert not Path("a.pack").exists()


def test_what_does_not_help_leaves_the_file_as_it_would_be(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = {name: weight.detach() for name, weight in lively().named_parameters()}
    made = api.plan(weights, 14_000, margin_bytes=ROOM_BYTES)
    plain = api.pack(weights, made)

    def spoilt(tensors: dict[str, QuantizedTensor], *_: object, **__: object) -> Distilled:
        return Distilled({name: moved(one, 0.5) for name, one in tensors.items()}, 1, False)

    monkeypatch.setattr("packer.polishing.polished_file.distil", spoilt)
    packed = api.pack(weights, made, polisher=polisher(bench(TOKENS[:641])))
    assert packed.polish is not None and packed.polish.after > packed.polish.before
    assert not packed.polish.kept and packed.data == plain.data


@pytest.mark.parametrize("format", [f"trellis{axes}" for axes in ("", ".row", ".col", ".row.col")])
def test_a_trellis_keeps_its_path(format: str) -> None:
    stored = moved(quantize(weight_of((72, 64)), parse_choice(f"{format}+nearest@0.7")), 0.2)
    assert isinstance(stored.format, Stepped) and stored.format.trellis
