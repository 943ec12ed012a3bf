"""`packer check` on folders as people sent them: what is there is seen, and no wolf is cried."""

from __future__ import annotations

import json
import lzma
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from packer.code.self_extracting import wrap
from packer.rules import Finding, Options, check
from packer.submission.folder import Submission, read_submission

Make = Callable[..., Path]
NATS = 1.2 * 2.442 * 0.6931471805599453
CODE = "import torch\n" + "#" * 39_986 + "\n"
BELOW_3_12 = pytest.mark.skipif(sys.version_info >= (3, 12), reason="parses there")


def log(
    *after: str,
    seed: int | None = 5,
    model: int | None = 15_700_000,
    code: int = 40_000,
    bpb: float = 1.2,
    ms: int = 598_000,
    vocab: int | None = 1024,
    ratio: float = 2.442,
    digits: int = 8,
    sizes: tuple[str, ...] | None = None,
) -> str:
    """A log in the shapes that the contest's scripts print; after: further lines before scores."""
    nats = bpb * ratio * 0.6931471805599453
    if sizes is None:
        sizes = (
            f"Code size: {code} bytes",
            f"Serialized model int6+lzma: {model} bytes",
            f"Total submission size int6+lzma: {(model or 0) + code} bytes",
        )
    lines = (
        *(() if seed is None else (f"seed:{seed}",)),
        *(() if vocab is None else (f"vocab_size:{vocab}",)),
        f"step:5000/20000 val_loss:{nats:.4f} val_bpb:{bpb:.4f} train_time:{ms}ms step_avg:119ms",
        f"stopping_early: wallclock_cap train_time:{ms}ms step:5000/20000",
        *after,
        *sizes,
        f"final_int6_roundtrip_exact val_loss:{nats:.{digits}f} val_bpb:{bpb:.{digits}f} "
        "eval_time:61000ms",
    )
    return "\n".join(lines) + "\n"


@pytest.fixture
def make(tmp_path: Path) -> Make:
    def make(
        files: dict[str, str | bytes] | None = None, *, name: str = "run", **claims: Any
    ) -> Path:
        folder = tmp_path / name
        folder.mkdir(parents=True)
        contents: dict[str, str | bytes] = {"train_gpt.py": CODE, "README.md": "1.2 bpb"}
        contents["submission.json"] = json.dumps({"val_bpb": 1.2, **claims})
        for path, content in {**contents, **(files or {})}.items():
            data = content.encode() if isinstance(content, str) else content
            (folder / path).parent.mkdir(exist_ok=True)
            (folder / path).write_bytes(data)
        return folder

    return make


def said(folder: Path, rule: str, **options: Any) -> tuple[str, str]:
    """(status, all that is said) of one rule."""
    finding = of(read_submission(folder), **options)[rule]
    return finding.status.value, "\n".join((finding.verdict, *finding.evidence))


def of(submission: Submission, **options: Any) -> dict[str, Finding]:
    return {finding.rule: finding for finding in check(submission, Options(**options))}


# --- Calibration --------------------------------------------------------------------------------


def test_a_calibration_inside_the_loop_is_on_its_clock(make: Make) -> None:
    text = log(ms=600_012).replace("step:5000/", "gptq: collecting Hessians\nstep:5000/", 1)
    assert said(make({"a.log": text}), "train-time")[0] == "warn"


# --- Tracks and other hardware ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "readme", "claims", "unlimited"),
    [
        ("run", "1.2 bpb", {"track": "non-record-unlimited-compute-16mb"}, True),
        ("run", "1.2 bpb", {"track": "Non record (16MB)"}, True),
        ("run", "1.2 bpb", {"category": "unlimited_compute"}, True),
        ("run", "1.2 bpb", {"non_record": True}, True),
        ("run", "1.2 bpb", {"is_record": False}, True),
        ("run", "1.2 bpb", {"record": True}, False),
        ("track_non_record_16mb/2026-03-01_Run", "1.2 bpb", {}, True),
        ("2026-03-01_NonRecord_Long", "1.2 bpb", {}, True),
        ("run", "# Non-record: four hours\n1.2 bpb", {}, True),
        ("run", "# A run\n\nThis is a non-record submission. 1.2 bpb", {}, True),
        ("run", "1.2 bpb. Better than the non-record four-hour baseline.", {}, False),
        ("run", "# Non-record?\n1.2 bpb", {"track": "10min_16mb"}, False),
        ("2026-03-01_Record", "1.2 bpb", {"track": "record"}, False),
        ("run", "1.2 bpb", {"non_record": False}, False),
    ],
)
def test_a_track_without_a_limit_is_not_held_to_it(
    make: Make, name: str, readme: str, claims: dict[str, Any], unlimited: bool
) -> None:
    folder = make({"a.log": log(ms=7_200_000), "README.md": readme}, name=name, **claims)
    status, text = said(folder, "train-time")
    assert status == ("pass" if unlimited else "fail") and "trained 7200.0 s" in text


def test_a_box_of_the_record_track_is_still_held_against_the_log(make: Make) -> None:
    ticked = {"compliance": {"train_under_600s": True}}
    folder = make({"a.log": log(ms=7_200_000)}, track="non-record", **ticked)
    assert said(folder, "compliance")[0] == "fail"


# --- Copies of logs -----------------------------------------------------------------------------


def test_copies_of_a_log_count_once(make: Make) -> None:
    logs = {f"run_seed{seed}.txt": log(seed=seed, bpb=1.2 + seed / 1e3) for seed in (1, 2)}
    copies = {
        "train.log": logs["run_seed1.txt"],
        "logs/main.log": logs["run_seed2.txt"].replace("seed:2\n", "").replace("\n", "\r\n"),
        "tail.out": "".join(logs["run_seed1.txt"].splitlines(keepends=True)[-1:]),
    }
    submission = read_submission(make({**logs, **copies}, val_bpb=1.2015))
    assert [one.name for one in submission.logs] == ["run_seed1.txt", "run_seed2.txt"]
    assert len([note for note in submission.notes if "copy of" in note]) == 3
    found = of(submission, sota_nats=(3.0,))
    assert "(2 runs" in found["record"].verdict
    assert found["score"].status.value == "pass" and found["seeds"].status.value == "warn"
    assert "train.log is a copy of run_seed1.txt" in found["seeds"].evidence


def test_many_copies_of_logs_are_one_line(make: Make) -> None:
    copies = {f"old/run_{number}.log": log(seed=1) for number in range(40)}
    finding = of(read_submission(make({"train_seed1.log": log(seed=1), **copies})))["seeds"]
    lines = [one for one in (finding.verdict, *finding.evidence) if "cop" in one]
    assert len(lines) == 1 and "40 logs are copies" in lines[0]
    assert lines[0].count("is a copy of train_seed1.log") == 3


def test_one_log_under_two_seeds_names_is_a_fault_and_no_significance(make: Make) -> None:
    texts = {f"train_seed{seed}.log": log(seed=1, bpb=1.2) for seed in (1, 2)}
    third = {"train_seed3.log": log(seed=3, bpb=1.2001)}
    folder = make({**texts, **third})
    assert said(folder, "seeds")[0] == "fail"
    text = said(folder, "record", sota_nats=(3.0,))[1]
    assert "(2 runs" in text and "copies and count once" in text


def test_runs_that_round_alike_are_no_copies(make: Make) -> None:
    logs = {f"seed{seed}.log": log(seed=seed, digits=4) for seed in (1, 2, 3)}
    submission = read_submission(make(logs))
    assert len(submission.logs) == 3
    assert of(submission)["seeds"].status.value == "pass"
    assert "(3 runs" in of(submission, sota_nats=(3.0,))["record"].verdict


# --- Sizes --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("lines", "total"),
    [
        (("artifact:0.87MB code:40000 total:16040007/16000000 (OVER)",), 16_040_007),
        (("artifact:15.99MB ternary:14.1MB fp:1.9MB code:9 total:16000009/16000000",), 16_000_009),
        (("serialized_model_int8_zlib:16000001 bytes (payload:1 raw_pickle:2)",), 16_040_001),
        (("Total submission size: 16100000 bytes",), 16_100_000),
        (("Total submission: 16100000 bytes",), 16_100_000),
        (("Artifact: 16,100,000 bytes (15.35 MB)",), 16_100_000),
        (("quant:int5 artifact size: 16100000 bytes",), 16_100_000),
        (("Serialized quantized+brotli: 16050000 bytes",), 16_090_000),
        (
            ("compressed_model_bytes:16000005 code_bytes:40000 total_artifact_bytes:16040005",),
            16_040_005,
        ),
        (("budget:16000700/16000000 (16.00MB/16.00MB) OVER",), 16_000_700),
        (("final artifact size = 16,100,000 bytes",), 16_100_000),
        (("total submission size: 16100000 bytes (15.35 MiB)",), 16_100_000),
        (("Total submission size (int6+zstd): 16100000 bytes",), 16_100_000),
        (("Final submission size: 16100000 bytes",), 16_100_000),
        (("artifact_bytes:16100000 cap:16000000",), 16_100_000),
        (("submission_bytes=16100000",), 16_100_000),
        (("compressed size: 16100000 bytes",), 16_100_000),
        (("Total size: 16100000 bytes",), 16_100_000),
        (("TOTAL SIZE = 16,100,000 BYTES",), 16_100_000),
        (("total_size_bytes: 16_100_000",), 16_100_000),
        (("Total size (seed 42): 16.100.000 B", "Total size (seed 7): 15900000 B"), 16_100_000),
        (("seed 42: artifact size 16'100'000 bytes",), 16_100_000),
        (("artifact_bytes_seed42=16100000", "artifact_bytes_seed7=15900000"), 16_100_000),
        (("Artifact: 16.10 MB (16100000 bytes)",), 16_100_000),
        (("zipped_bytes: 16 100 000",), 16_100_000),
        (("Zipped: 16100000 bytes",), 16_100_000),
        (("Model + code: 16100000 bytes",), 16_100_000),
        (("SUBMISSION SIZE: 16100000 bytes",), 16_100_000),
        (("SERIALIZED MODEL INT6+ZSTD: 16060000 bytes",), 16_100_000),
        (("Total submission size int6+zstd: 16100000",), 16_100_000),
    ],
)
def test_every_line_with_a_size_is_read(make: Make, lines: tuple[str, ...], total: int) -> None:
    status, text = said(make({"train.log": log(sizes=lines)}), "cap")
    assert status == "fail" and f"{total:,}" in text and f"OVER by {total - 16_000_000:,}" in text


@pytest.mark.parametrize(
    "lines",
    [
        ("Serialized model: 105783807 bytes", "Total submission size: 105823807 bytes"),
        ("model_params:30000000", "Total submission size: 61000000 bytes"),
        ("Total submission size: 105823807 bytes",),
        ("total_bytes of the artifact are 17000000",),
        ("compressed size: 16500 bytes",),
        ("total submission size: 105823807 bytes",),
        ("print(f'Artifact: {size} bytes')",),
        ("Total size: 67.22 MB",),
        ("total size of the shards is 17000000",),
        ("Artifact: 16.27%", "artifact 3 of 17000000", "Compressed 17000000x", "zipped: 17 MBit"),
        ("Total size: 16.27 GB",),
    ],
)
def test_the_checkpoint_and_sentences_are_no_total(make: Make, lines: tuple[str, ...]) -> None:
    assert said(make({"train.log": log(sizes=lines)}), "cap")[0] == "unknown"


@pytest.mark.parametrize(
    ("line", "status", "words"),
    [
        ("Artifact: 16.27 MB", "fail", "'Artifact: 16.27 MB' is OVER by 265,000 or more"),
        ("ARTIFACT SIZE = 16,27 MB (limit 16)", "fail", "OVER by 265,000"),
        ("artifact_size: 15.51 MiB", "fail", "OVER by 258,171"),
        ("Total size: 16100 KB", "fail", "OVER by 99,500"),
        ("Total submission size int6+zstd: 16.27MB", "fail", "OVER"),
        ("Artifact (seed 42): 16.27 MB", "fail", "OVER"),
        ("Artifact: 15.99 MB", "unknown", "may be over if it counts MiB; log the bytes"),
        ("Artifact: 15.25 MiB", "unknown", "leaves out the code"),
        ("Artifact: 15.1 MB", "pass", ""),
        ("Total size: 15.25 MiB", "pass", ""),
    ],
)
def test_sizes_in_other_units(make: Make, line: str, status: str, words: str) -> None:
    found = said(make({"train.log": log(sizes=(line,))}), "cap")
    assert found[0] == status and words in found[1]
    exact = log(sizes=(line, "Total submission size int6+lzma: 15900000 bytes"))
    assert said(make({"train.log": exact}, name="b"), "cap")[0] == "pass"


def test_a_rounded_size_of_an_artifact_that_is_here(make: Make) -> None:
    line = "Artifact: 15.99 MB"
    files = {
        "train.log": log(sizes=(line,)),
        "final_model.int6.ptz": b"\x78\xda" + bytes(15_990_000),
    }
    status, text = said(make(files), "cap")
    assert status == "fail" and "OVER by 30,002" in text


@pytest.mark.parametrize(
    "key",
    [
        *("zipped_bytes", "ZIPPED_BYTES", "zippedBytes", "int6_zstd_bytes", "file_size_bytes"),
        *("final_bytes", "compressed_model_size", "totalSizeBytes", "zip-bytes"),
    ],
)
@pytest.mark.parametrize("written", [16_270_123, "16,270,123", "16270123 bytes (15.52 MiB)"])
def test_keys_with_a_size(make: Make, key: str, written: Any) -> None:
    status, text = said(make(**{key: written}), "cap")
    assert status == "fail" and key in text and "over by 270,123" in text


@pytest.mark.parametrize(
    "key", ["unzipped_bytes", "zip_limit_bytes", "zipped_train_bytes", "zipped"]
)
def test_keys_with_another_number(make: Make, key: str) -> None:
    assert said(make(**{key: 16_270_123}), "cap")[0] == "unknown"


def test_mib_that_are_called_mb_are_told(make: Make) -> None:
    line = "final artifact: 16357786 bytes (15.60 MB)"
    status, text = said(make({"a.log": log(sizes=(line,))}), "cap")
    assert status == "fail" and "15.60 MB counts MiB as MB" in text
    line = "final artifact: 16357786 bytes (16.36 MB)"
    assert "MiB" not in said(make({"a.log": log(sizes=(line,))}, name="b"), "cap")[1]


def test_a_total_that_model_and_code_contradict_is_told_without_a_log(make: Make) -> None:
    stale = {"bytes_total": 15_730_000, "model_bytes": 15_700_000}
    status, text = said(make(**stale), "json-total")
    assert status == "warn" and "30,000" in text and "15,740,000" in text
    right = {"bytes_total": 15_740_000, "model_bytes": 15_700_000}
    assert said(make(name="b", **right), "json-total")[0] == "unknown"
    part = {"total_bytes": 15_730_000, "artifact_bytes": 15_700_000}
    assert said(make(name="d", **part), "json-total")[0] == "warn"
    less = {"bytes_total": 15_600_000, "model_bytes": 15_700_000}
    status, text = said(make(name="c", **less), "json-total")
    assert status == "fail" and "less than the claimed model" in text


def test_sizes_of_every_seed_are_a_claimed_total(make: Make) -> None:
    logs = {f"seed{n}.log": log(seed=n, model=15_700_000 + n, bpb=1.2 + n / 1e4) for n in (1, 2)}
    seeds = {str(n): {"artifact_bytes": 15_740_000 + n} for n in (1, 2)}
    status, text = said(make(logs, seed_results=seeds), "json-total")
    assert status == "pass" and "15740002" in text


def test_seeds_may_be_objects(make: Make) -> None:
    logs = {f"seed{n}.log": log(seed=n, bpb=1.2 + n / 1e4) for n in (1, 2, 3)}
    seeds = [{"seed": n, "val_bpb": 1.2 + n / 1e4} for n in (1, 2, 3)]
    folder = make(logs, seeds=seeds)
    assert said(folder, "seeds")[0] == "pass" and said(folder, "json-seeds")[0] == "pass"


@pytest.mark.parametrize("written", [197, "197", "197 bytes"])
def test_few_bytes_of_code_are_bytes(make: Make, written: Any) -> None:
    script = "x = 1\n" + "#" * 190 + "\n"
    files = {"train_gpt.py": script, "a.log": log(code=197)}
    folder = make(files, bytes_code=written, bytes_total=15_700_197)
    assert said(folder, "json-parts")[0] == "pass"
    assert said(folder, "json")[0] == ("warn" if isinstance(written, str) else "pass")


# --- Artifacts ----------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["import torch\nprint(1)\n", '{"vocab": [1, 2]}'])
@pytest.mark.parametrize("name", ["wrapped.xz", "code.ptz", "payload"])
def test_what_unpacks_to_text_is_no_artifact(make: Make, name: str, text: str) -> None:
    submission = read_submission(make({name: lzma.compress(text.encode() * 40), "a.log": log()}))
    assert submission.artifacts == ()
    assert f"{name} unpacks to text; it is no artifact" in submission.notes


@pytest.mark.parametrize(("size", "status"), [(147_000, "fail"), (15_950_000, "warn")])
def test_only_a_file_of_about_its_size_takes_a_runs_place(
    make: Make, size: int, status: str
) -> None:
    files = {"train.log": log(model=16_100_000), "smoke.ptz": b"\x28\xb5\x2f\xfd" + bytes(size)}
    folder = make(files, bytes_total=15_990_004)
    assert said(folder, "cap")[0] == status
    assert said(folder, "json-total")[0] == ("fail" if status == "fail" else "pass")


# --- Code ---------------------------------------------------------------------------------------

BIG = "import torch\n" + "".join(f"x{n} = {n}\n" for n in range(4000))
RUNS_ANOTHER = [
    'exec(open(__file__.replace(".py", "_all.py")).read())\n',
    'import runpy\nrunpy.run_path("train_gpt_all.py", run_name="__main__")\n',
    "import pathlib\nexec(pathlib.Path(__file__).with_name('train_gpt_all.py').read_text())\n",
    "import os\nos.system('python train_gpt_all.py')\n",
    "import subprocess, sys\nsubprocess.run([sys.executable, 'train_gpt_all.py'], check=True)\n",
    "import importlib\nimportlib.import_module('train_gpt_all')\n",
    "from train_gpt_all import *\n",
]


@pytest.mark.parametrize("script", RUNS_ANOTHER)
def test_code_that_another_file_holds_is_counted(make: Make, script: str) -> None:
    model = 15_970_000
    files = {"train_gpt.py": script, "train_gpt_all.py": BIG}
    files["a.log"] = log(model=model, code=len(BIG))
    folder = make(files, bytes_total=model + len(script))
    whole = len(script) + len(BIG)
    assert said(folder, "cap")[0] == "fail"
    assert f"model {model:,} + code {whole:,}" in said(folder, "cap")[1]
    assert f"train_gpt_all.py {len(BIG):,}" in said(folder, "code-files")[1]
    assert said(folder, "json-total")[0] == "fail"


@pytest.mark.parametrize(
    "script",
    [
        '"""See train_gpt_all.py."""\nexec("x = 1")\n' + CODE,
        "print('train_gpt_all.py is older')\nexec('x = 1')\n" + CODE,
        "NAME = 'train_gpt_all.py'\n" + CODE,
    ],
)
def test_a_file_that_is_only_spoken_of_is_not_counted(make: Make, script: str) -> None:
    files = {"train_gpt.py": script, "train_gpt_all.py": BIG, "a.log": log(code=len(script))}
    status, text = said(make(files), "code-files")
    assert status == "pass" and "runs no other file" in text


def test_what_a_packed_script_imports_is_counted(make: Make) -> None:
    script = wrap({"__main__": "import helper\nhelper.run()\n"}).text
    folder = make({"train_gpt.py": script, "helper.py": BIG})
    assert f"helper.py {len(BIG):,}" in said(folder, "code-files")[1]


def test_a_stub_that_runs_nothing_that_is_here_is_not_believed(make: Make) -> None:
    files = {"train_gpt.py": "import mine\nmine.main()\n", "a.log": log(model=15_970_000)}
    assert said(make(files), "cap")[0] == "fail"
    assert said(make(files, name="b"), "code-files")[0] == "warn"


@pytest.mark.parametrize("packed", ["code.xz", "source.bin"])
def test_a_stub_that_unpacks_another_file_is_not_believed(make: Make, packed: str) -> None:
    script = f"import lzma\nexec(lzma.decompress(open({packed!r}, 'rb').read()))\n"
    files = {"train_gpt.py": script, packed: lzma.compress(BIG.encode())}
    folder = make({**files, "a.log": log(model=15_990_000, code=len(BIG))})
    status, text = said(folder, "cap")
    assert status == "fail" and f"{len(BIG):,} bytes of code, of which the folder has" in text
    whole = wrap({"__main__": BIG}).text
    fits = make({"train_gpt.py": whole, "a.log": log(code=len(BIG))}, name="whole")
    assert said(fits, "cap")[0] == "pass"


def test_a_helper_that_no_log_counts_is_a_warning_where_it_is_too_much(make: Make) -> None:
    script = "import lossless\n" + CODE
    files = {"train_gpt.py": script, "lossless.py": BIG}
    folder = make({**files, "a.log": log(model=15_950_000, code=len(script))})
    status, text = said(folder, "cap")
    assert status == "warn" and "without the files that the code runs" in text
    assert said(folder, "code-files")[0] == "warn"


@pytest.mark.parametrize("text", ["", "\n\n", "# nothing yet\n", '"""Docs."""\n'])
def test_an_empty_script_fails(make: Make, text: str) -> None:
    assert said(make({"train_gpt.py": text}), "code-files")[0] == "fail"


def test_code_under_another_name_is_told_by_its_size(make: Make) -> None:
    folder = make({"train_gpt_gdn.py": CODE, "prepare.py": "x = 1\n", "a.log": log()})
    (folder / "train_gpt.py").unlink()
    assert "train_gpt_gdn.py 40,000" in said(folder, "code-files")[1]
    (folder / "a.log").unlink()
    status, text = said(folder, "code-files")
    assert status == "unknown" and "--code" in text and "prepare.py 6" in text
    both = make({"train_gpt_gdn.py": BIG}, name="both", bytes_code=len(BIG))
    assert "train_gpt_gdn.py" in said(both, "code-files")[1]


# --- Sources of a newer Python ------------------------------------------------------------------

NEWER = [
    'import urllib.request\nprint(f"{urllib.request.urlopen(d["a"])}")\n',
    "type Row[T] = list[T]\n",
    "def ttt_step[T](x: T) -> T:\n    return x\n",
    'print(f"""{\n  d["a"]  # why\n}""")\n',
]


@BELOW_3_12
@pytest.mark.parametrize("source", NEWER)
@pytest.mark.parametrize("packed", [False, True])
def test_what_needs_a_newer_python_is_unknown(make: Make, source: str, packed: bool) -> None:
    script = wrap({"__main__": source}).text if packed else source
    folder = make({"train_gpt.py": script})
    for rule in ("network", "pointers"):
        status, text = said(folder, rule)
        newer = f"needs Python 3.{sys.version_info[1] + 1} or newer"
        assert status == "unknown" and newer in text


@pytest.mark.parametrize("source", ["def f(:\n", "print 'x'\n", "x = f'{a'\n", "if x:\nf'{y}'\n"])
def test_what_no_python_parses_is_not_blamed_on_this_one(make: Make, source: str) -> None:
    status, text = said(make({"train_gpt.py": source}), "pointers")
    assert status == "unknown" and "does not parse as Python" in text


def test_a_log_that_says_no_parameters_is_held_against_an_artifact(make: Make) -> None:
    lines = ("model_params:0", "Total submission size: 16100000 bytes")
    folder = make({"train.log": log(sizes=lines)})
    (folder / "final_model.int6.ptz").write_bytes(lzma.compress(bytes(range(256)) * 9))
    assert said(folder, "cap")[0] == "fail"
