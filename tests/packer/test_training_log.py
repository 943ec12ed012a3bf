"""Reading training logs: every documented line, and the traps between them."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from packer.submission.training_log import parse_log, parse_logs

RULER = "=" * 100
DUMP = f'''import torch
# Total submission size int8+zlib: 99999999 bytes
def report(code, model):
    """
Total submission size int6+zstd: 88888888 bytes
    """
    log0(f"Total submission size int8+zlib: {{code + model}} bytes")
{RULER}
'''

BASELINE = f"""{DUMP}Running Python 3.12
{RULER}
val_loader:shards pattern=./data/fineweb_val_*.bin tokens:62021632
train_loader:dataset:fineweb10B_sp1024 train_shards:80
model_params:17059912
seed:1337
step:0/20000 val_loss:6.9357 val_bpb:4.1077 train_time:0ms step_avg:0.01ms
step:13780/20000 val_loss:2.0606 val_bpb:1.2172 train_time:600038ms step_avg:43.54ms
stopping_early: wallclock_cap train_time:600038ms step:13780/20000
peak memory allocated: 10184 MiB reserved: 10200 MiB
Serialized model: 67224983 bytes
Code size: 47642 bytes
Total submission size: 67272625 bytes
Serialized model int8+zlib: 15815847 bytes (payload:17178912 raw_torch:17224025 payload_ratio:3.91x)
Total submission size int8+zlib: 15863489 bytes
final_int8_zlib_roundtrip val_loss:2.0727 val_bpb:1.2244 eval_time:1401ms
final_int8_zlib_roundtrip_exact val_loss:2.07269931 val_bpb:1.22436570
"""


def test_a_baseline_log() -> None:
    log = parse_log(BASELINE, "train.log")
    assert (log.model_bytes, log.code_bytes, log.total_bytes) == (15_815_847, 47_642, 15_863_489)
    assert log.checkpoint_bytes == 67_224_983
    assert log.totals == (("int8+zlib", 15_863_489),)
    assert (log.seed, log.parameters, log.vocab_size) == (1337, 17_059_912, 1024)
    assert (log.val_tokens, log.train_shards) == (62_021_632, 80)
    assert (log.step, log.steps, log.train_seconds) == (13_780, 20_000, pytest.approx(600.038))
    assert not log.calibrated and log.fallback is None
    names = [score.name for score in log.quantized_scores]
    assert names == ["final_int8_zlib_roundtrip", "final_int8_zlib_roundtrip_exact"]
    assert log.quantized_scores[-1].bpb == 1.22436570
    assert log.quantized_scores[0].seconds == pytest.approx(1.401)
    assert [score.quantized for score in log.scores] == [False, False, True, True]


def test_the_dump_of_the_source_is_not_read() -> None:
    assert parse_log(DUMP, "x.log").totals == ()
    assert not parse_log(DUMP, "x.log").has_facts


def test_an_april_log() -> None:
    log = parse_log(
        "[rank0]: seed: 314\nmodel_params:35944536\nval_tokens: 40540160\n"
        "  tokenizer_path: ./data/tokenizers/fineweb_8192_bpe.model\n"
        "4550/20000 val_loss: 2.8137 val_bpb: 1.0877 train_time: 588000ms\n"
        "stopping_early: wallclock_cap train_time:588032ms step:4550/20000\n"
        "GPTQ:collecting Hessians from calibration data...\n"
        "GPTQ:collected 67 Hessians in 12.6s\n"
        "diagnostic pre-quantization post-ema val_loss:2.81000000 val_bpb:1.08775000\n"
        "Serialized model: 135431355 bytes\nCode size (uncompressed): 120000 bytes\n"
        "Code size (compressed): 16594 bytes\nSerialized model quantized+brotli: 15976325 bytes\n"
        "Total submission size quantized+brotli: 15992919 bytes\n"
        "diagnostic quantized val_loss:2.84000000 val_bpb:1.09947000 eval_time:9000ms\n"
        "quantized_sliding_window val_loss:2.80000000 val_bpb:1.08300000 eval_time:90000ms\n"
        "ttt_sliding:done val_loss=2.790000 val_bpb=1.080000 elapsed=365.2s\n",
        "train_seed999.log",
    )
    assert (log.model_bytes, log.total_bytes, log.labels[-1]) == (
        15_976_325,
        15_992_919,
        "quantized+brotli",
    )
    assert (log.code_bytes, log.raw_code_bytes) == (16_594, 120_000)
    assert (log.seed, log.vocab_size, log.val_tokens) == (314, 8192, 40_540_160)
    assert log.calibrated and log.calibration_seconds == pytest.approx(12.6)
    assert [score.name for score in log.quantized_scores] == [
        "diagnostic quantized",
        "quantized_sliding_window",
        "ttt_sliding:done",
    ]
    assert log.quantized_scores[-1].seconds == pytest.approx(365.2)


@pytest.mark.parametrize(
    ("text", "total", "model"),
    [
        # A leftover int8 path prints a second, bigger total.
        (
            "Serialized model int6+lzma: 15800000 bytes\nCode size: 58571 bytes\n"
            "Total submission size int6+lzma: 15858571 bytes\n"
            "Serialized model int8+zlib: 24801031 bytes\n"
            "Total submission size int8+zlib: 24859602 bytes\n",
            15_858_571,
            15_800_000,
        ),
        # Pruning prints a total after every attempt: the last counts.
        (
            "Total submission size int6+zstd: 16200000 bytes\n"
            "Total submission size int6+zstd: 16050000 bytes\n"
            "Total submission size int6+zstd: 15990000 bytes\n",
            15_990_000,
            None,
        ),
        ("budget:15992753/16000000 (15.99MB/16.00MB) FITS", 15_992_753, None),
        ("model:15900000 code:90000 total:15990000 (15.99 MB)", 15_990_000, 15_900_000),
        # Without a label it is the checkpoint's, unless it is the sum of labelled parts.
        (
            "Serialized model: 9 bytes\nCode size: 1 bytes\nTotal submission size: 10 bytes",
            None,
            None,
        ),
        (
            "Serialized model int6+zstd: 7 bytes\nCode size: 2 bytes\n"
            "Total submission size: 9 bytes\n",
            9,
            7,
        ),
        ("Serialized model int6+zstd: 15,900,000 bytes", None, 15_900_000),
        ("the Total submission size int6+zstd: 15990000 bytes in a sentence", None, None),
        ("Total submission size int6+zstd: {total} bytes", None, None),
    ],
)
def test_which_size_counts(text: str, total: int | None, model: int | None) -> None:
    log = parse_log(text, "a.log")
    assert (log.total_bytes, log.model_bytes) == (total, model)


@pytest.mark.parametrize(
    ("text", "trained", "calibration", "own_text"),
    [
        (
            "gptq:budget_check train:586012ms + gptq:13000ms = 599012ms (budget:600000ms)",
            586.012,
            13.0,
            False,
        ),
        ("step:9/9 train_time:9.8m", 588.0, None, False),
        ("gptq:reserving 14s for calibration", None, None, False),
        ("AR self-gen calibration: generated 64 sequences in 186.2s", None, 186.2, True),
        ("gptq: 66 Hessians in 3.5s, quantized in 10.2s", None, 3.5, False),
        ("1/8 ranks ready\nstep:3/9 train_loss:2 train_time:5ms", 0.005, None, False),
        ("gptq: calibrated on 256 batches in 94200ms", None, 94.2, False),
    ],
)
def test_times(text: str, trained: float | None, calibration: float | None, own_text: bool) -> None:
    log = parse_log(text, "a.log")
    assert log.train_seconds == (None if trained is None else pytest.approx(trained))
    assert log.calibration_seconds == (None if calibration is None else pytest.approx(calibration))
    assert log.own_text is own_text


@pytest.mark.parametrize(
    ("name", "seed"),
    [("train_seed42.log", 42), ("log_s1337.txt", 1337), ("a/seed_7.log", 7), ("train.log", None)],
)
def test_the_seed_may_stand_in_the_name(name: str, seed: int | None) -> None:
    assert parse_log("step:1/2 train_time:5ms", name).seed == seed


def test_the_whole_evaluation_and_other_seeds() -> None:
    log = parse_log("data_seed: 5\ntotal_eval_time: 543.2s\nseed: 7\n3/9 train_loss: 2", "a.log")
    assert (log.eval_seconds, log.seed, log.step) == (pytest.approx(543.2), 7, 3)


def test_a_missing_compressor_is_noticed() -> None:
    line = "warning: zstandard not installed, falling back to zlib"
    assert parse_log(f"a\n{line}\n", "a.log").fallback == line
    assert parse_log("compressor: zstd level 22", "a.log").fallback is None


@settings(deadline=None)
@given(st.text(max_size=400))
def test_any_text_is_read(text: str) -> None:
    assert parse_log(text, "any.log").name == "any.log"


@settings(deadline=None)
@given(st.lists(st.sampled_from(BASELINE.splitlines()), max_size=30))
def test_any_lines_in_any_order_are_read(lines: list[str]) -> None:
    log = parse_log("\n".join(lines), "any.log")
    assert log.total_bytes in (None, 15_863_489, 88_888_888)


def run_of(seed: int, *, steps: int = 7000, header: bool = True, source: str = "") -> str:
    """One run as it is written behind others; the last step is the same in all."""
    start = f"{source}seed:{seed}\nworld_size:8\nmodel_params:17059912\n" if header else ""
    return (
        f"{start}step:0/20000 val_loss:6.9357 val_bpb:4.1077 train_time:0ms\n"
        f"step:{steps}/20000 val_loss:2.06{seed} val_bpb:1.21{seed} train_time:59{seed}000ms\n"
        "Serialized model: 67224983 bytes\nCode size: 47642 bytes\n"
        f"Serialized model int6+zstd: 1581584{seed} bytes\n"
        f"Total submission size int6+zstd: 1586348{seed} bytes\n"
        f"final_int6_roundtrip_exact val_loss:2.0726993{seed} val_bpb:1.2243657{seed}\n"
    )


SOURCE = f"import torch\ntorch.manual_seed(0)\ngenerator = new(seed=77)\nseed:99\n{'=' * 100}\n"


@pytest.mark.parametrize(
    "text",
    [
        run_of(1) + run_of(2) + run_of(3),
        run_of(1) + run_of(2, header=False) + run_of(3, header=False),
        "".join(run_of(n, source=SOURCE) for n in (1, 2, 3)),
        "".join(run_of(n).replace("val_loss:6.9357", "train_loss:6.9") for n in (1, 2, 3)),
        "\n\n".join("=" * 80 + "\n" + run_of(n) for n in (1, 2, 3)),
        "".join(run_of(n).replace("\nstep:0/", "\n0/") for n in (1, 2, 3)),
        "".join(f"seed:{n}\n" + "\n".join(run_of(n).splitlines()[5:]) + "\n" for n in (1, 2, 3)),
    ],
)
def test_runs_that_follow_each_other_in_a_file_are_told_apart(text: str) -> None:
    logs, count, _ = parse_logs(text, "all.log", 200)
    assert count == 3 and [log.name for log in logs] == [f"all.log (run {n})" for n in (1, 2, 3)]
    assert [log.total_bytes for log in logs] == [15863481, 15863482, 15863483]
    if "seed:2" in text:
        assert [log.seed for log in logs] == [1, 2, 3]
    assert [log.scores[-1].bpb for log in logs] == [1.22436571, 1.22436572, 1.22436573]
    assert len(parse_logs(text, "all.log", 2)[0]) == 2


@pytest.mark.parametrize(
    "text",
    [
        run_of(1),
        BASELINE,
        # Test-time training after the score, and a table of what was found.
        run_of(1) + "step:0/50 val_loss:2.01 val_bpb:1.2\nfinal_ttt val_loss:2.0 val_bpb:1.19\n",
        run_of(1) + "seed:1\nfinal_ttt_exact val_loss:2.0 val_bpb:1.19\nttt seed=5\n",
        # An export in the middle, and a run that was begun again.
        "seed:1\nstep:9/99 val_loss:2.1 val_bpb:1.3\nSerialized model int6: 15 bytes\n"
        "step:19/99 val_loss:2.1 val_bpb:1.3\nSerialized model int6: 15 bytes\n",
        "seed:1\nstep:9/99 val_loss:2.1 val_bpb:1.3\nseed:1\n" + run_of(1),
    ],
)
def test_what_is_one_run_stays_one(text: str) -> None:
    logs, count, _ = parse_logs(text, "train_seed1.log", 200)
    assert count == 1 and [log.name for log in logs] == ["train_seed1.log"]


def test_the_name_of_a_file_with_several_runs_is_no_seed() -> None:
    logs, _, _ = parse_logs(run_of(1) + run_of(2, header=False), "train_seed9.log", 200)
    assert [(log.seed, log.named_seed) for log in logs] == [(1, None), (None, None)]


@pytest.mark.parametrize(
    ("line", "gpu"),
    [
        (
            "|   0  NVIDIA H100 80GB HBM3          On  |   00000000:19:00.0 Off |",
            "NVIDIA H100 80GB",
        ),
        ("|   1  NVIDIA GeForce RTX 3090        Off |   00000000:19:00.0 Off |", "RTX 3090"),
        ("device_name: NVIDIA A100-SXM4-80GB", "NVIDIA A100-SXM4-80GB"),
        ("device:cuda:0", None),
        ("gpu memory: 10184 MiB", None),
    ],
)
def test_the_gpu_that_a_log_names(line: str, gpu: str | None) -> None:
    found = parse_log(f"{line}\nstep:1/2 train_time:5ms", "a.log").gpu
    assert found == gpu or (gpu is not None and found is not None and gpu in found)


def test_of_a_very_long_log_the_middle_is_left_out() -> None:
    noise = "".join(f"note {number}\n" for number in range(40_000))
    logs, count, left = parse_logs("seed:4\n" + noise + run_of(1, header=False), "a.log", 200)
    assert count == 1 and 10_000 < left < 10_020
    assert (logs[0].seed, logs[0].total_bytes) == (4, 15863481)
    assert parse_logs(run_of(1) + "the same line\n" * 10**5, "a.log", 200)[2] == 0
