"""The bundle: alone it quantizes, fills the cap, and writes what everybody reads alike."""

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from packer.quantizers.choice import parse_choice
from packer.quantizers.curvature import Curvature
from packer.quantizers.quantize import dequantize, quantize

import packer
from packer import api
from packer.artifact.decoder import parse
from packer.artifact.reader import ArtifactError
from packer.checkpoint.checkpoint import from_state_dict, read_checkpoint
from packer.checkpoint.fingerprint import contents_fingerprint
from packer.cli import main
from packer.curvature.curvature_set import CurvatureSet
from packer.curvature.file import write_curvature
from packer.curvature.given import resolve_curvature
from packer.errors import CapError
from packer.planning.account import Limits
from packer.planning.measure import measure_choices
from packer.planning.plan import make_plan
from packer.shipping.bundle import BundleContents, make_bundle
from packer.shipping.fit_to_cap import CLOSE, keep_usable, largest_filling, read_curvatures

ALONE = """
import runpy, sys
for name in ("packer", "safetensors", "scipy"):
    sys.modules[name] = None
sys.argv = sys.argv[1:]
runpy.run_path(sys.argv[0], run_name="__main__")
"""
DECODED = """
import hashlib, sys
sys.modules["packer"] = None
space = {"__name__": "bundle"}
exec(open(sys.argv[1]).read(), space)
for name, weight in sorted(space["read_weights"](open(sys.argv[2], "rb").read()).items()):
    print(name, hashlib.sha256(weight.contiguous().numpy().tobytes()).hexdigest())
"""


def alone(script: str, *arguments: str) -> str:
    """What an isolated interpreter prints."""
    command = [sys.executable, "-I", "-c", script, *arguments]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def digests(path: str) -> str:
    found = sorted(packer.unpack(path).items())
    return "".join(
        f"{name} {hashlib.sha256(weight.contiguous().numpy().tobytes()).hexdigest()}\n"
        for name, weight in found
    )


def seeded() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    shapes = {"blocks.0.mlp.fc.weight": (256, 96), "blocks.0.mlp.proj.weight": (96, 256)}
    weights = {n: 0.1 * torch.randn(shape, generator=generator) for n, shape in shapes.items()}
    weights["tok_emb.weight"] = torch.randn(512, 96, generator=generator)
    weights["norm.weight"] = 1 + 0.1 * torch.randn(96, generator=generator)
    return weights


def curvature_of(weight: torch.Tensor) -> Curvature:
    generator = torch.Generator().manual_seed(len(weight))
    rows, columns = weight.shape
    inputs = torch.randn(4 * columns, columns, generator=generator)
    inputs *= torch.rand(columns, generator=generator)
    outputs = torch.randn(4 * rows, rows, generator=generator)
    hessian, moment = inputs.T @ inputs / len(inputs), outputs.T @ outputs / len(outputs)
    return Curvature(hessian, moment.diagonal().clone(), 4096, outputs=moment)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with weights, curvature and a plan for 40,000 bytes."""
    folder = tmp_path_factory.mktemp("bundle")
    weights = seeded()
    torch.save(weights, folder / "model.pt")
    contents = contents_fingerprint(from_state_dict(weights))
    by_name = {name: curvature_of(w) for name, w in weights.items() if w.dim() == 2}
    found = CurvatureSet(by_name, contents, "seeded", 4096, 0.0, 128, 4.0)
    write_curvature(folder / "curvature.safetensors", found)
    packer.plan(weights, 40_000, curvature=found, out=folder / "plan.json")
    return folder


def test_alone_it_fills_the_cap_with_what_all_read_alike(made, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["bundle", "--plan", str(made / "plan.json"), "-o", "bundle.py", "--json"]
    done = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert done.exit_code == 0, done.output
    output = json.loads(done.stdout)
    script = Path("bundle.py").stat().st_size
    assert output["script_bytes"] == output["code_bytes"] == script
    assert output["artifact_bytes"] == 40_000 - script
    assert 0 < output["decoder_bytes"] < output["encoder_bytes"]
    assert output["decoder_bytes"] + output["encoder_bytes"] == script
    inputs = (str(made / "model.pt"), str(made / "curvature.safetensors"))
    printed = alone(ALONE, "bundle.py", *inputs, "m.pack")
    size = Path("m.pack").stat().st_size
    assert printed.strip() == f"code {script} + artifact {size} = {script + size}"
    assert 40_000 - 200 <= script + size <= 40_000
    assert parse(Path("m.pack").read_bytes()).code_bytes == script
    assert alone(DECODED, "bundle.py", "m.pack") == digests("m.pack")
    alone(ALONE, "bundle.py", *inputs, "small.pack", "32000")
    assert 32_000 - 200 <= script + Path("small.pack").stat().st_size <= 32_000
    plan = api.load_plan(made / "plan.json")
    formats = {name: choice.partition("+")[0] for name, choice in plan.choices.items()}
    assert packer.verify("small.pack", made / "model.pt").problems == ()
    checks = {check.name: check.format for check in packer.verify("small.pack").tensors}
    assert checks == formats


def test_imported_it_defines_what_a_training_script_calls(made):
    plan = api.load_plan(made / "plan.json")
    space = {"__name__": "bundle"}
    exec(make_bundle(plan.bundled).script, space)
    curvature = space["read_curvatures"]((made / "curvature.safetensors").read_bytes())
    data = space["encode_weights"](seeded(), curvature, 30_000, 9_000)
    assert 21_000 - 200 <= len(data) <= 21_000
    theirs, ours = space["read_weights"](data), packer.unpack(data)
    assert theirs.keys() == ours.keys() == seeded().keys()
    assert all(torch.equal(theirs[name], ours[name]) for name in ours)


def test_a_plan_makes_room_for_its_own_bundle(made, tmp_path):
    earlier = api.load_plan(made / "plan.json")
    limits = packer.PlanLimits(40_000, bundle=True)
    packer.plan(earlier.measurement, limits, out=tmp_path / "plan.json")
    plan = api.load_plan(tmp_path / "plan.json")
    done = make_bundle(plan.bundled)
    limits = plan.limits
    assert (limits.loader_bytes, limits.encoder_bytes) == (done.decoder_bytes, done.encoder_bytes)
    assert limits.code_bytes == done.size_bytes
    assert plan.plan.total_bytes <= 40_000 and plan.plan.code_bytes == limits.code_bytes
    assert plan.plan.damage > earlier.plan.damage
    assert f"encoder {done.encoder_bytes:,}" in limits.describe_code()
    with pytest.raises(CapError):
        packer.plan(earlier.measurement, packer.PlanLimits(14_000, bundle=True))


def test_what_a_plan_counts_is_told_apart(made):
    arguments = ["plan", str(made / "plan.json"), "--cap", "40000", "--bundle", "--json"]
    output = json.loads(CliRunner().invoke(main, arguments, catch_exceptions=False).stdout)
    assert output["decoder_bytes"] + output["encoder_bytes"] == output["code_bytes"]


def test_what_it_cannot_use_is_told_in_a_line_and_nothing_is_written(made, tmp_path):
    (tmp_path / "bundle.py").write_text(
        make_bundle(api.load_plan(made / "plan.json").bundled).script
    )
    good, curvature = str(made / "model.pt"), str(made / "curvature.safetensors")
    fewer = {name: weight for name, weight in seeded().items() if "fc" not in name}
    torch.save(fewer, tmp_path / "fewer.pt")
    cases = {
        "not among the weights": (str(tmp_path / "fewer.pt"), curvature),
        "plan.json cannot be read": (good, str(made / "plan.json")),
        "do not fit": (good, curvature, "12000"),
        "usage: ": (good,),
    }
    for message, (weights, *rest) in cases.items():
        given = [weights, *rest[:1], *([str(tmp_path / "m.pack")] if rest else []), *rest[1:]]
        command = [sys.executable, "-I", "-c", ALONE, str(tmp_path / "bundle.py"), *given]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 1 and message in done.stderr
        assert len(done.stderr.splitlines()) == 1
    assert {one.name for one in tmp_path.iterdir()} == {"bundle.py", "fewer.pt"}


def test_weights_and_curvature_that_do_not_go_together_are_refused():
    weight, choice = torch.randn(8, 6), parse_choice("step.row.col+gptq2@0.5")
    curvature = curvature_of(weight)
    keep_usable("a", weight, choice, curvature)
    keep_usable("a", weight, parse_choice("fp16"), None)
    broken = torch.full_like(weight, torch.nan)
    blind = Curvature(curvature.hessian, curvature.fisher, 9)
    for message, one, known in (
        ("not finite", broken, curvature),
        ("no curvature", weight, None),
        ("of another shape", weight.T, curvature),
        ("of another shape", weight[:7], curvature),
        ("no curvature of outputs", weight, blind),
    ):
        with pytest.raises(ArtifactError, match=f"a (is|has) .*{message}|a has {message}"):
            keep_usable("a", one, choice, known)


def test_other_formats_are_encoded_too():
    """Integers with a correction, a table under brotli, ternary, and tied names."""
    weights = {**seeded(), "head.weight": torch.zeros(1)}
    weights["head.weight"] = weights["tok_emb.weight"]
    pins = {
        "blocks.0.mlp.fc.weight": "int5.row.rank2x4+kstd@12.85+gptq",
        "tok_emb.weight": "int8.row~brotli+percentile",
        "norm.weight": "ternary.row",
    }
    hessians = {name: curvature_of(weights[name]).hessian for name in pins if "fc" in name}
    options = packer.MeasureOptions(pins=pins)
    plan = packer.plan(weights, 200_000, options, curvature=hessians)
    space: dict = {"__name__": "bundle"}
    exec(make_bundle(plan.bundled).script, space)
    known = {name: space["Curvature"](hessian, None, 1) for name, hessian in hessians.items()}
    data = space["encode_weights"](weights, known, 200_000, 0)
    packed = packer.pack(weights, plan, curvature=hessians).data
    theirs, ours = packer.unpack(data), packer.unpack(packed)
    assert theirs.keys() == ours.keys() and "head.weight" in ours
    assert all(torch.equal(theirs[name], ours[name]) for name in ours)
    assert data[25:] == packed[25:] or len(data) == len(packed)


def test_codes_on_a_trellis_are_searched_for_without_a_compiler_too(monkeypatch):
    name = "blocks.0.mlp.fc.weight"
    weights = {name: seeded()[name][:40, :24].clone(), "norm.weight": seeded()["norm.weight"]}
    curvature = curvature_of(weights[name])
    pins = {name: "trellis.row.col+gptq2@1", "norm.weight": "fp16"}
    plan = packer.plan(
        weights, 30_000, packer.MeasureOptions(pins=pins), curvature={name: curvature}
    )
    packed = packer.pack(weights, plan, curvature={name: curvature}).data
    script = make_bundle(plan.bundled).script
    for compiler in (sys.modules["numba"], None):
        monkeypatch.setitem(sys.modules, "numba", compiler)
        space: dict = {"__name__": "bundle"}
        exec(script, space)
        known = space["Curvature"](
            curvature.hessian, curvature.fisher, 4096, None, None, curvature.outputs
        )
        data = space["encode_weights"](weights, {name: known}, len(packed) + CLOSE, 0)
        assert data[25:-8] == packed[25:-8]  # all but cap, code and checksum


def test_curvature_files_are_read_as_they_were_written(made):
    found = read_curvatures((made / "curvature.safetensors").read_bytes())
    for name, weight in seeded().items():
        if weight.dim() == 2:
            known = curvature_of(weight)
            assert found[name].tokens == known.tokens
            for field in ("hessian", "fisher", "outputs"):
                assert torch.equal(getattr(found[name], field), getattr(known, field))


def test_filling_ends_close_below_the_room_or_refuses():
    def blocks_at(octaves: float) -> dict[str, bytes]:
        sizes = {f"t{i}": int(1000 * (i + 1) * 2**-octaves) // 3 for i in range(6)}
        return {name: bytes(size) for name, size in sizes.items()}

    for room in (500, 3_000, 7_123, 30_000):
        size = sum(map(len, largest_filling(blocks_at, room, 8_000).values()))
        assert room - CLOSE - 20 <= size <= room
    with pytest.raises(ArtifactError, match="do not fit into 10 bytes"):
        largest_filling(lambda _: {"t": bytes(100)}, 10, 8_000)
    assert largest_filling(lambda _: {}, 10, 1) == {}


def test_on_the_reference_checkpoint(shared, tmp_path):
    """In steps, two matrices by GPTQ: the file fills its cap and is read alike by all."""
    path = str(shared / "checkpoints" / "ref6x256.pt")
    loaded = read_checkpoint(path)
    matrices = [name for name, w in loaded.tensors.items() if w.dim() == 2 and w.numel() > 4096]
    rounded = [name for name in matrices if ".attn.c_k." in name][:2]
    by_name = {name: curvature_of(loaded.tensors[name]) for name in rounded}
    choices = dict.fromkeys(loaded.tensors, "fp16")
    choices |= dict.fromkeys(matrices, "step.row+nearest@0.5")
    choices |= dict.fromkeys(rounded, "step.row.col+gptq2@0.5")
    measured = measure_choices(loaded, choices, curvature=resolve_curvature(loaded, by_name))
    size = measured.header_bytes + sum(one.size_bytes for one in measured.candidates)
    plan = make_plan(measured, Limits(size))
    script = tmp_path / "bundle.py"
    script.write_text(make_bundle(plan.bundled).script)
    found = CurvatureSet(by_name, None, "drawn", 4096, 0.0, None, None)
    write_curvature(tmp_path / "curvature.safetensors", found)
    torch.save(dict(loaded.tensors), tmp_path / "in.pt")
    names = ("in.pt", "curvature.safetensors", "m.pack")
    alone(ALONE, str(script), *(str(tmp_path / name) for name in names))
    total = script.stat().st_size + (tmp_path / "m.pack").stat().st_size
    assert size - 200 <= total <= size
    packed = str(tmp_path / "m.pack")
    assert alone(DECODED, str(script), packed) == digests(packed)


def test_a_bundle_keeps_the_steps_of_its_choices():
    """A clip at a quantile, a percentile chosen by GPTQ, and small codes made zero."""
    choices = {
        "blocks.0.mlp.fc.weight": "int6.row~ans+percentile-rounded+zero@1+gptq",
        "blocks.0.mlp.proj.weight": "int6.row~ans+quantile@0.99",
    }
    weights = {name: seeded()[name] for name in choices}
    script = make_bundle(BundleContents(choices, {}, {}, 10**6, 0)).script
    space: dict[str, object] = {"__name__": "bundle"}
    exec(compile(script, "bundle.py", "exec"), space)
    known = {name: curvature_of(weight) for name, weight in weights.items()}
    found = packer.unpack(space["encode_weights"](weights, known, 10**6, 0))
    for name, text in choices.items():
        expected = dequantize(quantize(weights[name], parse_choice(text), known[name]))
        assert torch.equal(found[name], expected), name
