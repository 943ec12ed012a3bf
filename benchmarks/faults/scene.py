"""A folder with everything that five commands need: a model, text, tokens, a plan, an artifact."""

from __future__ import annotations

import io
import json
import random
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import sentencepiece
import torch
from packer.train.config import settings_of
from packer.train.model import GPT, GPTConfig
from packer.train.run_config import read_run, run_settings

from packer import api

MODEL = GPTConfig(64, 2, 32, 4, 2, rope_train_length=64, embedding_init_std=0.5)
WORDS = ["lorem", "ipsum", "dolor", "sit", "amet", "qui", "vexat", "bonum", "jazz", "hyphen"]
CAP = 14_000
CHANGES = (
    *("model.vocab_size=64", "model.num_layers=2", "model.model_dim=32", "model.num_heads=4"),
    *("model.num_kv_heads=2", "model.value_embedding_dim=0", "model.value_embedding_layers=[]"),
    *("model.bigram_vocab_size=0", "model.rope_dims=0", "model.xsa_last_n=0"),
    *("batch.sequence=16", "batch.tokens=128", "schedule.iterations=12", "schedule.warmdown=6"),
    *("run.save_every=2", "run.save_seconds=0", "run.eval_every=0", "qat.mode='off'"),
)


@dataclass(frozen=True)
class Job:
    """A command line inside the scene's folder.

    outputs: files that must be old or new. goes_on: arguments that resume it, None where it starts
    anew. compare: what of its outputs two runs have in common.
    """

    name: str
    arguments: tuple[str, ...]
    outputs: tuple[str, ...]
    goes_on: tuple[str, ...] | None = None
    compare: Callable[[Path], object] = Path.read_bytes


def set_up(folder: Path) -> tuple[Job, ...]:
    """Writes the inputs; gives measure, calibrate, pack, fix and train."""
    torch.manual_seed(0)
    model = GPT(MODEL)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    torch.save(model.state_dict(), folder / "model.pt")
    (folder / "model.config.json").write_text(json.dumps(settings_of(MODEL)))
    api.plan(folder / "model.pt", CAP, out=folder / "plan.json")
    (folder / "big.ptz").write_bytes(_int8_zlib(model.state_dict()))
    _write_text(folder)
    config = read_run(None, [*CHANGES, f"data.train=['{folder / 'tokens.bin'}']"])
    (folder / "run.json").write_text(json.dumps(run_settings(config)))
    return (
        Job(
            "measure", ("measure", "model.pt", "--no-calibration", "-o", "out.json"), ("out.json",)
        ),
        Job("pack", ("pack", "model.pt", "--plan", "plan.json", "-o", "out.pack"), ("out.pack",)),
        Job("fix", ("fix", "big.ptz", "--cap", "12KB", "-o", "fixed.pack"), ("fixed.pack",)),
        _calibrate(),
        Job(
            "train",
            ("train", "run.json", "-o", "run"),
            ("run/raw.safetensors", "run/ema.safetensors"),
            ("train", "--resume", "-o", "run"),
        ),
    )


def _calibrate() -> Job:
    text = ("--data", "train.txt", "--tokenizer", "bpe.model", "--tokens", "4096", "--window", "64")
    arguments = ("calibrate", "model.pt", *text, "-o", "curvature.safetensors")
    return Job("calibrate", arguments, ("curvature.safetensors",), arguments, _without_seconds)


def _without_seconds(path: Path) -> object:
    """All that a curvature file holds but the time that it took."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    provenance = json.loads(header["__metadata__"]["provenance"])
    del provenance["seconds"], header["__metadata__"]
    return header, provenance, data[8 + length :]


def _int8_zlib(weights: dict[str, torch.Tensor]) -> bytes:
    """The artifact of a baseline trainer, too large for its cap."""
    codes, scales, rest = {}, {}, {}
    for name, weight in weights.items():
        if weight.dim() != 2:
            rest[name] = weight
            continue
        scales[name] = (weight.abs().amax(1) / 127).half()
        rounded = (weight / scales[name].float()[:, None]).round()
        codes[name] = rounded.clamp(-127, 127).to(torch.int8)
    value = {
        "__quant_format__": "int8_clean_per_row_v1",
        "quantized": codes,
        "scales": scales,
        "dtypes": dict.fromkeys(codes, "float32"),
        "passthrough": rest,
    }
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return zlib.compress(buffer.getvalue(), 9)


def _write_text(folder: Path) -> None:
    rng = random.Random(0)
    lines = [" ".join(rng.choice(WORDS) for _ in range(10)) for _ in range(400)]
    (folder / "train.txt").write_text("\n".join(lines))
    trained = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines),
        model_writer=trained,
        vocab_size=64,
        model_type="bpe",
        minloglevel=2,
        num_threads=1,
    )
    (folder / "bpe.model").write_bytes(trained.getvalue())
    tokens = [rng.randrange(64) for _ in range(3000)]
    header = struct.pack("<3i", 20240520, 1, len(tokens)) + bytes(4 * 253)
    (folder / "tokens.bin").write_bytes(header + struct.pack(f"<{len(tokens)}H", *tokens))
