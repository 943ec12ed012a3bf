"""`packer check` on incidents of the contest (incidents.toml), each with the lines its log had.

Both ways: what was wrong is found, and what only looked wrong is not failed.
"""

from __future__ import annotations

import importlib.util
import io
import json
import random
import re
import sys
import tempfile
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import zstandard
from click.testing import Result

from packer.code.self_extracting import ENTRY, wrap
from packer.errors import SubmissionError
from packer.rules import Finding, Options, Status, check
from packer.rules.record import seeds_needed, significance
from packer.submission.folder import read_submission

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Run = Callable[..., Result]
SP1024, SP8192, CASEOPS = 2.442, 3.727, 3.157
TOKENS = {SP1024: 62_021_632, SP8192: 40_540_160, CASEOPS: 47_851_520}
LN2 = 0.6931471805599453


def code_of(size: int) -> str:
    """A script of exactly so many bytes, hardly compressible below a third of them."""
    letters = random.Random(size)
    text = "import torch\nVALUES = '"
    body = "".join(letters.choice("abcdefghijklmnopqrstuvwxyz012345") for _ in range(size))
    return (text + body)[: size - 2] + "'\n"


def wordy_code_of(size: int) -> str:
    """A script of exactly so many bytes that packs to a few percent of them."""
    lines, i = ["import torch\n"], 0
    while sum(map(len, lines)) < size - 200:
        lines.append(f"def layer_{i}(x):  # one more layer of the same kind\n    return x + {i}\n")
        i += 1
    text = "".join(lines)
    return text + "#" * (size - len(text) - 1) + "\n"


def log(
    model: int | None = 15_900_000,
    code: int | None = 50_000,
    *,
    label: str = "int6+zstd",
    seed: int = 1337,
    bpb: float = 1.14,
    ratio: float = SP1024,
    vocab: int | None = 1024,
    train_ms: int = 599_500,
    eval_ms: int = 80_000,
    tokens: int | None = None,
    steps: int = 7_000,
    shards: int = 80,
    total: int | None = None,
    before: str = "",
    after: str = "",
    raw_code: int | None = None,
) -> str:
    """A training log in the shapes that the contest's scripts print."""
    nats = bpb * ratio * LN2
    tokens = tokens or TOKENS.get(ratio)
    lines = [
        "import sys",
        'log0(f"Total submission size int8+zlib: {total} bytes")',
        "=" * 100,
        f"val_loader:shards pattern=./data/fineweb_val_*.bin tokens:{tokens}" if tokens else "",
        f"train_loader:dataset:fineweb10B train_shards:{shards}",
        f"tokenizer_path:./data/tokenizers/fineweb_{vocab}_bpe.model" if vocab else "",
        f"seed:{seed}",
        f"step:{steps}/20000 val_loss:{nats - 0.01:.4f} val_bpb:{bpb - 0.01 / ratio / LN2:.4f} "
        f"train_time:{train_ms}ms step_avg:85.0ms",
        f"stopping_early: wallclock_cap train_time:{train_ms}ms step:{steps}/20000",
        "Serialized model: 105783807 bytes",
        before,
        f"Code size (uncompressed): {raw_code} bytes" if raw_code is not None else "",
        f"Code size{' (compressed)' if raw_code else ''}: {code} bytes" if code is not None else "",
        f"Total submission size: {105_783_807 + (code or 0)} bytes",
    ]
    if model is not None:
        lines.append(f"Serialized model {label}: {model} bytes")
        lines.append(f"Total submission size {label}: {total or model + (code or 0)} bytes")
    lines += [
        f"final_int6_roundtrip val_loss:{nats + 0.01:.4f} val_bpb:{bpb + 0.01 / ratio / LN2:.4f} "
        f"eval_time:{eval_ms // 8}ms",
        f"final_int6_sliding_window val_loss:{nats:.4f} val_bpb:{bpb:.4f} eval_time:{eval_ms}ms",
        f"final_int6_sliding_window_exact val_loss:{nats:.8f} val_bpb:{bpb:.8f}",
        after,
    ]
    return "\n".join(lines) + "\n"


@dataclass(frozen=True)
class Folder:
    """What to write: code, logs by name, submission.json, README.md, artifacts by name."""

    code: str | None = None
    logs: Mapping[str, str] = field(default_factory=dict)
    claims: Mapping[str, Any] | str | None = None
    readme: str | None = "A model of 1.14 bpb."
    artifacts: Mapping[str, bytes | int] = field(default_factory=dict)
    others: Mapping[str, str] = field(default_factory=dict)

    def write(self, path: Path) -> Path:
        path.mkdir(parents=True, exist_ok=True)
        texts = {**self.logs, **self.others}
        if self.code is not None:
            texts["train_gpt.py"] = self.code
        if self.claims is not None:
            claims = self.claims
            texts["submission.json"] = claims if isinstance(claims, str) else json.dumps(claims)
        if self.readme is not None:
            texts["README.md"] = self.readme
        for name, text in texts.items():
            (path / name).write_bytes(text.encode())
        for name, data in self.artifacts.items():
            if isinstance(data, bytes):
                (path / name).write_bytes(data)
            else:  # only its size matters: a file with a hole
                with (path / name).open("wb") as file:
                    file.truncate(data)
        return path


def found(folder: Path, **options: Any) -> dict[str, Finding]:
    return {f.rule: f for f in check(read_submission(folder), Options(**options))}


def three(code: int, models: Sequence[int], **facts: Any) -> dict[str, str]:
    """Logs of three seeds with these models."""
    bpbs = (1.1390, 1.1400, 1.1410)
    return {
        f"train_seed{seed}.log": log(model, code, seed=seed, bpb=bpb, **facts)
        for seed, model, bpb in zip((42, 1337, 2025), models, bpbs, strict=True)
    }


def artifact(compress: Callable[[bytes], bytes], step: float = 0.01) -> bytes:
    """A small {w, m} artifact under any compressor."""
    generator = torch.Generator().manual_seed(1)
    w: dict[str, torch.Tensor] = {}
    m: dict[str, Any] = {}
    for layer in range(2):
        name = f"blocks.{layer}.mlp.fc.weight"
        w[f"{name}.q"] = torch.randint(-31, 32, (64, 32), generator=generator, dtype=torch.int8)
        w[f"{name}.scale"] = torch.full((64,), step, dtype=torch.float16)
        m[name] = {"type": "int6"}
    w["tok_emb.weight"] = torch.zeros(128, 32, dtype=torch.float16)
    m["tok_emb.weight"] = "passthrough_fp16"
    file = io.BytesIO()
    torch.save({"w": w, "m": m}, file)
    return compress(file.getvalue())


ZSTD = artifact(zstandard.ZstdCompressor(level=3).compress)
ZLIB = artifact(lambda data: zlib.compress(data, 9))
ARTIFACTS = {"zstd": ZSTD, "zlib": ZLIB}
GOOD = Folder(
    code=code_of(50_000),
    logs=three(50_000, (15_900_000, 15_910_000, 15_905_000)),
    claims={
        "val_bpb": 1.14,
        "val_loss": 1.14 * SP1024 * LN2,
        "bytes_total": 15_960_000,
        "bytes_code": 50_000,
        "seeds": [42, 1337, 2025],
        "compliance": {"artifact_under_16mb": True, "train_under_600s": True, "no_slot": True},
    },
    readme="Mean 1.1400 bpb over three seeds, 15,960,000 bytes.",
)


def incidents() -> list[dict[str, Any]]:
    """The incidents of the table and its rows; each is a folder, and what must be found in it."""
    table = tomllib.loads(Path(__file__).with_name("incidents.toml").read_text("utf-8"))
    cases = list(table["incident"])
    for rows in table["rows"]:
        for facts, status, part, *others in rows["cases"]:
            expected = {rows["rule"]: [status, part], **{rule: ["fail", ""] for rule in others}}
            cases.append({"name": f"{rows['name']}: {facts}", **facts, "expected": expected})
    return cases


def folder_of(incident: Mapping[str, Any]) -> Folder:
    """What the incident's lines in the table describe."""
    logs = {"train.log": incident["run"]} if "run" in incident else incident.get("logs", {})
    written = {name: log_of(**facts) for name, facts in logs.items()}
    if "three" in incident:
        written = three(**incident["three"]) | written
    code = wordy_code_of(incident["wordy_code"]) if "wordy_code" in incident else None
    if code is None and ("code" in incident or "run" in incident):
        code = code_of(incident.get("code") or incident["run"].get("code", 50_000))
    sizes = incident.get("artifacts", {})
    return Folder(
        code=code,
        logs=written,
        claims=incident.get("claims", {"val_bpb": 1.14}),
        readme=incident.get("readme", Folder.readme),
        artifacts={name: ARTIFACTS.get(size, size) for name, size in sizes.items()},
    )


def log_of(model: int | str = 15_900_000, edits: Sequence[Sequence[str]] = (), **facts: Any) -> str:
    """A log whose model may be one of ARTIFACTS, with words changed in it."""
    text = log(len(ARTIFACTS[model]) if isinstance(model, str) else model, **facts)
    for old, new in edits:
        assert old in text
        text = text.replace(old, new)
    return text


INCIDENTS = incidents()


def module_of_verdicts() -> ModuleType:
    """benchmarks.verdicts, which is never installed."""
    path = Path(__file__).resolve().parents[2] / "benchmarks" / "verdicts.py"
    spec = importlib.util.spec_from_file_location("verdicts", path)
    assert spec is not None and spec.loader is not None
    module = sys.modules["verdicts"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@cache
def findings_of(number: int) -> dict[str, Finding]:
    with tempfile.TemporaryDirectory() as scratch:
        return found(folder_of(INCIDENTS[number]).write(Path(scratch) / "submission"))


@pytest.mark.parametrize("number", range(len(INCIDENTS)), ids=lambda n: str(INCIDENTS[n]["name"]))
def test_an_incident(number: int) -> None:
    incident, findings = INCIDENTS[number], findings_of(number)
    for rule, (status, part) in incident["expected"].items():
        said = "\n".join([findings[rule].verdict, *findings[rule].evidence])
        assert (findings[rule].status.value, part in said) == (status, True), said
    failed = {rule: one for rule, one in findings.items() if one.status.value == "fail"}
    assert failed.keys() <= incident["expected"].keys(), failed


def test_the_committed_table_of_verdicts_is_that_of_the_incidents() -> None:
    root, verdicts = Path(__file__).resolve().parents[2], module_of_verdicts()
    committed = (root / "benchmarks" / "verdicts.csv").read_text("utf-8")
    cases = []
    for number, incident in enumerate(INCIDENTS):
        wanted = {rule: Status(status) for rule, (status, _) in incident["expected"].items()}
        cases.append((str(incident["name"]), verdicts.judged(findings_of(number), wanted)))
    rows, wrong = verdicts.count(cases)
    assert not wrong
    assert verdicts.as_csv(rows) == committed, "run python -m benchmarks.verdicts"
    assert sum(int(row[1 + verdicts.COLUMNS.index("right_fail")]) for row in rows) > 50
    documented = (root / "docs" / "checker.md").read_text("utf-8")
    table = re.findall(r"^\| `([a-z-]+)` \|((?: \d+ \|){7})$", documented, flags=re.MULTILINE)
    spelled = [[str(one) for one in row] for row in rows]
    assert [[rule, *re.findall(r"\d+", numbers)] for rule, numbers in table] == spelled


def test_a_good_submission_passes_every_rule_that_can_be_told(tmp_path: Path) -> None:
    findings = found(GOOD.write(tmp_path / "good"), sota_nats=(1.14 * SP1024 * LN2 + 0.015,))
    statuses = {rule: finding.status.value for rule, finding in findings.items()}
    without_evidence = {"codec": "unknown"}
    assert statuses == dict.fromkeys(statuses, "pass") | without_evidence
    assert {"cap", "json-total", "train-time", "record", "network", "val-set"} <= set(statuses)


def test_what_nothing_tells_is_unknown_and_never_passed(tmp_path: Path) -> None:
    folder = Folder(code=code_of(900), claims={"val_bpb": 1.1, "bytes_total": 15_000_000})
    findings = found(folder.write(tmp_path / "bare"))
    unknown = {rule for rule, finding in findings.items() if finding.status.value == "unknown"}
    assert unknown >= {"cap", "json-total", "codec", "train-time", "eval-time", "val-set"}
    assert unknown >= {"bytes-per-token", "score", "seeds", "record"}


NETWORK = "import urllib.request\nurllib.request.urlopen('http://example.org')\n"


@pytest.mark.parametrize(
    ("code", "rule", "status", "part"),
    [
        (NETWORK, "network", "fail", "line 2: calls urllib.request.urlopen"),
        ("from urllib.parse import quote\nprint(quote('a'))\n", "network", "pass", ""),
        ("import requests\n", "network", "warn", "imports requests"),
        ("import os\nos.system('pip install flash-attn')\n", "network", "warn", "pip install"),
        ("def f():\n  return datasets.load_dataset('x')\n", "network", "fail", "load_dataset"),
        ("x = open('docs_selected.jsonl')\n", "data-access", "warn", "line 1: docs_selected"),
        ("def eval_val_ttt(x):\n  pass\n", "pointers", "warn", "test-time training"),
        ("class NgramCache:\n  pass\n", "pointers", "warn", "not judged"),
        ("def slots_of_a_dataclass():\n  pass\n", "pointers", "pass", ""),
        ("def train(): pass\n", "pointers", "pass", ""),
    ],
)
@pytest.mark.parametrize("packed", [False, True])
def test_what_code_reaches_for(
    tmp_path: Path, code: str, rule: str, status: str, part: str, packed: bool
) -> None:
    """In plain scripts, and inside self-extracting ones."""
    if packed:
        code = wrap({ENTRY: code}).text
    folder = Folder(code=code, logs={"t.log": log(code=len(code))})
    finding = found(folder.write(tmp_path / "f"))[rule]
    said = "\n".join([finding.verdict, *finding.evidence])
    assert finding.status.value == status, said
    assert part in said or (packed and "(unwrapped __main__)" in said)


def test_code_that_does_not_parse_is_unknown(tmp_path: Path) -> None:
    finding = found(Folder(code="this is no python\n").write(tmp_path / "f"))["network"]
    assert finding.status.value == "unknown" and "does not parse" in finding.verdict


def test_a_module_beside_the_entry_counts(tmp_path: Path) -> None:
    entry = "import lossless_caps\n" + code_of(40_000)
    helper = code_of(9_000)
    loose = Folder(
        code=entry, others={"lossless_caps.py": helper}, logs={"t.log": log(code=len(entry))}
    )
    finding = found(loose.write(tmp_path / "loose"))["code-files"]
    assert finding.status.value == "warn" and "lossless_caps.py 9,000" in finding.verdict
    counted = Folder(
        code=entry,
        others={"lossless_caps.py": helper},
        logs={"t.log": log(15_960_000, len(entry) + 9_000)},
    )
    findings = found(counted.write(tmp_path / "counted"))
    assert findings["code-files"].status.value == "pass"
    assert findings["cap"].status.value == "fail" and "OVER by 9,021" in findings["cap"].verdict


def test_a_model_above_the_cap_needs_no_code_to_be_over(tmp_path: Path) -> None:
    finding = found(Folder(artifacts={"m.ptz": 16_000_001}).write(tmp_path / "f"))["cap"]
    assert finding.status.value == "fail" and "the model alone is 16,000,001" in finding.verdict


def test_scales_on_the_floor_are_seen_in_a_real_artifact(shared: Path, tmp_path: Path) -> None:
    data = (shared / "artifacts" / "int8_zlib_12m.ptz").read_bytes()
    finding = found(Folder(code="x = 1\n", artifacts={"m.ptz": data}).write(tmp_path / "f"))
    assert finding["scale-floor"].status.value == "warn"
    assert "% of" in finding["scale-floor"].verdict
    assert finding["artifact"].status.value == "pass"


@pytest.mark.parametrize(("step", "status"), [(1 / 31, "warn"), (0.05, "pass")])
def test_scales_on_the_floor(tmp_path: Path, step: float, status: str) -> None:
    data = artifact(lambda raw: zlib.compress(raw, 6), step)
    findings = found(Folder(code="x = 1\n", artifacts={"m.ptz": data}).write(tmp_path / "f"))
    assert findings["scale-floor"].status.value == status


def test_artifacts_are_told_by_their_bytes(tmp_path: Path) -> None:
    names = {"weights": ZSTD, "model.bin": ZLIB, "log.txt": ZLIB, "tok.model": b"\x0a\x05<unk>"}
    submission = read_submission(Folder(code="x = 1\n", artifacts=names).write(tmp_path / "f"))
    found_codecs = {one.name: one.codec for one in submission.artifacts}
    assert found_codecs == {"weights": "zstd", "model.bin": "zlib"}


def test_an_artifact_that_cannot_be_read_is_unknown(tmp_path: Path) -> None:
    folder = Folder(code="x = 1\n", artifacts={"m.ptz": b"\x28\xb5\x2f\xfd" + bytes(50)})
    findings = found(folder.write(tmp_path / "f"))
    assert findings["artifact"].status.value == "unknown"


SOTA = (1.90, 1.901, 1.902)


@pytest.mark.parametrize(
    ("nats", "options", "status", "part"),
    [
        ((1.880, 1.881, 1.882), {"sota_nats": SOTA}, "pass", "Welch"),
        ((1.880, 1.881, 1.882), {"sota_nats": (1.901,)}, "pass", "one-sample"),
        ((1.897, 1.898, 1.899), {"sota_nats": SOTA}, "fail", "0.005 are needed"),
        ((1.880, 1.892, 1.896), {"sota_nats": SOTA}, "fail", "more seeds as good"),
        ((1.894, 1.8955, 1.8975), {"sota_nats": SOTA}, "fail", "not even 30 seeds"),
        ((1.88,), {"sota_nats": SOTA}, "unknown", "one seed has no p"),
        ((1.88, 1.881), {}, "unknown", "--sota-nats"),
        (
            (1.880, 1.881, 1.882),
            {"sota_nats": SOTA, "replicated_nats": (1.884, 1.885, 1.886)},
            "fail",
            "the baseline as replicated",
        ),
    ],
)
def test_a_record(
    tmp_path: Path, nats: tuple[float, ...], options: dict[str, Any], status: str, part: str
) -> None:
    logs = {
        f"seed{i}.log": log(seed=i, bpb=value / SP1024 / LN2) for i, value in enumerate(nats, 1)
    }
    folder = Folder(code=code_of(50_000), logs=logs)
    finding = found(folder.write(tmp_path / "f"), **options)["record"]
    assert (finding.status.value, part in "\n".join([finding.verdict, *finding.evidence])) == (
        status,
        True,
    ), finding


def test_a_record_on_the_word_of_the_json_alone_is_unknown(tmp_path: Path) -> None:
    results = {str(seed): {"val_loss": 1.88 + seed / 1000} for seed in (1, 2, 3)}
    folder = Folder(code=code_of(900), claims={"val_bpb": 1.1, "seed_results": results})
    path = folder.write(tmp_path / "f")
    finding = found(path, sota_nats=SOTA)["record"]
    assert finding.status.value == "unknown" and "no log has them" in finding.verdict
    assert found(path, sota_nats=(1.885,))["record"].status.value == "fail"


def test_significance_is_that_of_the_textbook() -> None:
    """Three values with mean 10 and deviation 1 against a limit 2 above: t = 2 √3, two degrees."""
    p, test = significance((9.0, 10.0, 11.0), (12.005,))
    assert "one-sample" in test
    assert p == pytest.approx(0.5 - 3.4641016 / (2 * (3.4641016**2 + 2) ** 0.5), abs=1e-6)
    needed = seeds_needed((9.0, 10.0, 11.0), (12.005,))
    assert needed is not None and needed == 5


def test_a_gain_in_bits_per_byte_is_not_one_in_nats(tmp_path: Path) -> None:
    readme = "This improves on the record by 0.0052 bpb. A replicated baseline gave 1.15."
    folder = Folder(code=code_of(50_000), logs={"t.log": log()}, readme=readme)
    findings = found(folder.write(tmp_path / "f"), sota_nats=(2.0,))
    assert findings["gain-unit"].status.value == "warn"
    assert "0.005 nats are 0.0029" in findings["gain-unit"].verdict
    record = findings["record"]
    assert "--replicated-nats" in "\n".join([record.verdict, *record.evidence])
    quiet = Folder(code=code_of(50_000), logs={"t.log": log()}, readme="Better by 0.006 nats.")
    assert "gain-unit" not in found(quiet.write(tmp_path / "g"))


@pytest.mark.parametrize(("width", "status"), [(32, "pass"), (64, "fail")])
def test_the_log_and_the_artifact_agree(tmp_path: Path, width: int, status: str) -> None:
    logged = log(vocab=128, after=f"num_layers:2\nmodel_dim:{width}")
    folder = Folder(code=code_of(50_000), artifacts={"m.ptz": ZSTD}, logs={"t.log": logged})
    finding = found(folder.write(tmp_path / "f"))["shapes"]
    assert finding.status.value == status
    if status == "fail":
        assert "model_dim is 32 in m.ptz and 64 in t.log" in finding.verdict


def test_the_command(run: Run, tmp_path: Path) -> None:
    good = GOOD.write(tmp_path / "good")
    result = run("check", good)
    assert result.exit_code == 0, result.output
    assert result.stdout.splitlines()[-1].startswith("0 fail, 0 warn, 2 unknown")
    bad = folder_of(incidents()[0]).write(tmp_path / "bad")
    result = run("check", bad, "--json")
    value = json.loads(result.stdout)
    assert result.exit_code == 1 and value["failed"] is True
    assert {"rule", "status", "verdict", "evidence"} == set(value["findings"][0])
    assert run("check", bad, "--cap", "16.2MB").exit_code == 0
    # Nothing in the folder is written.
    assert {path.name for path in bad.iterdir()} == {
        "README.md",
        "submission.json",
        "train.log",
        "train_gpt.py",
    }


def test_a_folder_with_nothing_to_check(run: Run, tmp_path: Path) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    result = run("check", empty)
    assert result.exit_code == 1 and "holds no train_gpt.py" in result.output
    with pytest.raises(SubmissionError, match="not a folder"):
        read_submission(empty / "nowhere")


def test_every_rule_is_documented() -> None:
    root = Path(__file__).resolve().parents[2]
    named: set[str] = set()
    for path in sorted((root / "packer" / "rules").glob("*.py")):
        found_here = re.findall(r'(?:Finding|verdict|unknown)\(\s*"([a-z-]+)"', path.read_text())
        named |= set(found_here)
    text = (root / "docs" / "checker.md").read_text("utf-8").partition("## How logs")[0]
    documented = set(re.findall(r"^\| `([a-z-]+)` \|", text, flags=re.MULTILINE))
    assert documented == named and len(named) >= 20
