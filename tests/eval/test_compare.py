"""Two models on the same tokens: differences by hand, divergence by definition."""

from __future__ import annotations

import json
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from packer.eval.batches import Setting
from packer.eval.compare import combine, compare, divergence
from packer.eval.errors import ScoreError
from packer.eval.score import score
from packer.eval.token_bytes import TokenBytes

Make = Callable[..., torch.nn.Module]


def test_divergence_by_definition(tiny: Make, stream: NDArray[np.int64], table: TokenBytes) -> None:
    tokens, a, b = stream[:65], tiny(1), tiny(2)
    (found,) = divergence(a, [b], tokens, table, Setting(64))
    inputs = torch.from_numpy(tokens[None, :-1])
    p, q = (torch.log_softmax(model(inputs)[0].double(), dim=-1) for model in (a, b))
    kl = (p.exp() * (p - q)).sum().item()
    count = table.count(tokens[1:], tokens[:-1]).sum()
    assert found.kl_bits_per_byte == pytest.approx(kl / math.log(2) / count, rel=1e-5)
    assert found.top1_agreement == (p.argmax(-1) == q.argmax(-1)).double().mean().item()


@pytest.mark.parametrize(("window", "stride"), [(64, 64), (64, 16), (50, 7)])
def test_one_pass_gives_the_separate_scores(
    tiny: Make, stream: NDArray[np.int64], table: TokenBytes, window: int, stride: int
) -> None:
    models, setting = [tiny(seed) for seed in (1, 2, 3)], Setting(window, stride)
    separate = [score(model, stream, table, setting) for model in models]
    found = divergence(models[0], models[1:], stream, table, setting)
    for other, result in zip(separate[1:], found, strict=True):
        assert result.reference.nats == pytest.approx(separate[0].nats, rel=1e-6)
        assert result.other.nats == pytest.approx(other.nats, rel=1e-6)
        assert result.difference.delta_bpb == pytest.approx(
            other.bits_per_byte - separate[0].bits_per_byte, rel=1e-4
        )
        assert result.kl_bits_per_byte > 0
        assert result.other.seconds > 0


def test_a_model_does_not_diverge_from_itself(
    tiny: Make, stream: NDArray[np.int64], table: TokenBytes
) -> None:
    model = tiny(1)
    (found,) = divergence(model, [model], stream, table, Setting(64))
    assert vars(found.difference) == {"delta_bpb": 0.0, "stderr_bits_per_byte": 0.0}
    assert found.kl_bits_per_byte == found.kl_stderr_bits_per_byte == 0.0
    assert found.top1_agreement == 1.0
    assert divergence(model, [], stream, table, Setting(64)) == []


def test_pairing_narrows_the_error(
    tiny: Make, stream: NDArray[np.int64], table: TokenBytes
) -> None:
    tokens = np.tile(stream, 5)
    near = tiny(1)
    with torch.no_grad():
        near.get_parameter("table").add_(torch.randn(11, 11) * 0.01)
    reference, other = (score(m, tokens, table, Setting(64)) for m in (tiny(1), near))
    difference = compare(reference, other)
    assert difference.stderr_bits_per_byte is not None
    assert reference.stderr_bits_per_byte is not None
    assert difference.stderr_bits_per_byte < 0.2 * reference.stderr_bits_per_byte
    json.dumps(reference.as_dict())


def test_parts_of_ranks_combine(tiny: Make, stream: NDArray[np.int64], table: TokenBytes) -> None:
    models = tiny(1), [tiny(2)]
    (alone,) = divergence(*models, stream, table, Setting(64, 16))
    parts = [
        divergence(*models, stream, table, Setting(64, 16, rank=rank, world_size=3))[0]
        for rank in range(3)
    ]
    whole = combine(parts)
    assert whole.kl_bits_per_byte == pytest.approx(alone.kl_bits_per_byte, rel=1e-12)
    assert whole.top1_agreement == alone.top1_agreement
    assert whole.difference.delta_bpb == pytest.approx(alone.difference.delta_bpb, rel=1e-9)


def test_what_cannot_be_compared_is_refused(
    tiny: Make, stream: NDArray[np.int64], table: TokenBytes
) -> None:
    scores = [score(tiny(1), stream[:n], table, Setting(64)) for n in (3000, 4000)]
    with pytest.raises(ScoreError, match="cannot be paired"):
        compare(*scores)
    with pytest.raises(ScoreError, match="vocabularies of 11 and 128"):
        divergence(tiny(1), [tiny(1, vocab=128)], stream, table, Setting(64))
