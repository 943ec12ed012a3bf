"""Data opened, models paired, and what one process refuses refused by all."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from packer.eval.batches import Setting, ignore
from packer.eval.errors import EvalError, ScoreError
from torch import Tensor, nn

from packer import api, evaluation
from packer.checkpoint.any_weights import NamedWeights, load_weights
from packer.errors import CheckpointError, PackerError
from packer.evaluation import Data, Evaluated, Subject
from packer.reports import score_tables

VOCAB, LENGTH = 11, 5000


class Table(nn.Module):
    """Logits from the last token alone."""

    def __init__(self, seed: int, vocab: int = VOCAB) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.table = nn.Parameter(torch.randn(vocab, vocab, generator=generator))

    def forward(self, tokens: Tensor) -> Tensor:
        return self.table[tokens]


class OnlyLosses(Table):
    def token_nats(self, tokens: Tensor, targets: Tensor, count: int) -> Tensor:
        logs = torch.log_softmax(self.table[tokens], dim=-1)
        nats = -logs.gather(2, targets.clamp(min=0)[..., None])[..., 0]
        return nats.masked_fill(targets < 0, 0)[:, -count:]


def write_shard(path: Path, tokens: Sequence[int]) -> Path:
    header = np.zeros(256, dtype="<i4")
    header[:3] = 20240520, 1, len(tokens)
    path.write_bytes(header.tobytes() + np.array(tokens, dtype="<u2").tobytes())
    return path


@pytest.fixture
def tokens() -> list[int]:
    return list(map(int, np.random.default_rng(0).integers(0, VOCAB, LENGTH)))


@pytest.fixture
def data(tmp_path: Path, tokens: list[int]) -> Data:
    shard = write_shard(tmp_path / "data.bin", tokens)
    (tmp_path / "table.json").write_text(json.dumps({"bytes": list(range(VOCAB))}))
    return evaluation.open_data([shard], bytes_table=tmp_path / "table.json")


def run(models: Sequence[Any], data: Data, reference: int = 0) -> tuple[Evaluated, ...]:
    subjects = [Subject(f"m{i}", "checkpoint", model, 10 + i) for i, model in enumerate(models)]
    setting = Setting(64, 16)
    return evaluation.evaluate(subjects, data, setting, reference, progress=ignore, notice=ignore)


def test_shards_by_path_and_glob(tmp_path: Path, tokens: list[int]) -> None:
    for index in range(3):
        write_shard(tmp_path / f"p{index}.bin", tokens[index::3])
        write_shard(tmp_path / f"b{index}.bin", [index] * len(tokens[index::3]))
    data = evaluation.open_data([tmp_path / "p*.bin"], bytes_sidecar=[tmp_path / "b*.bin"])
    np.testing.assert_array_equal(data.stream[:], [t for i in range(3) for t in tokens[i::3]])
    assert data.counter.target_bytes(data.stream[:], 0)[-1] == 2
    assert (data.vocab_size, data.text_bytes, data.tokenizer) == (None, None, None)
    turned = [tmp_path / "p2.bin", tmp_path / "p[01].bin"]
    again = evaluation.open_data(turned, bytes_sidecar=[tmp_path / "b*.bin"])
    assert again.stream[:1][0] == tokens[2]


def test_a_name_with_brackets_is_a_name(tmp_path: Path, tokens: list[int]) -> None:
    write_shard(tmp_path / "a[1].bin", tokens)
    write_shard(tmp_path / "a1.bin", tokens[:9])
    write_shard(tmp_path / "bytes.bin", [1] * LENGTH)
    data = evaluation.open_data([tmp_path / "a[1].bin"], bytes_sidecar=[tmp_path / "bytes.bin"])
    assert len(data.stream) == LENGTH


def test_a_pair_is_symmetric_where_it_should_be(data: Data) -> None:
    models = [Table(0), Table(1)]
    first, second = run(models, data)
    turned, other = run(models, data, reference=1)
    assert first.difference is None and first.divergence is None
    assert second.difference is not None and turned.difference is not None
    assert turned.difference.delta_bpb == pytest.approx(-second.difference.delta_bpb)
    assert other.score.nats == pytest.approx(second.score.nats)
    assert second.divergence is not None and turned.divergence is not None
    assert second.divergence.top1_agreement == turned.divergence.top1_agreement
    assert second.divergence.kl_bits_per_byte != turned.divergence.kl_bits_per_byte


def test_order_is_kept_whatever_the_reference(data: Data) -> None:
    models = [Table(seed) for seed in range(3)]
    alone = [run([model], data)[0].score.nats for model in models]
    for reference in range(3):
        found = run(models, data, reference)
        assert [one.score.nats for one in found] == pytest.approx(alone)
        assert [one.difference is None for one in found] == [i == reference for i in range(3)]


def test_losses_alone_are_paired_without_divergence(data: Data) -> None:
    full, silent = run([Table(0), OnlyLosses(1)], data)
    expected = run([Table(0), Table(1)], data)[1]
    assert full.divergence is None and silent.divergence is None
    assert silent.difference is not None and expected.difference is not None
    assert silent.difference.delta_bpb == pytest.approx(expected.difference.delta_bpb)


def test_a_model_of_another_vocabulary_is_named(data: Data, tmp_path: Path) -> None:
    with pytest.raises(ScoreError, match=r"m1: the model has a vocabulary of 9 and the tokenizer"):
        run([Table(0), Table(0, vocab=9)], data)
    write_shard(tmp_path / "ones.bin", [1] * LENGTH)
    unsized = evaluation.open_data([tmp_path / "data.bin"], bytes_sidecar=[tmp_path / "ones.bin"])
    with pytest.raises(ScoreError, match=r"m0: the model has a vocabulary of 10 and .* token 10"):
        run([Table(0, vocab=10)], unsized)
    assert run([Table(0)], unsized)[0].score.bytes == LENGTH - 1


def test_what_one_rank_refuses_all_refuse(data: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise the ranks that succeed wait for one that has ended."""

    def gathered(part: Any, combine: Callable[[list[Any]], Any]) -> Any:
        refused = [ScoreError("target 7 on rank 1")]
        return combine([part, refused]) if isinstance(part, list) else combine([part])

    monkeypatch.setattr(evaluation, "gathered", gathered)
    with pytest.raises(EvalError, match="target 7 on rank 1"):
        run([Table(0)], data)


def test_nothing_scored_is_nothing_refused(tmp_path: Path) -> None:
    one = write_shard(tmp_path / "one.bin", [1])
    with pytest.raises(PackerError, match=r"one\.bin: there are 1 tokens"):
        evaluation.open_data([one], bytes_sidecar=[one])


def test_a_table_of_scores(data: Data) -> None:
    columns, rows = score_tables.score_rows(run([Table(0)], data))
    assert "difference" not in " ".join(columns)
    assert len(columns) == len(rows[0])
    columns, rows = score_tables.score_rows(run([Table(0), Table(1)], data))
    assert {len(row) for row in rows} == {len(columns)}
    assert (rows[0][5], rows[1][5][0]) == ("-", "+" if float(rows[1][5]) >= 0 else "-")


def test_a_narrow_terminal_gets_two_tables(
    data: Data, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from rich.console import Console

    found = run([Table(0), Table(1)], data)
    lines = {}
    for width in (60, 200):
        monkeypatch.setattr(
            score_tables.tables, "console", lambda width=width: Console(width=width)
        )
        score_tables.print_scores(found, data, markdown=False)
        lines[width] = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("m1") for line in lines[60]) == 2
    assert sum(line.startswith("m1") for line in lines[200]) == 1
    assert not any("…" in line for line in lines[60])


def test_weights_of_a_checkpoint_and_an_artifact(made: Path) -> None:
    checkpoint, artifact = (load_weights(made / name) for name in ("model.pt", "model.pack"))
    assert (checkpoint.kind, artifact.kind) == ("checkpoint", "artifact")
    assert set(checkpoint.weights) == set(artifact.weights)
    for one in (checkpoint, artifact):
        assert one.weights["lm_head.weight"] is one.weights["tok_emb.weight"]
        assert one.config is None
    assert artifact.size_bytes == (made / "model.pack").stat().st_size
    assert all(
        torch.equal(w, artifact.weights[n]) for n, w in api.unpack(made / "model.pack").items()
    )


@pytest.mark.parametrize(
    ("text", "words"), [("{", "not JSON"), ("3", "no object"), ("[" * 100_000, "not JSON")]
)
def test_a_carried_configuration_is_checked(text: str, words: str) -> None:
    with pytest.raises(CheckpointError, match=words):
        _ = NamedWeights("m.pack", "artifact", {}, {"config": text}, 0).config
    good = NamedWeights("m.pack", "artifact", {}, {"config": '{"a": 1}'}, 0)
    assert good.config == {"a": 1}
