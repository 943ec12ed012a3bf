"""The loader: small, of just the formats in use, counted as it is written, and bit-identical."""

import ast
import hashlib
import importlib
import lzma
import subprocess
import sys
from dataclasses import replace

import brotli
import pytest
import torch
from packer.budget.plan import Candidate
from packer.quantizers.choice import parse_choice
from packer.quantizers.quantize import quantize

from packer.artifact.decoder import read_weights
from packer.artifact.encoder import Artifact
from packer.code.minify import minify_closed
from packer.code.pack_script import SourceFile, pack_code
from packer.code.prune_branches import Marks, without
from packer.code.self_extracting import unwrap
from packer.errors import CodeError
from packer.planning.account import Limits
from packer.planning.candidates import Measurement
from packer.planning.measure import measure
from packer.planning.options import MeasureOptions
from packer.planning.plan import make_plan, replan
from packer.shipping.extract import bare, extract
from packer.shipping.loader import (
    CHECKS,
    DECODERS,
    ENTRIES,
    EVERYTHING,
    GUARDS,
    LARGEST_LOADER,
    RE_ENCODED,
    loader_bytes,
    loader_source,
    minified_loader,
    parts_of,
)

STEPS = ("step.row.col+nearest@0.4", "int8.row", "fp16")
CHOICES = (
    *("raw", "fp32", "bf16~zstd", "int6.row~brotli", "int5.tensor~lzma", "ternary.row~zlib"),
    *("int4.row.rank2x4", "int8.tensor.wide~raw", "step", "step.row", "step.col", "step.row.col"),
    *("trellis", "trellis.row.col"),
)


def choice(text: str) -> str:
    return f"{text}+nearest@0.4" if text.startswith(("step", "trellis")) else text


def read_alone(loader: str, data: bytes, folder) -> list[str]:
    """What the loader reads in an interpreter without us: name, dtype, shape and digest of all."""
    (folder / "loader.py").write_text(loader)
    (folder / "model.pack").write_bytes(data)
    script = """
import hashlib, sys
sys.modules["packer"] = None
sys.path.insert(0, sys.argv[1])
import torch
from loader import read_weights
for name, w in sorted(read_weights(open(sys.argv[1] + "/model.pack", "rb").read()).items()):
    bits = w.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
    print(name, w.dtype, tuple(w.shape), hashlib.sha256(bits).hexdigest())
"""
    done = subprocess.run(
        [sys.executable, "-I", "-c", script, str(folder)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def spelled(data: bytes) -> list[str]:
    return [
        f"{name} {w.dtype} {tuple(w.shape)} "
        + hashlib.sha256(w.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()).hexdigest()
        for name, w in sorted(read_weights(data).items())
    ]


def artifact_of(texts: tuple[str, ...]) -> Artifact:
    generator = torch.Generator().manual_seed(1)
    tensors, coders = {}, {}
    for text in texts:
        weight = torch.randn(24, 36, generator=generator)
        parsed = parse_choice(choice(text))
        tensors[text] = quantize(weight, parsed)
        coders[text] = parsed.coder
    return Artifact(tensors, {"tied": texts[0]}, {}, coders)


@pytest.mark.parametrize("unused", [set(), {"numpy"}, {"ans", "brotli"}])
def test_the_loader_of_every_format_compresses_to_3600_bytes(unused):
    text = minified_loader(EVERYTHING - unused).encode()
    assert len(brotli.compress(text, quality=11, lgwin=24)) <= 3_600
    raw = [{"id": lzma.FILTER_LZMA2, "preset": 9 | lzma.PRESET_EXTREME, "lc": 0, "pb": 0}]
    text = minified_loader(EVERYTHING - unused - {"trellis"}).encode()
    assert len(lzma.compress(text, lzma.FORMAT_RAW, filters=raw)) <= 3_600


def test_a_loader_holds_only_the_formats_in_use():
    parts = parts_of(STEPS)
    assert parts == {"stepped", "scaled", "kept", "ans", "brotli", "lzma", "zlib"}
    plain = minified_loader(parts)
    for word in ("constriction", "brotli", "lzma", "ldexp"):
        assert word in plain
    assert "zstandard" not in plain and "Categorical" in plain
    fewer = minified_loader(parts_of(["fp16~numpy"]))
    for word in ("constriction", "brotli", "ldexp", "float32"):
        assert (word in fewer) == (word == "float32")
    assert (
        loader_bytes(["fp16"]) < loader_bytes(STEPS) <= loader_bytes([*STEPS, "int4.row.rank2x4"])
    )
    assert len(loader_source(EVERYTHING).encode()) <= LARGEST_LOADER


def test_a_loader_is_wrapped_and_packed_with_a_script_it_is_opened():
    source = loader_source(RE_ENCODED)
    assert unwrap(source) == {"__main__": minified_loader(RE_ENCODED)}
    script = SourceFile("train.py", "__main__", "import loader\n" * 40, 560)
    packed = pack_code([script, SourceFile("loader.py", "loader", source, len(source))])
    assert unwrap(packed.text)["loader"] == minified_loader(RE_ENCODED)


@pytest.mark.parametrize("text", CHOICES)
def test_of_one_format_it_gives_the_same_weights(text):
    artifact = artifact_of((text,))
    data, space = artifact.to_bytes(), {}
    exec(loader_source(parts_of([choice(text)])), space)
    found = space["read_weights"](data)
    for name, weight in read_weights(data).items():
        assert torch.equal(found[name].view(torch.uint8), weight.view(torch.uint8))
        assert found[name].dtype == weight.dtype and found[name].shape == weight.shape
    with pytest.raises(Exception, match="checksum"):
        space["read_weights"](data[:-1] + bytes([data[-1] ^ 1]))


def test_of_all_formats_it_gives_the_same_bits_in_a_bare_interpreter(tmp_path):
    data = artifact_of(CHOICES).to_bytes()
    source = loader_source(parts_of(choice(text) for text in CHOICES))
    assert read_alone(source, data, tmp_path) == spelled(data)


def test_a_plan_counts_the_loader_of_its_own_formats():
    weights = {"a.weight": torch.randn(64, 96), "b.weight": torch.randn(96, 64)}
    from packer.checkpoint.checkpoint import from_state_dict

    measured = measure(
        from_state_dict(weights), MeasureOptions(pins={"a.weight": "int4.row.rank2x4"})
    )
    for cap in (9_000, 12_000, 60_000):
        made = make_plan(measured, Limits(cap, loader_bytes=LARGEST_LOADER))
        assert made.limits.loader_bytes == loader_bytes(made.choices.values())
        assert made.plan.code_bytes == made.limits.loader_bytes
        assert made.plan.total_bytes <= cap


def two_formats() -> Measurement:
    """A tensor whose low-rank candidate is better by less than the loader's code for it costs."""
    from packer.checkpoint.checkpoint import from_state_dict

    measured = measure(from_state_dict({"a.weight": torch.randn(64, 96)}))
    candidates = (
        Candidate("a.weight", "int4.row", 3_000, 2.0, None),
        Candidate("a.weight", "int4.row.rank2x4", 3_100, 1.0, None),
    )
    return replace(measured, candidates=candidates)


def test_formats_are_given_up_where_their_code_does_not_fit():
    measured = two_formats()
    roomy = make_plan(measured, Limits(20_000, loader_bytes=1))
    assert roomy.choices == {"a.weight": "int4.row.rank2x4"}
    least = loader_bytes(["int4.row"]) + measured.header_bytes + 3_100
    tight = make_plan(measured, Limits(least, loader_bytes=1))
    assert tight.choices == {"a.weight": "int4.row"}
    assert tight.limits.loader_bytes == loader_bytes(["int4.row"])


def test_planning_again_keeps_to_what_the_counted_loader_reads():
    measured = two_formats()
    plain = make_plan(measured, Limits(20_000, loader_bytes=1), {"a.weight": "int4.row"})
    again = replan(replace(plain, pins={}), measured)
    assert again.choices == {"a.weight": "int4.row"}
    assert replan(
        replace(plain, pins={}, limits=replace(plain.limits, loader_bytes=0)), measured
    ).choices == {"a.weight": "int4.row.rank2x4"}


def pruned(source: str) -> str:
    marks = Marks(frozenset({"b"}), frozenset({"check_it"}), frozenset({"guard"}))
    return ast.unparse(without(bare(ast.parse(source).body[0]), marks))


@pytest.mark.parametrize(
    ("source", "left"),
    [
        ("def f(x):\n if x > 3:\n  raise E\n return x", "return x"),
        ("def f(x):\n if x:\n  return a(x)\n return b(x)", "return a(x)"),
        ("def f(x):\n if x:\n  return b(x)\n return a(x)", "return a(x)"),
        ("def f(x):\n if x:\n  y = b(x)\n else:\n  y = a(x)\n return y", "y = a(x)\n    return y"),
        ("def f(x):\n if x:\n  return 1\n raise E", "return 1"),
        ("def f(x):\n for i in x:\n  if i:\n   return i\n raise E", "for i in x:\n"),
        ("def f(x):\n try:\n  y = a(x)\n except E as e:\n  raise F from e\n return y", "y = a(x)"),
        ("def f(x):\n try:\n  return a(x)\n except E:\n  return 0", "except E"),
        ("def f(x):\n return b(x) if x else a(x)", "return a(x)"),
        ("def f(x):\n check_it(x)\n return x", "def f(x):\n    return x"),
        ("def guard(x):\n if x:\n  raise E", "raise E"),
        ("def f(x):\n if x:\n  check_it(x)", "pass"),
        ("def f(x):\n x.check_it()\n x.check_that()", "x.check_that()"),
    ],
)
def test_what_never_happens_is_left_out(source, left):
    """`b` is never called, nothing but `guard` raises, and calls of `check_it` only check."""
    short = pruned(source)
    assert left in short and "b(" not in short and "check_it" not in short
    assert ("raise" in short) == ("guard" in source)


MARKS = Marks(checks=CHECKS, guards=GUARDS)


def test_names_may_not_be_defined_twice_or_missing():
    with pytest.raises(CodeError, match="none of the modules defines nothing_such"):
        extract(DECODERS, ("nothing_such",), MARKS)
    reader = r"packer\.artifact\.reader"
    twice = f"{reader} and {reader} both define ArtifactError, .* rename one"
    with pytest.raises(CodeError, match=twice):
        extract((*DECODERS, "packer.artifact.reader"), ENTRIES, MARKS)


@pytest.mark.parametrize(
    ("file", "name"),
    [
        ("stream_decoder", "check_start"),
        ("decoder", "keep_checksum"),
        ("decoder", "decode_kept"),
    ],
)
def test_what_is_listed_may_not_be_renamed_elsewhere_alone(file, name, tmp_path, monkeypatch):
    """Under any other name it would be shipped, or left out, unseen."""
    package = tmp_path / f"without_{name}"
    package.mkdir()
    (package / "__init__.py").touch()
    original = (
        importlib.resources.files("packer.artifact").joinpath(f"{file}.py").read_text("utf-8")
    )
    (package / f"{file}.py").write_text(original.replace(name, f"{name}_anew"))
    monkeypatch.syspath_prepend(str(tmp_path))
    modules = [
        f"{package.name}.{file}" if one == f"packer.artifact.{file}" else one for one in DECODERS
    ]
    marks = Marks(frozenset({"decode_kept"}), CHECKS, GUARDS)
    with pytest.raises(CodeError, match=f"none of the modules defines {name}: .* mend the list"):
        extract(modules, ENTRIES, marks)


def test_a_name_decides_nothing():
    """What is called like a check and not listed as one is shipped and called."""
    source = "def f(x):\n check_other(x)\n keep_other(x)"
    assert pruned(source) == "def f(x):\n    check_other(x)\n    keep_other(x)"
    assert "raise" not in pruned("def keep_other(x):\n if x:\n  raise E")


def test_a_closed_source_keeps_only_its_entries_and_attributes():
    source = """
from dataclasses import dataclass
LIMIT = 7
@dataclass
class Box:
    value: 0
    size: 0 = 3
def scaled(amount, factor):
    return amount * factor + LIMIT
def grown(box, *, extra=1):
    return scaled(box.value, 2) + extra
def spread(first, second, third):
    return first + second + third
def run(text):
    box = Box(size=1, value=len(text))
    return grown(box, extra=5) + grown(box=box) + spread(*[1, 1], **{"third": 1})
"""
    text, space, same = minify_closed(ast.parse(source), ("run",)), {}, {}
    exec(text, space)
    exec(source, same)
    assert space["run"]("four") == same["run"]("four")
    assert all(word in text for word in ("run", "value", "size", "box", "third"))
    assert not any(word in text for word in ("scaled", "grown", "amount", "factor", "LIMIT", "Box"))


def test_a_closed_source_that_reads_names_is_refused():
    """In it python-minifier would leave all names long, unseen."""
    with pytest.raises(CodeError, match="names vars, so its names cannot be shortened"):
        minify_closed(ast.parse("def run(module):\n return vars(module)"), ("run",))


def test_packing_builds_a_loader_only_where_one_is_asked_for(tmp_path):
    """python-minifier, which every loader needs, is imported with it."""
    script = """
import sys, torch, packer
weights = {"a.weight": torch.zeros(8, 8)}
packer.pack(weights, packer.plan(weights, 10_000), out=sys.argv[1] + "/alone.pack")
print("python_minifier" in sys.modules)
plan = packer.plan(weights, packer.PlanLimits(10_000, loader=True))
packer.pack(weights, plan, out=sys.argv[1] + "/m.pack", loader=sys.argv[1] + "/loader.py")
print("python_minifier" in sys.modules, plan.limits.loader_bytes)
"""
    command = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    size = (tmp_path / "loader.py").stat().st_size
    assert done.stdout.split() == ["False", "True", str(size)]
