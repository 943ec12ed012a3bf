"""`packer code`: what is counted, and what the packed script does."""

from __future__ import annotations

import ast
import base64
import json
import lzma
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import brotli
import pytest
from click.testing import Result
from hypothesis import given, settings
from hypothesis import strategies as st

from packer.code.minify import fingerprint, minify
from packer.code.pack_script import Packing, pack_code, read_sources
from packer.code.self_extracting import CODECS, ENTRY, unwrap, wrap
from packer.errors import CodeError

Run = Callable[..., Result]
ROOT = Path(__file__).resolve().parents[2]

SCRIPT = '''"""A training script, in small."""
from __future__ import annotations
import os
from dataclasses import dataclass
from pathlib import Path


class Hyperparameters:
    """Settings from the environment."""
    steps = int(os.environ.get("STEPS", 3))
    mtp_heads = int(os.environ.get("MTP_HEADS", "0"))
    late_qat = bool(int(os.environ.get("LATE_QAT", "0")))


@dataclass
class State:
    """Fields keep their annotations, or they are none."""
    total: float = 0.0


def main() -> None:
    args = Hyperparameters()
    state = State(total=1.5)
    for step in range(args.steps):
        state.total += step * 0.25  # a comment
        if args.late_qat:
            print("fake quantization on")
    if args.mtp_heads > 0:
        print("heads", args.mtp_heads)
    else:
        print(f"total {state.total:.3f} {'naïve'!r}")
    print(len(Path(__file__).read_text(encoding="utf-8").encode("utf-8")), __name__)


if __name__ == "__main__":
    main()
'''


def output_of(script: Path) -> str:
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=60, check=True
    )
    return done.stdout


@pytest.fixture
def script(tmp_path: Path) -> Path:
    path = tmp_path / "train_gpt.py"
    path.write_text(SCRIPT, encoding="utf-8")
    return path


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("rename", [False, True])
def test_the_packed_script_does_the_same(script: Path, codec: str, rename: bool) -> None:
    packed = pack_code(read_sources([script]), Packing(rename=rename, codecs=(codec,)))
    target = script.with_name("packed.py")
    target.write_text(packed.text, encoding="utf-8")
    before, after = output_of(script).splitlines(), output_of(target).splitlines()
    assert after[:-1] == before[:-1] == ["total 2.250 'naïve'"]
    # Both count themselves: the packed script is charged with its own length.
    assert before[-1] == f"{script.stat().st_size} __main__"
    assert after[-1] == f"{packed.packed_bytes} __main__"
    assert packed.packed_bytes < script.stat().st_size == packed.original_bytes
    assert packed.same_tree is not rename


def test_unwrapping_gives_exactly_the_minified_source(script: Path) -> None:
    packed = pack_code(read_sources([script]))
    inside = unwrap(packed.text)
    assert inside is not None and set(inside) == {ENTRY}
    assert inside[ENTRY] == minify(SCRIPT, "script").text
    assert fingerprint(ast.parse(inside[ENTRY])) == fingerprint(ast.parse(SCRIPT))
    assert "a comment" not in inside[ENTRY] and "Settings from" not in inside[ENTRY]
    assert "total:float" in inside[ENTRY]  # the dataclass needs it


def test_the_same_files_give_the_same_script(script: Path) -> None:
    texts = {pack_code(read_sources([script])).text for _ in range(2)}
    assert len(texts) == 1


def test_the_fingerprint_tells_sources_apart() -> None:
    def different(a: str, b: str) -> bool:
        return fingerprint(ast.parse(a)) != fingerprint(ast.parse(b))

    assert different("x = 1", "x = 2")
    assert different("def f(a): return a", "def f(b): return b")
    assert not different("def f():\n  'doc'\n  return 1", "def f(): return 1")
    assert not different("if x:\n  'only'", "if x: pass")


def test_several_files_become_one_script(tmp_path: Path) -> None:
    """Modules find each other in any order, in packages too, and keep their source."""
    (tmp_path / "lib").mkdir()
    files = {
        "train.py": "import model, inspect\nfrom lib import rope\n"
        "print(model.width(2), rope.BASE, __name__, inspect.getsource(model.width)[:12])\n",
        "model.py": "from lib.rope import BASE\ndef width(n):\n    return n * BASE\n",
        "lib/rope.py": "BASE = 10\nassert __name__ == 'lib.rope' and __file__\n",
    }
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    paths = [tmp_path / name for name in files]
    packed = pack_code(read_sources(paths))
    assert packed.original_bytes == sum(len(text) for text in files.values())
    alone = tmp_path / "elsewhere"
    alone.mkdir()
    (alone / "train.py").write_text(packed.text)
    expected = "20 10 __main__ def width(n)\n"
    assert output_of(alone / "train.py") == output_of(tmp_path / "train.py") == expected
    inside = unwrap(packed.text)
    assert inside is not None
    assert list(inside) == [ENTRY, "model", "lib.rope", "lib"]


def test_a_packed_script_is_opened_and_packed_again(script: Path) -> None:
    once = pack_code(read_sources([script]), Packing(minified=False))
    script.write_text(once.text)
    again = pack_code(read_sources([script]))
    assert again.already
    assert again.packed_bytes < once.packed_bytes
    assert again.original_bytes == once.packed_bytes


@pytest.mark.parametrize(
    "wrapper",
    [
        "import lzma as L,base64 as B\nexec(L.decompress(B.b85decode({lzma_raw!r}),"
        "format=L.FORMAT_RAW,filters=[{{'id':L.FILTER_LZMA2}}]))",
        "import lzma,base64\nexec(lzma.decompress(base64.b85decode({xz!r})))",
        "import zlib,base64;exec(zlib.decompress(base64.b64decode({zlib!r})).decode())",
        "import brotli,base64\nd={brotli!r}\nexec(brotli.decompress(base64.b85decode(d)))",
    ],
)
def test_wrappers_of_others_are_read(wrapper: str) -> None:
    source = SCRIPT.encode()
    raw = lzma.compress(source, lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2}])
    text = wrapper.format(
        lzma_raw=base64.b85encode(raw),
        xz=base64.b85encode(lzma.compress(source)),
        zlib=base64.b64encode(zlib.compress(source)),
        brotli=base64.b85encode(brotli.compress(source)),
    )
    assert unwrap(text) == {ENTRY: SCRIPT}


def test_a_damaged_or_exploding_wrapper_is_refused() -> None:
    data = lzma.compress(SCRIPT.encode())
    for damaged in (data[:-20], data[:60] + bytes(20) + data[80:]):
        spelled = base64.b85encode(damaged).decode()
        with pytest.raises(CodeError, match="does not decompress"):
            unwrap(f"import lzma,base64;exec(lzma.decompress(base64.b85decode({spelled!r})))")
    with pytest.raises(CodeError, match="is damaged"):
        unwrap("import lzma,base64;exec(lzma.decompress(base64.b85decode('\\x01abcd')))")
    bomb = base64.b85encode(zlib.compress(bytes(65 * 2**20), 9)).decode()
    with pytest.raises(CodeError, match="67,108,864"):
        unwrap(f"import zlib,base64;exec(zlib.decompress(base64.b85decode({bomb!r})))")
    assert unwrap(SCRIPT) is None
    assert unwrap("not python at all (") is None


@settings(max_examples=25, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(["a", "b", "b.c", "d"]),
        st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=80),
    ),
    st.text("xyz =\n0189", max_size=300),
    st.booleans(),
)
def test_any_sources_come_back(others: dict[str, str], entry: str, findable: bool) -> None:
    sources = {ENTRY: entry, **others}
    wrapped = wrap(sources, findable=findable, codecs=["lzma"])
    assert unwrap(wrapped.text) == sources


def test_the_command(run: Run, script: Path) -> None:
    original = script.read_bytes()
    result = run("code", script, "-o", "packed.py", "--json")
    value = json.loads(result.stdout)
    assert result.exit_code == 0
    assert value["code_bytes"] == len(original) == value["packed"]["original_bytes"]
    packed = Path("packed.py").read_bytes()
    assert len(packed) == value["packed"]["packed_bytes"]
    assert value["packed"]["saved_bytes"] == len(original) - len(packed)
    assert value["packed"]["same_tree"] is True
    assert script.read_bytes() == original
    text = run("code", script).stdout
    assert f"{len(original):,} -> minified" in text and "same syntax tree" in text


def test_carriage_returns_count_as_the_file_has_them(run: Run, script: Path) -> None:
    script.write_bytes(SCRIPT.replace("\n", "\r\n").encode())
    value = json.loads(run("code", script, "--json").stdout)
    assert value["code_bytes"] == script.stat().st_size
    assert value["files"][0]["text_bytes"] == len(SCRIPT.encode())
    assert "a script that reads itself logs" in run("code", script).stdout


@pytest.mark.usefixtures("script")
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train_gpt.py", "train_gpt.py"), "named twice"),
        (("train_gpt.py", "notes.txt", "-o", "p.py"), "no Python source"),
        (("broken.py",), "broken.py, line 1"),
        (("latin.py",), "not a text in UTF-8"),
        (("train_gpt.py", "-o", "train_gpt.py"), "is an input"),
        (("train_gpt.py", "--rename", "--no-minify"), "leave out --no-minify"),
    ],
)
def test_refusals(run: Run, arguments: tuple[str, ...], message: str) -> None:
    Path("notes.txt").write_text("no code")
    Path("broken.py").write_text("def f(:\n")
    Path("latin.py").write_bytes(b"x = '\xe9'\n")
    result = run("code", *arguments)
    assert result.exit_code != 0
    assert message in " ".join(result.output.split())
    assert not Path("p.py").exists()


def test_counted_text_that_is_no_python_is_counted(run: Run, script: Path) -> None:
    Path("notes.txt").write_text("no code")
    value = json.loads(run("code", "train_gpt.py", "notes.txt", "--json").stdout)
    assert value["code_bytes"] == script.stat().st_size + 7
    assert value["packed"] is None


def test_a_real_module_of_this_project_packs_to_less_than_a_third() -> None:
    path = ROOT / "train" / "model.py"
    packed = pack_code(read_sources([path]))
    assert packed.same_tree
    assert packed.packed_bytes < 0.34 * packed.original_bytes
