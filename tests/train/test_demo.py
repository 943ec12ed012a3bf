"""The demonstration from end to end in seconds, with a smaller model and less text."""

from __future__ import annotations

import contextlib
import json
import random
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from packer.eval.batches import ignore
from packer.train import demo as demo_module
from packer.train import demo_report, demo_text
from packer.train.demo import Demo, DemoSettings, run_demo
from packer.train.demo_text import Corpus, Document, corpus_of, named_text, python_text
from packer.train.documents import CorpusError
from packer.train.presets import PRESETS

from packer import api
from packer.cli import main
from packer.errors import CapError, OutputError, PackerError

HOSTILE = "<img src=x onerror=alert(1)>.txt"
CAP = 60_000
WORDS = ("the", "planner", "fits", "tensors", "under", "a", "cap", "of", "bytes", "once", "more")


def tiny() -> DemoSettings:
    """The demonstration's own settings, but for the sizes."""
    preset = PRESETS["demo"]
    model = replace(
        preset.model,
        num_layers=2,
        model_dim=32,
        num_heads=2,
        num_kv_heads=1,
        rope_dims=8,
        bigram_vocab_size=64,
        bigram_dim=16,
    )
    return DemoSettings(
        cap_bytes=CAP,
        vocab_size=300,
        tokenizer_bytes=20_000,
        run=replace(
            preset,
            model=model,
            batch=replace(preset.batch, sequence=64, tokens=256),
            schedule=replace(preset.schedule, iterations=10, warmdown=8, lr_warmup=2),
            run=replace(preset.run, eval_every=5, eval_tokens=512, final_eval_tokens=1_024),
        ),
    )


def prose(number: int) -> str:
    """About two kilobytes in lines."""
    chance = random.Random(number)
    lines = (" ".join(chance.choices(WORDS, k=9)) for _ in range(40))
    return "\n".join([f"text {number}", *lines, ""])


@contextlib.contextmanager
def silent(label: str) -> Iterator[Callable[[str, int, int], None]]:
    assert label
    yield ignore


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    names = [HOSTILE, *(f"{number}.txt" for number in range(40))]
    return corpus_of("<b>texts</b>", (Document(n, prose(i)) for i, n in enumerate(names)))


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, corpus: Corpus) -> tuple[Demo, list[str]]:
    said: list[str] = []
    folder = tmp_path_factory.mktemp("demo") / "demo"
    made = run_demo(corpus, folder, tiny(), said.append, silent)
    demo_report.write_report(made)
    return made, said


def test_it_fits_its_cap_and_what_it_says_is_in_the_files(done: tuple[Demo, list[str]]) -> None:
    made, said = done
    artifact = made.folder / "model.pack"
    size = artifact.stat().st_size
    assert size == made.packed.account.total_bytes == made.after.subject.size_bytes <= CAP
    assert made.before.subject.size_bytes == 4 * made.weights > 3 * size
    found = api.verify(artifact, made.folder / "model.safetensors", made.folder / "plan.json")
    assert not found.problems
    lines = demo_report.five_lines(made)
    assert len(lines) == 5 and all("\n" not in line for line in lines)
    assert f"= {size:,} of {CAP:,}" in lines[2]
    assert f"{made.after.score.bits_per_byte:.4f}" in lines[3]
    assert "packer pack model.pt" in lines[4]
    assert [line.partition(":")[0] for line in said if not line.startswith("step ")] == [
        "text", "train", "plan", "pack", "score",
    ]  # fmt: skip


def test_it_is_packed_as_it_was_trained(done: tuple[Demo, list[str]]) -> None:
    """Late QAT set in, and its formats are those of the file: the score hardly moves."""
    made, _ = done
    assert any(line.get("qat_strength") == 1.0 for line in made.metrics)
    assert made.note == ""
    choices = made.packed.plan.choices
    assert choices["blocks.0.mlp.fc.weight"] == "int6.row"
    assert choices["tok_emb.weight"] == "int8.row"
    assert made.after.difference is not None
    assert abs(made.after.difference.delta_bpb) < 0.05
    assert made.after.score.tokens == made.before.score.tokens


def test_the_same_seed_gives_the_same_artifact(
    done: tuple[Demo, list[str]], corpus: Corpus, tmp_path: Path
) -> None:
    made, _ = done
    threads = torch.get_num_threads()
    again = run_demo(corpus, tmp_path / "again", tiny(), ignore, silent)
    other = replace(tiny(), seed=7)
    another = run_demo(corpus, tmp_path / "other", other, ignore, silent)
    assert again.packed.data == made.packed.data
    assert another.packed.data != made.packed.data
    assert torch.get_num_threads() == threads


def test_the_page_stands_alone_and_shows_names_as_text(
    read_page: Callable[..., Any], done: tuple[Demo, list[str]]
) -> None:
    made, _ = done
    page = (made.folder / "report.html").read_text("utf-8")
    reader = read_page(page)
    assert "http:" not in page and "https:" not in page
    assert reader.tags.count("svg") == 1 and "<b>texts</b>" in reader.text
    shown = HOSTILE in {document.name for document in made.corpus.valid}
    assert (HOSTILE in reader.text) == shown
    for row in demo_report.byte_report(made).rows:
        assert row.name in reader.text
    assert str(made.packed.account) in reader.text


def test_hostile_held_out_names_stay_text(
    read_page: Callable[..., Any], done: tuple[Demo, list[str]]
) -> None:
    made, _ = done
    corpus = replace(made.corpus, valid=(Document(HOSTILE, "text"),))
    page = demo_report.describe_page(
        replace(made, corpus=corpus, note=HOSTILE, samples=(HOSTILE, ""))
    )
    assert read_page(page).text.count(HOSTILE) == 4


def test_the_picture_has_four_panels(done: tuple[Demo, list[str]]) -> None:
    data = (done[0].folder / "report.png").read_bytes()
    assert data.startswith(b"\x89PNG\r\n\x1a\n") and len(data) > 20_000
    width, height = struct.unpack(">II", data[16:24])
    assert width >= 2_000 and height >= 1_200


def test_json_can_be_spelled_and_names_files_that_exist(done: tuple[Demo, list[str]]) -> None:
    value = json.loads(json.dumps(demo_report.to_json(done[0])))
    assert all(Path(path).is_file() for path in value["files"].values())
    assert value["artifact"]["total_bytes"] <= CAP
    assert value["after"]["bits_per_byte"] == done[0].after.score.bits_per_byte


def test_formats_that_do_not_fit_give_way(corpus: Corpus, tmp_path: Path) -> None:
    made = run_demo(corpus, tmp_path / "d", replace(tiny(), cap_bytes=16_000), ignore, silent)
    assert made.packed.account.total_bytes <= 16_000
    assert "do not fit" in made.note
    assert demo_report.to_json(made)["note"] == made.note


def test_a_cap_below_everything_says_what_is_kept(corpus: Corpus, tmp_path: Path) -> None:
    with pytest.raises(CapError, match=r"smallest.*model\.safetensors --cap SIZE"):
        run_demo(corpus, tmp_path / "d", replace(tiny(), cap_bytes=900), ignore, silent)
    assert (tmp_path / "d" / "model.safetensors").is_file()
    assert not (tmp_path / "d" / "model.pack").exists()


def test_a_folder_in_use_is_refused_and_left_alone(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("mine")
    with pytest.raises(OutputError, match="holds files already"):
        demo_module.refuse_used(tmp_path)
    with pytest.raises(OutputError, match="is a file"):
        demo_module.refuse_used(tmp_path / "mine")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    result = CliRunner().invoke(main, ["demo", "-o", str(tmp_path)])
    assert result.exit_code == 1 and "holds files already" in result.output


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("empty.txt", b"", "empty.txt: 0 bytes of text"),
        ("short.txt", b"a few words\n" * 9, "short.txt: 108 bytes of text"),
        ("binary.txt", b"text \xff", "binary.txt is not UTF-8 text: byte 5 is 0xff"),
    ],
)
def test_text_that_cannot_be_used_is_named(
    tmp_path: Path, name: str, data: bytes, words: str
) -> None:
    (tmp_path / name).write_bytes(data)
    target = tmp_path / "demo"
    arguments = ["demo", "-o", str(target), "--text", str(tmp_path / name)]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1 and words in " ".join(result.output.split())
    assert not target.exists()


def test_missing_text_is_named(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["demo", "--text", str(tmp_path / "absent.txt")])
    assert result.exit_code == 2 and "absent.txt" in result.output.replace("\n", "")
    with pytest.raises(CorpusError, match="a folder without any"):
        named_text([tmp_path])


def test_letters_beyond_the_vocabulary_are_explained(tmp_path: Path) -> None:
    letters = "".join(map(chr, range(0x4E00, 0x5200)))
    lines = [letters[i:] + letters[:i] + "\n" for i in range(30)]
    text = corpus_of("letters", [Document("a", "".join(lines))])
    with pytest.raises(PackerError, match="packer data"):
        run_demo(text, tmp_path / "d", tiny(), ignore, silent)


# The text


def test_this_python_has_text_enough() -> None:
    corpus = python_text()
    sizes = [sum(d.size_bytes for d in part) for part in (corpus.train, corpus.valid)]
    assert demo_text.MIN_BYTES <= sum(sizes) <= demo_text.MAX_BYTES
    assert 0.01 < sizes[1] / sum(sizes) < 0.3
    assert not {d.text for d in corpus.train} & {d.text for d in corpus.valid}
    assert corpus == python_text()


def library(folder: Path, count: int) -> Path:
    for number in range(count):
        path = folder / ("package" if number % 2 else ".") / f"m{number}.py"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(prose(number), "utf-8")
    return folder


def test_a_minimal_python_will_do(tmp_path: Path) -> None:
    """Without documentation, with files that cannot be decoded and packages beside the library."""
    folder = library(tmp_path, 40)
    (folder / "bad.py").write_bytes(b"# latin \xe9\n" * 100)
    (folder / "empty.py").write_text("")
    (folder / "copy.py").write_text(prose(3))
    for name in ("site-packages", "test"):
        (folder / name).mkdir()
        (folder / name / "other.py").write_text("other" * 100)
    corpus = python_text(folder)
    names = {document.name for document in (*corpus.train, *corpus.valid)}
    assert len(corpus.valid) == 3 and len(names) == 40
    assert not names & {"bad.py", "empty.py", "test/other.py", "site-packages/other.py"}
    with pytest.raises(CorpusError, match="too little to learn from"):
        python_text(library(tmp_path / "less", 3))


def test_a_selection_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_text, "MAX_BYTES", 60_000)
    corpus = python_text(library(tmp_path, 60))
    total = sum(document.size_bytes for document in (*corpus.train, *corpus.valid))
    assert 59_000 <= total <= 60_000


def test_a_few_long_texts_give_their_ends(tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / f"{name}.txt").write_text("".join(map(prose, range(20))) + name, "utf-8")
    corpus = named_text([tmp_path])
    assert {d.name for d in corpus.valid} == {"a.txt, its end", "b.txt, its end"}
    for begin, end in zip(corpus.train, corpus.valid, strict=True):
        name = begin.name.partition(",")[0]
        assert begin.text + end.text == (tmp_path / name).read_text("utf-8")
        assert begin.text.endswith("\n")
        assert 0.03 < end.size_bytes / begin.size_bytes < 0.1


def test_a_long_line_is_cut_between_letters(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_text, "MAX_BYTES", 60_001)
    corpus = corpus_of("line", [Document("line", "é" * 50_000)])
    total = sum(d.size_bytes for d in (*corpus.train, *corpus.valid))
    assert total == 60_000
