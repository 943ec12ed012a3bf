"""Text that a model writes itself, to calibrate on where there is no other."""

from __future__ import annotations

import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from packer.commands.options.text import TextOptions

if TYPE_CHECKING:
    from torch import Tensor

    from packer.eval.forward import AnyModel
    from packer.evaluation import Data


WINDOWS_IN_TIME = 16  # written side by side where seconds are limited, and kept when all are whole


def generate_text(model: AnyModel, text: TextOptions) -> tuple[Data, TextOptions, float]:
    """(text by the model itself, options that speak of it, the seconds it took).

    Half the seconds allowed are for writing; whole windows are kept.
    Raises PackerError, EvalError: no tokenizer, or not one window in time.
    """
    import torch

    from packer.evaluation import Data
    from packer.huggingface.tokenizer import open_tokenizer, table_of

    if text.tokenizer is None:
        raise click.UsageError("--self-generate needs the tokenizer: name it with --tokenizer")
    started = time.perf_counter()
    processor = open_tokenizer(text.tokenizer)
    found = _windows(model, processor, text, started)
    table = table_of(processor)
    tokens = torch.cat(found).flatten().cpu().numpy()
    data = Data(tokens, table, table.vocab_size, None, processor)
    spent = time.perf_counter() - started
    told = TextOptions(
        ["text by the model itself (temperature 0.8)"],
        tokenizer=text.tokenizer,
        tokens=len(tokens),
        window=text.window,
        seconds=None if text.seconds is None else text.seconds - spent,
        seed=text.seed,
    )
    return data, told, spent


def _windows(model: AnyModel, processor: Any, text: TextOptions, started: float) -> list[Tensor]:
    """As many whole windows as half the seconds allow. Raises CurvatureError: not one."""
    from packer.curvature.calibration import within
    from packer.errors import CurvatureError
    from packer.eval.sample import sample_windows
    from packer.progress import shown

    half = None if text.seconds is None else text.seconds / 2
    with shown("writing") as progress:
        windows = sample_windows(
            model,
            windows=-(-text.tokens // text.window),
            window=text.window,
            start=max(processor.bos_id(), 0),
            vocab_size=processor.vocab_size(),
            seed=text.seed,
            batch=None if half is None else WINDOWS_IN_TIME,
            progress=lambda done, total: progress("tokens", done, total),
        )
        found = [window for (window,), _ in within(windows, half, started, None)]
    if not found:
        raise CurvatureError("not one window was written in half the seconds; allow more")
    return found


def generate_for_trials(model: AnyModel, text: TextOptions) -> tuple[Data, TextOptions, float]:
    """As `generate_text`, with as much more at the end as is held out to measure damage on."""
    from packer.planning.damage_trials import windows_with_trials

    assert text.self_generate is not None
    windows = windows_with_trials(-(-text.self_generate // text.window))
    data, told, spent = generate_text(model, replace(text, tokens=windows * text.window))
    return data, replace(told, tokens=text.self_generate), spent
