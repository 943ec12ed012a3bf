"""`packer eval` as its users meet it: what it prints, what --json holds, what it refuses."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import torch
from click.testing import Result
from packer.eval.batches import Setting, ignore
from packer.train.config import config_from, read_config, settings_of
from packer.train.model import GPT, GPTConfig

from packer import api, evaluation
from packer.evaluation import Subject

CONFIG = GPTConfig(64, 2, 32, 4, 2, rope_train_length=64)
STRANGERS = Path(__file__).resolve().parents[1] / "eval" / "strangers"
Run = Callable[..., Result]

STRANGE = """
import torch
from torch import nn

class Chatty(nn.Module):
    def __init__(self, vocab_size=64):
        super().__init__()
        self.table = nn.Parameter(torch.zeros(vocab_size, vocab_size))
        print("built")
    def forward(self, ids):
        print("called")
        return self.table[ids]

class Short(Chatty):
    def forward(self, ids):
        assert ids.size(1) <= 16, "16 tokens are all I take"
        return self.table[ids]

class Shy(Chatty):
    def forward(self, ids, targets):
        logits = torch.nn.functional.embedding(ids, self.table)
        chosen = (torch.nn.functional.one_hot(targets, 64) * logits).sum(-1)
        return (logits.exp().sum(-1).log() - chosen).mean()

class Mute(Chatty):
    def forward(self, ids):
        return "nothing"
"""


@pytest.fixture(scope="session")
def lab(tmp_path_factory: pytest.TempPathFactory, train_bpe: Callable[[Path, int], None]) -> Path:
    """A folder with text, tokenizers, shards, two models and an artifact; nobody writes there."""
    folder = tmp_path_factory.mktemp("lab")
    chance = random.Random(0)
    letters = "abcdefghijklmnopqrst"
    words = ["".join(chance.choices(letters, k=chance.randint(1, 6))) for _ in range(150)]
    for name, lines in (("train.txt", 300), ("valid.txt", 250)):
        text = "\n".join(" ".join(chance.choices(words, k=9)) + "." for _ in range(lines))
        (folder / name).write_text(text)
    for size in (64, 80):
        train_bpe(folder / "train.txt", size)
    processor = sentencepiece.SentencePieceProcessor(model_file=str(folder / "t64.model"))
    tokens = [processor.bos_id(), *processor.encode((folder / "valid.txt").read_text())]
    write_shard(folder / "valid.bin", tokens)
    write_shard(folder / "part_1.bin", tokens[:4000])
    write_shard(folder / "part_2.bin", tokens[4000:])
    write_shard(folder / "ones.bin", [1] * len(tokens))

    for seed, name in enumerate("ab"):
        torch.save(make_model(seed).state_dict(), folder / f"{name}.pt")
    spelled = json.dumps(settings_of(CONFIG))
    (folder / "a.config.json").write_text(spelled)
    plan = api.plan(folder / "a.pt", 20_000, api.MeasureOptions(metadata={"config": spelled}))
    api.pack(folder / "a.pt", plan, out=folder / "a.pack")
    (folder / "strange.py").write_text(STRANGE)
    torch.save({"table": torch.randn(64, 64)}, folder / "table.pt")
    return folder


def make_model(seed: int) -> GPT:
    torch.manual_seed(0)
    model = GPT(CONFIG)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
            parameter.add_(0.05 * seed * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def write_shard(path: Path, tokens: list[int], count: int | None = None) -> None:
    header = np.zeros(256, dtype="<i4")
    header[:3] = 20240520, 1, len(tokens) if count is None else count
    path.write_bytes(header.tobytes() + np.array(tokens, dtype="<u2").tobytes())


@pytest.fixture
def score(run: Run, lab: Path) -> Callable[..., Result]:
    """`packer eval` with the text and tokenizer of the lab, unless another --data is given."""

    def invoke(*arguments: object) -> Result:
        texts = [str(argument) for argument in arguments]
        if "--data" not in texts:
            texts += ["--data", str(lab / "valid.txt"), "--tokenizer", str(lab / "t64.model")]
        return run("eval", *texts)

    return invoke


def done(result: Result) -> dict[str, Any]:
    """The one JSON object that a command printed."""
    assert result.exit_code == 0, result.output
    (line,) = result.stdout.splitlines()
    value = json.loads(line)
    assert isinstance(value, dict)
    return value


def refused(result: Result, words: str, code: int = 1) -> None:
    assert result.exit_code == code, result.output
    assert result.stdout == ""
    assert words in result.stderr
    assert "Traceback" not in result.stderr
    paragraph = result.stderr.partition("Error: ")[2]
    assert paragraph and "\n\n" not in paragraph


# The score, alone and paired.


def test_one_source(score: Run, lab: Path) -> None:
    value = done(score(lab / "a.pt", "--stride", 16, "--json"))
    (found,) = value["scores"]
    text = (lab / "valid.txt").read_text()
    assert found["bytes"] == value["text_bytes"] == len(text)
    assert found["nats_per_token"] == pytest.approx(found["nats"] / found["tokens"])
    assert found["bits_per_byte"] == pytest.approx(found["nats"] / np.log(2) / len(text))
    assert found["stderr_bits_per_byte"] > 0
    assert (found["window"], found["stride"], found["unknown_tokens"]) == (64, 16, 0)
    assert (value["reference"], value["precision"], value["samples"]) == (None, "float32", [])
    assert not {"kl_bits_per_byte", "delta_bits_per_byte"} & set(found)


def test_the_command_gives_what_the_library_gives(score: Run, lab: Path) -> None:
    value = done(score(lab / "a.pt", lab / "b.pt", "--stride", 16, "--json"))
    data = evaluation.open_data([lab / "valid.txt"], tokenizer=lab / "t64.model")
    subjects = [
        Subject(str(lab / f"{n}.pt"), "checkpoint", make_model(s), 0)
        for s, n in ((0, "a"), (1, "b"))
    ]
    expected = evaluation.evaluate(subjects, data, Setting(64, 16), progress=ignore, notice=ignore)
    for found, wanted in zip(value["scores"], expected, strict=True):
        assert found["nats"] == pytest.approx(wanted.score.nats, rel=1e-9)
    assert expected[1].divergence is not None
    assert value["scores"][1]["kl_bits_per_byte"] == pytest.approx(
        expected[1].divergence.kl_bits_per_byte, rel=1e-9
    )


def test_several_sources_are_paired(score: Run, lab: Path) -> None:
    sources = [lab / name for name in ("a.pt", "b.pt", "a.pack")]
    value = done(score(*sources, "--json"))
    first, other, packed = value["scores"]
    assert [one["source"] for one in value["scores"]] == [str(source) for source in sources]
    assert [one["kind"] for one in value["scores"]] == ["checkpoint", "checkpoint", "artifact"]
    assert packed["size_bytes"] == (lab / "a.pack").stat().st_size
    assert value["reference"] == str(lab / "a.pt") and "kl_bits_per_byte" not in first
    for one in (other, packed):
        difference = one["bits_per_byte"] - first["bits_per_byte"]
        assert one["delta_bits_per_byte"] == pytest.approx(difference, abs=1e-12)
    # The same passages are hard for both, so that the difference is known far better.
    assert packed["delta_stderr_bits_per_byte"] < 0.1 * packed["stderr_bits_per_byte"]
    assert 0 < packed["kl_bits_per_byte"] < 0.1 * other["kl_bits_per_byte"]
    assert 0.2 < other["top1_agreement"] < packed["top1_agreement"] <= 1


def test_the_reference_is_chosen(score: Run, lab: Path) -> None:
    forward = done(score(lab / "a.pt", lab / "b.pt", "--json"))["scores"]
    value = done(score(lab / "a.pt", lab / "b.pt", "--reference", lab / "." / "b.pt", "--json"))
    backward = value["scores"]
    assert value["reference"] == str(lab / "b.pt")
    assert backward[0]["delta_bits_per_byte"] == pytest.approx(-forward[1]["delta_bits_per_byte"])
    assert "delta_bits_per_byte" not in backward[1]
    assert backward[0]["kl_bits_per_byte"] != pytest.approx(forward[1]["kl_bits_per_byte"], 1e-6)


def test_one_model_twice_differs_by_nothing(score: Run, lab: Path) -> None:
    _, again = done(score(lab / "a.pt", lab / "a.pt", "--json"))["scores"]
    assert (again["delta_bits_per_byte"], again["delta_stderr_bits_per_byte"]) == (0, 0)
    assert (again["kl_bits_per_byte"], again["top1_agreement"]) == (0, 1)


def test_batches_change_nothing(score: Run, lab: Path) -> None:
    nats = [
        done(score(lab / "a.pt", "--stride", 24, "--batch", batch, "--json"))["scores"][0]["nats"]
        for batch in (1, 7, 1000)
    ]
    assert nats[1:] == pytest.approx(nats[:-1], rel=1e-6)


def test_tokens_and_windows(score: Run, lab: Path) -> None:
    options = ("--tokens", 1000, "--json")
    (slow,) = done(score(lab / "a.pt", "--window", 48, "--stride", 8, *options))["scores"]
    (fast,) = done(score(lab / "a.pt", "--window", 48, *options))["scores"]
    assert slow["tokens"] == fast["tokens"] == 1000
    assert slow["bytes"] == fast["bytes"] > 1000
    assert (slow["stride"], fast["stride"]) == (8, 48)
    assert slow["nats"] != fast["nats"]


# What people read.


def test_columns_are_aligned_and_notes_stay_out_of_the_pipe(score: Run, lab: Path) -> None:
    result = score(lab / "a.pt", lab / "b.pt", "--tokens", 5000)
    lines = result.stdout.splitlines()
    table = lines[: lines.index("")]
    assert len(table) == 3 and len({len(line) for line in table}) == 1
    assert table[0].split("  ")[0] == "source"
    for title in ("bits per byte", "difference", "KL bpb", "same top-1 %", "tokens/s"):
        end = table[0].index(title) + len(title)
        assert all(line[end - 1] != " " and line[end : end + 1] in ("", " ") for line in table)
    assert lines[-1].startswith("5,000 tokens, ") and lines[-1].endswith("stride 64")
    assert f"note: {lab / 'a.pt'}: the configuration is taken from" in result.stderr
    assert "warning: " in result.stderr and "bytes per token is outside" in result.stderr
    assert result.exit_code == 0


def test_markdown(score: Run, lab: Path) -> None:
    result = score(lab / "a.pt", lab / "b.pt", "--markdown")
    header, rule, first, second = result.stdout.splitlines()[:4]
    assert header.startswith("| source | bytes | bits per byte |")
    assert rule.split("|")[1:4] == ["---", "---:", "---:"]
    assert {line.count("|") for line in (header, rule, first, second)} == {header.count("|")}
    assert first.split(" | ")[5] == "-" and float(second.split(" | ")[5]) != 0


def test_samples_are_the_same_twice(score: Run, lab: Path) -> None:
    options = ("--tokens", 300, "--sample", "abc de", "--json")
    one, other = done(score(lab / "a.pt", lab / "b.pt", *options))["samples"]
    assert done(score(lab / "a.pt", lab / "b.pt", *options))["samples"] == [one, other]
    assert one != other
    assert one.startswith("abc de") and len(one) > 40
    assert one in score(lab / "a.pt", "--tokens", 300, "--sample", "abc de").stdout


# Where the configuration comes from.


def test_an_artifact_carries_its_configuration(score: Run, lab: Path, tmp_path: Path) -> None:
    alone = tmp_path / "alone.pack"
    alone.write_bytes((lab / "a.pack").read_bytes())
    result = score(alone, "--tokens", 3000, "--json")
    assert "configuration" not in result.stderr
    beside = score(lab / "a.pack", "--config", lab / "a.config.json", "--tokens", 3000, "--json")
    assert done(result)["scores"][0]["nats"] == done(beside)["scores"][0]["nats"]


def test_pack_and_eval_as_commands(run: Run, score: Run, lab: Path) -> None:
    arguments = ("--cap", "20KB", "--config", lab / "a.config.json", "-o", "made.pack")
    assert run("pack", lab / "a.pt", "--no-calibration", *arguments).exit_code == 0
    found = done(score("made.pack", "--json"))["scores"][0]
    assert found["nats"] == done(score(lab / "a.pack", "--json"))["scores"][0]["nats"]


def test_a_source_without_configuration_borrows_one_and_says_so(
    score: Run, lab: Path, tmp_path: Path
) -> None:
    torch.save(make_model(0).state_dict(), tmp_path / "bare.pt")
    result = score("bare.pt", lab / "a.pack", "--tokens", 1000, "--json")
    assert f"note: bare.pt: the configuration is taken from {lab / 'a.pack'}" in result.stderr
    assert len(done(result)["scores"]) == 2
    refused(score("bare.pt"), "with --config or as bare.config.json")


def test_each_source_keeps_its_own_configuration(score: Run, lab: Path, tmp_path: Path) -> None:
    config = replace(CONFIG, rope_base=37.0, logit_softcap=2.0)
    torch.save(make_model(0).state_dict(), tmp_path / "c.pt")
    (tmp_path / "c.config.json").write_text(json.dumps(settings_of(config)))
    alone = done(score("c.pt", "--json"))["scores"][0]["nats"]
    first, second = done(score(lab / "a.pt", "c.pt", "--json"))["scores"]
    assert second["nats"] == pytest.approx(alone, rel=1e-9)
    assert abs(first["nats"] / alone - 1) > 1e-3


def test_a_head_tied_in_the_file_is_tied(score: Run, lab: Path, tmp_path: Path) -> None:
    weights = dict(make_model(0).state_dict())
    weights["lm_head.weight"] = weights["tok_emb.weight"]
    torch.save(weights, tmp_path / "tied.pt")
    found = done(score("tied.pt", lab / "a.pt", "--tokens", 1000, "--json"))["scores"][0]
    assert (
        found["nats"] == done(score(lab / "a.pt", "--tokens", 1000, "--json"))["scores"][0]["nats"]
    )


def test_extra_tensors_can_be_dropped(score: Run, lab: Path, tmp_path: Path) -> None:
    torch.save({**make_model(0).state_dict(), "mtp_heads.0": torch.zeros(2)}, tmp_path / "m.pt")
    options = ("--config", lab / "a.config.json", "--tokens", 300)
    refused(score("m.pt", *options), "m.pt: the checkpoint is not this model, 1 differences:")
    assert done(score("m.pt", *options, "--drop", "mtp_heads.*", "--json"))["scores"]


# Other people's models.


@pytest.fixture
def stranger(tmp_path: Path) -> tuple[str, ...]:
    """Weights and arguments of the loss-returning model that imports flash_attn."""
    generator = torch.Generator().manual_seed(0)
    shapes = {"tok_emb.weight": (64, 16), "qkv.weight": (32, 16)}
    weights = {name: torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    torch.save(weights, tmp_path / "theirs.pt")
    (tmp_path / "theirs.toml").write_text("vocab_size = 64\nheads = 4\n")
    return ("theirs.pt", "--model-config", "theirs.toml", "--tokens", "1000", "--json")


def test_a_loss_returning_model(score: Run, stranger: tuple[str, ...]) -> None:
    file = STRANGERS / "loss_only.py"
    options = ("--window", 32, "--stride", 8)
    loss, logits = (
        done(score(*stranger, *options, "--model", f"{file}:{name}"))["scores"][0]
        for name in ("Loss", "ForwardLogits")
    )
    assert loss["nats"] == pytest.approx(logits["nats"], rel=1e-6)


def test_no_way_to_logits_names_what_was_tried(score: Run, lab: Path) -> None:
    result = score(lab / "table.pt", "--model", f"{lab / 'strange.py'}:Mute")
    for words in ("table.pt: no way was found", "forward_logits(tokens)", "forward(tokens): gave"):
        refused(result, words)


def test_a_stranger_may_print_and_stdout_stays_json(score: Run, lab: Path) -> None:
    result = score(lab / "table.pt", "--model", f"{lab / 'strange.py'}:Chatty", "--json")
    assert done(result)["scores"][0]["window"] == 1024
    assert "built" in result.stderr and "called" in result.stderr


def test_a_model_that_tells_only_losses_is_compared_by_them(score: Run, lab: Path) -> None:
    arguments = ("--model", f"{lab / 'strange.py'}:Shy", "--window", 32, "--tokens", 2000)
    result = score(lab / "table.pt", lab / "table.pt", *arguments, "--json")
    _, again = done(result)["scores"]
    assert again["delta_bits_per_byte"] == 0 and "kl_bits_per_byte" not in again
    assert "no divergence and no agreement" in result.stderr


def test_what_a_stranger_raises_is_a_refusal(score: Run, lab: Path) -> None:
    arguments = ("--model", f"{lab / 'strange.py'}:Short", "--window", 32)
    refused(score(lab / "table.pt", *arguments), "AssertionError: 16 tokens are all I take")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--model", "strange.py"), "should be FILE.py:NAME"),
        (("--model", "strange.py:Nobody"), "no class or function 'Nobody'"),
        (("--model", "missing.py:GPT"), "missing.py: no such model file"),
        (("--model", "strange.py:Chatty", "--model-config", "bad.json"), "does not fit"),
    ],
)
def test_a_model_that_cannot_be_built(
    score: Run, lab: Path, tmp_path: Path, arguments: tuple[str, ...], words: str
) -> None:
    (tmp_path / "strange.py").write_text(STRANGE)
    (tmp_path / "bad.json").write_text('{"vocabulary": 64}')
    refused(score(lab / "table.pt", *arguments), words)


# Data.


def test_shards_text_and_globs_are_one_stream(score: Run, lab: Path) -> None:
    tokenizer = ("--tokenizer", lab / "t64.model", "--json")
    expected = done(score(lab / "a.pt", "--json"))["scores"][0]
    for data in (["valid.bin"], ["part_*.bin"], ["part_1.bin", "part_2.bin"], ["vali?.txt"]):
        named = [argument for name in data for argument in ("--data", lab / name)]
        found = done(score(lab / "a.pt", *named, *tokenizer))["scores"][0]
        assert (found["nats"], found["bytes"]) == (expected["nats"], expected["bytes"])


def test_a_sidecar_and_a_table_count_bytes(score: Run, lab: Path, tmp_path: Path) -> None:
    data = ("--data", lab / "valid.bin", "--json")
    sidecar = done(score(lab / "a.pt", *data, "--bytes-sidecar", lab / "ones.bin"))["scores"][0]
    assert sidecar["bytes"] == sidecar["tokens"]
    (tmp_path / "two.json").write_text(json.dumps({"bytes": [2] * 64}))
    table = done(score(lab / "a.pt", *data, "--bytes-table", "two.json"))["scores"][0]
    assert table["bytes"] == 2 * table["tokens"]
    assert table["bits_per_byte"] == pytest.approx(sidecar["bits_per_byte"] / 2)


def test_documents_are_separated(score: Run, lab: Path, tmp_path: Path) -> None:
    (tmp_path / "two.txt").write_text("abc abc" * 20 + "|" + "abc abc" * 20)
    arguments = ("--data", "two.txt", "--tokenizer", lab / "t64.model", "--window", 16, "--json")
    one = done(score(lab / "a.pt", *arguments))
    two = done(score(lab / "a.pt", *arguments, "--document-separator", "|"))
    assert (one["text_bytes"], two["text_bytes"]) == (281, 280)
    assert two["scores"][0]["unknown_tokens"] == 0 < one["scores"][0]["unknown_tokens"]


def test_bytes_that_are_not_the_texts_are_told(score: Run, lab: Path, tmp_path: Path) -> None:
    """White space that the tokenizer collapses is text too, also where a part is scored."""
    (tmp_path / "wide.txt").write_text("abc   abc\t" * 400)
    arguments = ("--data", "wide.txt", "--tokenizer", lab / "t64.model", "--window", 16)
    for part in ((), ("--tokens", 100)):
        value = done(score(lab / "a.pt", *arguments, *part, "--json"))
        counted = next(one for one in value["warnings"] if "the text itself has" in one)
        assert value["text_bytes"] == 4000 and "4,000" in counted and "fewer" in counted
        shown = score(lab / "a.pt", *arguments, *part)
        assert f"warning: {counted}" in shown.stderr


def test_separators_that_cannot_be_are_refused(score: Run, lab: Path) -> None:
    arguments = ("--data", lab / "valid.txt", "--tokenizer", lab / "t64.model")
    refused(score(lab / "a.pt", *arguments, "--document-separator", ""), "separator is empty")
    value = done(score(lab / "a.pt", *arguments, "--document-separator", "~~", "--json"))
    assert any("'~~' occurs nowhere" in one for one in value["warnings"])


# Many processes.


def test_torchrun(run: Run, lab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two processes: one JSON object, the sums of one process, and a quiet end."""
    monkeypatch.chdir(lab)
    command = ["eval", "a.pt", "b.pt", "--data", "valid.txt", "--tokenizer", "t64.model"]
    command += ["--stride", "16", "--sample", "abc", "--json"]
    alone = run(*command)
    start = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    together = subprocess.run(
        [*start, "-m", "packer", *command],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert (alone.exit_code, together.returncode) == (0, 0), together.stderr
    assert len(together.stdout.splitlines()) == 1
    notes, shared_notes = (
        [line for line in ended.stderr.splitlines() if line.startswith(("note: ", "warning: "))]
        for ended in (alone, together)
    )
    assert notes == shared_notes and len(notes) == len(set(notes)) == 2
    assert "destroy_process_group" not in together.stderr
    one, two = (json.loads(ended.stdout) for ended in (alone, together))
    assert (one["processes"], two["processes"]) == (1, 2)
    assert one["samples"] == two["samples"]
    for single, shared in zip(one["scores"], two["scores"], strict=True):
        assert (single["tokens"], single["bytes"]) == (shared["tokens"], shared["bytes"])
        for key in ("nats", "bits_per_byte", "stderr_bits_per_byte"):
            assert shared[key] == pytest.approx(single[key], rel=1e-9)
    for key in ("kl_bits_per_byte", "delta_bits_per_byte", "top1_agreement"):
        assert two["scores"][1][key] == pytest.approx(one["scores"][1][key], rel=1e-9)


def test_other_processes_that_never_come(
    score: Run, lab: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    refused(score(lab / "a.pt"), "start all of them with torchrun, or unset it")


# What is refused.


@pytest.fixture
def bad(lab: Path, tmp_path: Path) -> Iterator[Path]:
    """The folder in which commands run, with files that are wrong in one way each."""
    write_shard(tmp_path / "cut.bin", [3] * 500, count=9_000)
    write_shard(tmp_path / "high.bin", [3] * 500 + [70] + [3] * 500)
    write_shard(tmp_path / "high_bytes.bin", [1] * 1001)
    write_shard(tmp_path / "boundaries.bin", [1] * 500)
    write_shard(tmp_path / "empty.bin", [])
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "no.model").write_text("hello")
    (tmp_path / "deep.json").write_text("[" * 100_000)
    wrong = {**settings_of(CONFIG), "num_layers": 3}
    (tmp_path / "wrong.json").write_text(json.dumps(wrong))
    (tmp_path / "typo.json").write_text('{"num_head": 4}')
    weights = make_model(0).state_dict()
    torch.save({"conv.weight": torch.zeros(3, 3)}, tmp_path / "other.pt")
    torch.save(
        {name: 1e38 * w if "mlp.fc" in name else w for name, w in weights.items()},
        tmp_path / "huge.pt",
    )
    (tmp_path / "half.pack").write_bytes((lab / "a.pack").read_bytes()[:9_000])
    yield tmp_path


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("LAB/a.pt --data LAB/valid.txt", "is text: name its sentencepiece model"),
        ("LAB/a.pt --data LAB/valid.bin", "name the tokenizer"),
        (
            "LAB/a.pt --data LAB/valid.txt --tokenizer LAB/t80.model",
            "a.pt: the model has a vocabulary of 64 and the tokenizer one of 80",
        ),
        (
            "LAB/a.pt --data LAB/valid.txt --tokenizer LAB/t80.model --sample abcdefghij",
            "a.pt: the model has a vocabulary of 64 and the tokenizer one of 80",
        ),
        ("LAB/a.pt --data cut.bin --tokenizer LAB/t64.model", "cut.bin promises 9,000 tokens"),
        ("LAB/a.pt --data high.bin --tokenizer LAB/t64.model", "token 70 at position 500"),
        ("LAB/a.pt --data high.bin --bytes-sidecar high_bytes.bin", "64 and the data a token 70"),
        ("LAB/a.pt --data LAB/valid.bin --bytes-sidecar cut.bin", "cut.bin promises"),
        ("LAB/a.pt --data LAB/valid.bin --bytes-sidecar high.bin", "belongs to other shards"),
        ("LAB/a.pt --data boundaries.bin --tokenizer LAB/t64.model", "stand for no bytes at all"),
        ("LAB/a.pt --data boundaries.bin --tokenizer LAB/t64.model --json", "no bytes at all"),
        ("LAB/a.pt --data empty.bin --tokenizer LAB/t64.model", "empty.bin: there are 0 tokens"),
        ("LAB/a.pt --data empty.txt --tokenizer LAB/t64.model", "every document is empty"),
        ("LAB/a.pt --data latin.txt --tokenizer LAB/t64.model", "byte 3 is 0xe9"),
        ("LAB/a.pt --data none*.bin --tokenizer LAB/t64.model", "as a glob it matches no file"),
        ("LAB/a.pt --data LAB --tokenizer LAB/t64.model", "is a folder: name its files"),
        (
            "LAB/a.pt --data LAB/valid.bin --data LAB/valid.txt --tokenizer LAB/t64.model",
            "score them one after the other",
        ),
        ("LAB/a.pt --data LAB/valid.txt --tokenizer no.model", "is not a sentencepiece model"),
        ("LAB/a.pt --window 100000", "longer than the"),
        ("LAB/a.pt --window 64 --stride 65", "between 1 and the window's 64"),
        ("LAB/a.pt --tokens 10", "longer than the 10 targets"),
        ("other.pt", "other.pt: these weights are not of the companion model"),
        ("LAB/table.pt --config LAB/a.config.json", "name its class with --model"),
        ("huge.pt --config LAB/a.config.json", "huge.pt: the model's logits are not finite"),
        ("LAB/a.pt huge.pt", "huge.pt: the model's logits are not finite"),
        ("LAB/a.pt huge.pt --sample abc", "logits are not finite"),
        ("LAB/a.pt --config wrong.json", "num_layers is 3 in the configuration but 2"),
        ("LAB/a.pt --config typo.json", "no setting 'num_head'; the nearest is 'num_heads'"),
        ("half.pack", "half.pack: the checksum is wrong"),
        ("no.model", "is neither a torch file nor safetensors"),
        ("LAB/a.pt --device nonsense", "--device nonsense cannot be used here"),
        ("LAB/a.pt --device meta", "take cpu, cuda or cuda:N"),
        ("LAB/a.pt --device cuda:99", "--device cuda:99 cannot be used here"),
    ],
)
def test_bad_input(score: Run, lab: Path, bad: Path, arguments: str, words: str) -> None:
    before = sorted(bad.iterdir())
    refused(score(*arguments.replace("LAB", str(lab)).split()), words)
    assert sorted(bad.iterdir()) == before


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("LAB/a.pt --reference LAB/b.pt", "--reference"),
        ("LAB/a.pt --data LAB/valid.bin --sample abc", "name it with --tokenizer"),
        ("LAB/a.pt --model-config typo.json", "--model-config goes with --model"),
        ("LAB/a.pt --model m.py:GPT --config wrong.json", "use --model-config"),
        ("LAB/a.pt --window 0", "--window"),
        ("missing.pt", "missing.pt"),
        ("LAB/a.pt --data LAB/valid.txt --tokenizer LAB", "is a directory"),
        ("", "SOURCES"),
    ],
)
def test_wrong_usage(score: Run, lab: Path, bad: Path, arguments: str, words: str) -> None:
    refused(score(*arguments.replace("LAB", str(lab)).split()), words, code=2)
    assert bad.is_dir()


def test_a_carried_configuration_that_is_damaged(score: Run, lab: Path) -> None:
    plan = api.plan(lab / "a.pt", 20_000, api.MeasureOptions(metadata={"config": "{"}))
    api.pack(lab / "a.pt", plan, out="odd.pack")
    refused(score("odd.pack"), "odd.pack: its config is not JSON")


# The known numbers of a real model.


def test_the_reference_checkpoint(run: Run, shared: Path) -> None:
    folder, text = shared / "checkpoints", shared / "corpus" / "valid" / "sherlock.txt"
    tokenizer = shared / "tokenizers" / "fineweb_1024_bpe.model"
    value = done(
        run(
            "eval",
            *(folder / "ref6x256.pt", "--data", text, "--tokenizer", tokenizer),
            *("--window", 256, "--tokens", 2_048, "--json"),
        )
    )
    model = GPT(config_from(read_config(folder / "ref6x256.config.json")))
    model.load_state_dict(torch.load(folder / "ref6x256.pt", weights_only=True))
    data = evaluation.open_data([text], tokenizer=tokenizer)
    (expected,) = evaluation.evaluate(
        [Subject("", "checkpoint", model, 0)],
        data,
        Setting(256, tokens=2_048),
        progress=ignore,
        notice=ignore,
    )
    found = value["scores"][0]
    assert found["bits_per_byte"] == pytest.approx(expected.score.bits_per_byte, rel=1e-6)
    assert found["tokens"] == 2_048 and 1.5 < found["bits_per_byte"] < 2.2
    (warning,) = value["warnings"]  # of blank lines, which this tokenizer leaves out
    assert "559,729" in warning and "562,597" in warning and "0.51 % fewer" in warning
