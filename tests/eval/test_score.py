"""The score: against a plain loop, against known numbers, in batches, parts and trouble."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from packer.eval.batches import Setting, in_batches
from packer.eval.blocks import BLOCK, BlockSums, ratio_stderr
from packer.eval.errors import ScoreError
from packer.eval.ranks import gathered
from packer.eval.score import combine, nats_per_token, score
from packer.eval.text import encode_files
from packer.eval.token_bytes import TokenBytes, from_processor, load_sentencepiece
from packer.train.config import config_from, read_config
from packer.train.model import GPT

Make = Callable[..., torch.nn.Module]


def by_loop(
    model: torch.nn.Module, tokens: NDArray[np.int64], window: int, stride: int
) -> tuple[list[float], int]:
    """Nats of every target, one window at a time; and how many windows it took."""
    nats: list[float] = []
    windows = 0
    for start in range(0, len(tokens) - 1, stride):
        piece = torch.from_numpy(tokens[start : start + window + 1])
        with torch.inference_mode():
            logs = torch.log_softmax(model(piece[None, :-1])[0].double(), dim=-1)
        fresh = start + len(piece) - 1 - len(nats)
        losses = -logs[torch.arange(len(piece) - 1), piece[1:]]
        nats += losses[len(losses) - fresh :].tolist()
        windows += 1
        if len(nats) == len(tokens) - 1:
            break
    return nats, windows


@settings(deadline=None, max_examples=40)
@given(
    st.integers(1, 12).flatmap(lambda w: st.tuples(st.just(w), st.integers(1, w))),
    st.integers(0, 40),
    st.integers(1, 9),
)
def test_sums_are_those_of_a_plain_loop(
    tiny: Make,
    stream: NDArray[np.int64],
    table: TokenBytes,
    sizes: tuple[int, int],
    more: int,
    batch: int,
) -> None:
    window, stride = sizes
    tokens, model = stream[: window + more + 1], tiny(1)
    expected, _ = by_loop(model, tokens, window, stride)
    setting = Setting(window, stride, batch=batch)
    result = score(model, tokens, table, setting)
    assert result.nats == pytest.approx(math.fsum(expected), rel=1e-6)
    assert result.tokens == len(tokens) - 1
    assert result.bytes == table.count(tokens[1:], tokens[:-1]).sum()
    assert result.unknown_tokens == (tokens[1:] == 1).sum()
    np.testing.assert_allclose(nats_per_token(model, tokens, setting), expected, rtol=1e-4)


def test_a_limit_scores_the_first_targets(
    tiny: Make, stream: NDArray[np.int64], table: TokenBytes
) -> None:
    model = tiny(1)
    everything = nats_per_token(model, stream, Setting(32, 8))
    limited = score(model, stream, table, Setting(32, 8, tokens=1001))
    assert limited.tokens == 1001
    assert limited.nats == pytest.approx(float(everything[:1001].astype(float).sum()), rel=1e-6)


def test_the_numbers_and_their_units(
    tiny: Make, stream: NDArray[np.int64], table: TokenBytes
) -> None:
    result = score(tiny(1), stream, table, Setting(64, 32))
    numbers = json.loads(json.dumps(result.as_dict()))
    assert numbers["bits_per_byte"] == pytest.approx(
        numbers["nats_per_token"] / math.log(2) / numbers["bytes_per_token"]
    )
    assert numbers["tokens"] == 4999
    assert numbers["stderr_bits_per_byte"] > 0
    assert (numbers["window"], numbers["stride"], numbers["notes"]) == (64, 32, [])
    assert score(tiny(1), stream[:100], table, Setting(64)).stderr_bits_per_byte is None


def test_standard_error_is_that_of_repeated_samples() -> None:
    generator = np.random.default_rng(0)
    ratios, errors = [], []
    for _ in range(400):
        weights = generator.uniform(1, 3, 50)
        values = weights * 1.7 + generator.normal(0, 0.3, 50)
        ratios.append(values.sum() / weights.sum())
        errors.append(ratio_stderr(values, weights))
    assert np.mean(errors) == pytest.approx(np.std(ratios), rel=0.1)  # type: ignore[arg-type]


def test_blocks_add_up_whatever_the_pieces() -> None:
    values = np.random.default_rng(0).uniform(size=3 * BLOCK + 17)
    sums = BlockSums(len(values))
    for start in range(0, len(values), 1000):
        sums.add(start, values[start : start + 1000])
    expected = [values[i : i + BLOCK].sum() for i in range(0, len(values), BLOCK)]
    np.testing.assert_allclose(sums.sums, expected)


@pytest.mark.parametrize("world_size", [1, 2, 3, 50])
def test_parts_of_all_ranks_make_the_score(
    tiny: Make, stream: NDArray[np.int64], table: TokenBytes, world_size: int
) -> None:
    model = tiny(1)
    alone = score(model, stream, table, Setting(64, 16, batch=4))
    parts = [
        score(model, stream, table, Setting(64, 16, batch=4, rank=rank, world_size=world_size))
        for rank in range(world_size)
    ]
    whole = combine(parts)
    assert whole.nats == pytest.approx(alone.nats, rel=1e-12)
    assert (whole.tokens, whole.bytes, whole.unknown_tokens) == (
        alone.tokens,
        alone.bytes,
        alone.unknown_tokens,
    )
    assert whole.stderr_bits_per_byte == pytest.approx(alone.stderr_bits_per_byte)


def test_parts_of_different_settings_do_not_combine(
    tiny: Make, stream: NDArray[np.int64], table: TokenBytes
) -> None:
    parts = [score(tiny(1), stream, table, Setting(64, stride)) for stride in (16, 32)]
    with pytest.raises(ScoreError, match="same data, window and stride"):
        combine(parts)
    with pytest.raises(ScoreError):
        combine([])


RANK = """
import sys
import numpy as np, torch, torch.distributed
from packer.eval.batches import Setting
from packer.eval.ranks import gathered
from packer.eval.score import combine, score
from packer.eval.token_bytes import TokenBytes

rank, port = int(sys.argv[1]), sys.argv[2]
torch.set_num_threads(1)
torch.distributed.init_process_group(
    "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2
)
weights = torch.randn(11, 11, generator=torch.Generator().manual_seed(0))
flags = np.zeros(11, dtype=bool)
counter = TokenBytes(np.ones(11, dtype=np.int64), flags, flags, flags)
tokens = np.random.default_rng(0).integers(0, 11, 4000)
part = Setting(32, 8, rank=rank, world_size=2)
whole = gathered(score(lambda x: weights[x], tokens, counter, part), combine)
alone = score(lambda x: weights[x], tokens, counter, Setting(32, 8))
assert whole.tokens == alone.tokens == 3999 and whole.bytes == alone.bytes
assert abs(whole.nats / alone.nats - 1) < 1e-9
torch.distributed.destroy_process_group()
"""


def test_two_processes(free_port: int, start_process: Callable[..., subprocess.Popen[str]]) -> None:
    ranks = [start_process([sys.executable, "-c", RANK, rank, free_port]) for rank in range(2)]
    failures = [process.communicate(timeout=120)[1] for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], failures


def test_one_process_gathers_itself(
    tiny: Make, stream: NDArray[np.int64], table: TokenBytes
) -> None:
    part = score(tiny(1), stream, table, Setting(64))
    assert gathered(part, combine).nats == part.nats


def test_progress_reaches_the_end(tiny: Make, stream: NDArray[np.int64], table: TokenBytes) -> None:
    seen: list[tuple[int, int]] = []
    setting = Setting(64, 16, batch=8, rank=1, world_size=2)
    result = score(tiny(1), stream, table, setting, progress=lambda *at: seen.append(at))
    assert seen == sorted(seen) and seen[-1] == (result.tokens, result.tokens)


class Scarce(torch.nn.Module):
    """Runs out of memory above some batch size, in the words of one allocator."""

    def __init__(self, model: torch.nn.Module, limit: int, words: str) -> None:
        super().__init__()
        self.model, self.limit, self.words = model, limit, words

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        if len(tokens) > self.limit:
            raise RuntimeError(self.words)
        out: torch.Tensor = self.model(tokens)
        return out


CPU_WORDS = "[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried 99 bytes"


def test_out_of_memory_halves_the_batch(
    tiny: Make, stream: NDArray[np.int64], table: TokenBytes
) -> None:
    said: list[str] = []
    model = Scarce(tiny(1), 3, CPU_WORDS)
    setting = Setting(64, 16, batch=16)
    result = score(model, stream, table, setting, notice=said.append)
    assert [text.partition(" windows")[0][-1] for text in said] == ["8", "4", "2"], said
    assert result.notes == tuple(said)
    plain = score(tiny(1), stream, table, setting)
    assert result.nats == pytest.approx(plain.nats, rel=1e-6)


def test_one_window_too_many_is_refused(
    tiny: Make, stream: NDArray[np.int64], table: TokenBytes
) -> None:
    with pytest.raises(ScoreError, match="single window"):
        score(Scarce(tiny(1), 0, CPU_WORDS), stream, table, Setting(64))
    with pytest.raises(RuntimeError, match="something else"):
        score(Scarce(tiny(1), 0, "something else"), stream, table, Setting(64))


@pytest.mark.parametrize("workers", [1, 3])
def test_cuda_out_of_memory_is_known(workers: int) -> None:
    def run(first: int, stop: int) -> int:
        if stop - first > 2:
            raise torch.cuda.OutOfMemoryError("CUDA out of memory")
        return stop - first

    said: list[str] = []
    parts = list(in_batches([(0, 5), (5, 9), (9, 10)], run, said.append, workers))
    covered = sorted((first, stop) for first, stop, size in parts if stop - first == size)
    assert covered == [(0, 2), (2, 4), (4, 5), (5, 7), (7, 9), (9, 10)]
    assert len(said) == 1


def test_batches_side_by_side_give_the_same(
    tiny: Make, stream: NDArray[np.int64], table: TokenBytes
) -> None:
    torch.set_num_threads(2)
    try:
        one, three = (
            score(tiny(1), stream, table, Setting(64, 16, batch=4, workers=n)) for n in (1, 3)
        )
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert three.nats == pytest.approx(one.nats, rel=1e-9)
    assert three.bytes == one.bytes


def test_trouble_in_a_worker_comes_out(
    tiny: Make, stream: NDArray[np.int64], table: TokenBytes
) -> None:
    with pytest.raises(RuntimeError, match="something else"):
        score(Scarce(tiny(1), 0, "something else"), stream, table, Setting(64, workers=2))


def test_training_mode_is_put_back(
    tiny: Make, stream: NDArray[np.int64], table: TokenBytes
) -> None:
    dropout = torch.nn.Sequential(tiny(1), torch.nn.Dropout(0.5)).train()
    plain = score(tiny(1), stream, table, Setting(64))
    assert score(dropout, stream, table, Setting(64)).nats == plain.nats
    assert dropout.training and dropout[1].training
    assert not torch.is_inference_mode_enabled()


def test_autocast_computes_in_bfloat16(stream: NDArray[np.int64], table: TokenBytes) -> None:
    linear = torch.nn.Linear(11, 11)
    seen = []

    class Model(torch.nn.Module):
        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            out: torch.Tensor = linear(torch.nn.functional.one_hot(tokens, 11).float())
            seen.append(out.dtype)
            return out

    half, full = (score(Model(), stream, table, Setting(64, autocast=a)) for a in (True, False))
    assert set(seen) == {torch.bfloat16, torch.float32}
    assert half.nats == pytest.approx(full.nats, rel=1e-2)


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        (Setting(9000), "longer than the 4,999 targets"),
        (Setting(64, 65), "stride = 65"),
        (Setting(64, tokens=0), "tokens = 0"),
        (Setting(64, batch=0), "batch = 0"),
        (Setting(64, rank=2, world_size=2), "rank 2 is not one of 2"),
    ],
)
def test_settings_that_do_not_fit(
    tiny: Make, stream: NDArray[np.int64], table: TokenBytes, setting: Setting, words: str
) -> None:
    with pytest.raises(ScoreError, match=words):
        score(tiny(1), stream, table, setting)


def test_models_that_do_not_fit(tiny: Make, stream: NDArray[np.int64], table: TokenBytes) -> None:
    for vocab in (12, 20, 128):  # rounded up for speed, or with ids added
        assert score(tiny(1, vocab=vocab), stream, table, Setting(64)).tokens == 4999
    with pytest.raises(ScoreError, match=r"vocabulary of 9 and .* one of 11.*token 10"):
        score(tiny(1, vocab=9), np.array([1, 2, 3, 10]), table, Setting(3))
    few = np.array([1, 2, 3, 8] * 9)  # none that the model lacks
    assert score(tiny(1, vocab=9), few, table, Setting(4)).tokens == 35
    with pytest.raises(ScoreError, match="token 11 is outside the vocabulary of 11"):
        score(tiny(1), np.full(99, 11), table, Setting(64))

    def flat(tokens: torch.Tensor) -> torch.Tensor:
        return torch.zeros(tokens.numel(), 11)

    with pytest.raises(ScoreError, match=r"into \(1024, 11\), not into logits"):
        score(flat, stream, table, Setting(64))

    def broken(tokens: torch.Tensor) -> torch.Tensor:
        return torch.full((*tokens.shape, 11), math.nan)

    with pytest.raises(ScoreError, match="target 0 is not finite"):
        score(broken, stream, table, Setting(64))


def test_no_bytes_at_all(tiny: Make, table: TokenBytes) -> None:
    result = score(tiny(1), np.zeros(100, dtype=np.int64), table, Setting(64))
    with pytest.raises(ScoreError, match="stand for no bytes"):
        _ = result.bits_per_byte


@pytest.fixture(scope="module")
def reference(shared: Path) -> tuple[Any, Any, Any]:
    """The reference model, its text as tokens, and its bytes table."""
    folder = shared / "checkpoints"
    model = GPT(config_from(read_config(folder / "ref6x256.config.json")))
    model.load_state_dict(torch.load(folder / "ref6x256.pt", weights_only=True), strict=True)
    processor = load_sentencepiece(shared / "tokenizers" / "fineweb_1024_bpe.model")
    text = encode_files([shared / "corpus" / "valid" / "sherlock.txt"], processor)
    return model, text.tokens, from_processor(processor)


def test_reference_back_to_back(reference: tuple[Any, Any, Any]) -> None:
    result = score(*reference, Setting(256, tokens=400 * 256))
    assert result.bits_per_byte == pytest.approx(1.7156310, abs=1e-5)
    assert result.nats == pytest.approx(329_652.723, abs=0.1)
    assert (result.tokens, result.bytes) == (102_400, 277_209)


def test_reference_sliding(reference: tuple[Any, Any, Any]) -> None:
    result = score(*reference, Setting(256, 64, tokens=25_600))
    assert result.bits_per_byte == pytest.approx(1.7221628, abs=1e-5)
    assert result.nats == pytest.approx(81_325.233, abs=0.05)
    assert (result.tokens, result.bytes) == (25_600, 68_128)
