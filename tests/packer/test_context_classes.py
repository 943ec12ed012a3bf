"""Refined context classes: fewer bytes, the same codes."""

from __future__ import annotations

import numpy as np
import pytest

from packer.artifact import context_classes
from packer.artifact.ans_encoder import encode_ans
from packer.artifact.stream_decoder import ANS, NUMPY, decode_ans


def spread_codes(rows: int, columns: int, seed: int) -> np.ndarray:
    """int16 codes; one row in ten and one column in seven far wider than the others."""
    generator = np.random.default_rng(seed)
    wide = np.where(np.arange(rows) % 10 == 3, 9.0, 1.5)
    across = np.where(np.arange(columns) % 7 == 2, 4.0, 1.0)
    laplace = generator.laplace(size=(rows, columns))
    return np.rint(laplace * wide[:, None] * across[None]).astype(np.int16)


@pytest.mark.parametrize(("coder", "number"), [("ans", ANS), ("numpy", NUMPY)])
@pytest.mark.parametrize(("rows", "columns"), [(160, 128), (700, 300), (128, 600)])
def test_refined_streams_are_smaller_and_decode(monkeypatch, coder, number, rows, columns):
    codes = spread_codes(rows, columns, rows)
    refined = encode_ans(codes, coder=coder)
    assert np.array_equal(decode_ans(refined, rows, columns, None, None, True, number), codes)
    monkeypatch.setattr(context_classes, "_refined", lambda _codes, _reach, initial: initial)
    initial = encode_ans(codes, coder=coder)
    assert len(refined) < 0.997 * len(initial)
