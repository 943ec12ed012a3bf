"""Every reader: its whole files, how they are damaged, and what reading one gives.

A reading gives a digest of all that was read, and raises AssertionError where what it read breaks
a promise. `refusals` are the errors that the commands show as one paragraph.
"""

from __future__ import annotations

import functools
import hashlib
import json
import sys
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import click
import torch
from packer.eval.errors import EvalError
from packer.eval.shards import read_shards
from packer.eval.token_bytes import from_json, from_sentencepiece
from packer.train.config import ConfigError, config_from
from packer.train.config import read_config as read_model_config
from packer.train.run_config import read_run, run_settings
from packer.train.run_state import read_state

from benchmarks.fuzz import samples
from benchmarks.fuzz.layouts import (
    mutate_artifact,
    mutate_model,
    mutate_safetensors,
    mutate_torch_zip,
    recompressed,
)
from benchmarks.fuzz.mutations import mutate_bytes, mutate_json_text, mutate_text
from packer import api
from packer.artifact import decoder
from packer.artifact.reader import ArtifactError
from packer.checkpoint.checkpoint import from_state_dict, read_checkpoint
from packer.checkpoint.fingerprint import contents_fingerprint
from packer.commands.models import load_subjects
from packer.commands.options.model import ModelOptions
from packer.commands.options.types import read_config as read_settings
from packer.curvature.file import read_curvature
from packer.curvature.resume import ResumeFile
from packer.errors import PackerError
from packer.packing.pack import pack_to_cap
from packer.planning.account import Limits
from packer.planning.plan import PackPlan, make_plan, read_measurement, read_plan
from packer.rules import check
from packer.shipping.loader import loader_source
from packer.submission.folder import read_submission

ROOT = Path(__file__).resolve().parents[2]
MAX_BYTES = 1 << 20  # what a mutant may say that it expands to
REFUSALS = (PackerError, ArtifactError, EvalError, ConfigError, click.UsageError)
Mutate = Callable[[Random, str, bytes], tuple[bytes, bool]]


@dataclass(frozen=True)
class Reader:
    """originals: whole files by name. mutate: (generator, name, bytes) to (mutant, whether the
    file's own checks must notice every change of what it says). read: (bytes, an empty folder) to a
    digest. memory_bytes: how much more memory reading may take than before it began.
    """

    name: str
    originals: Callable[[], Mapping[str, bytes]]
    mutate: Mutate
    read: Callable[[bytes, Path], str]
    memory_bytes: int = 32 << 20


def digest_of(weights: Mapping[str, torch.Tensor]) -> str:
    """Of names, dtypes, shapes and bits."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        weight = weights[name].contiguous()
        digest.update(f"{name} {weight.dtype} {list(weight.shape)}".encode("utf-8", "replace"))
        digest.update(weight.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def of_text(value: object) -> str:
    return hashlib.sha256(repr(value).encode("utf-8", "replace")).hexdigest()


# --- Artifacts ----------------------------------------------------------------------------------


def damaged_artifact(rng: Random, _: str, data: bytes) -> tuple[bytes, bool]:
    if rng.random() < 0.25:
        return mutate_bytes(rng, data), True
    return mutate_artifact(rng, data), False


def read_artifact(data: bytes, _: Path) -> str:
    """What the package reads, the loader that is shipped must read alike; it checks the sum over
    the file and nothing else, so that what the package refuses is not shown to it.
    """
    ours = digest_of(decoder.read_weights(data, MAX_BYTES))
    assert digest_of(_loader()(data)) == ours, "the loader reads other weights than the package"
    return ours


@functools.cache
def _loader() -> Any:
    loader = sys.modules["loader"] = types.ModuleType("loader")  # dataclasses look it up there
    exec(compile(loader_source(), "loader.py", "exec"), vars(loader))
    return loader.read_weights


# --- Plans --------------------------------------------------------------------------------------


@functools.cache
def _planned() -> tuple[bytes, bytes]:
    return samples.planned()


@functools.cache
def _checkpoint() -> Any:
    return from_state_dict(samples.weights())


def damaged_json(rng: Random, _: str, data: bytes) -> tuple[bytes, bool]:
    return mutate_json_text(rng, data), False


def read_a_plan(data: bytes, folder: Path) -> str:
    """What is packed by a plan, whatever it says, is under its cap and by its choices."""
    path = folder / "plan.json"
    path.write_bytes(data)
    plan = read_plan(path)
    again = PackPlan.from_json(json.loads(json.dumps(plan.to_json())), "again")
    assert repr(again) == repr(plan), "written and read again, the plan is another"
    packed = pack_to_cap(_checkpoint(), plan)
    limits = packed.plan.limits
    total = len(packed.data) + limits.code_bytes + limits.margin_bytes
    assert total <= limits.cap_bytes, f"{total} bytes under a cap of {limits.cap_bytes}"
    problems = api.verify(packed.data, _checkpoint()).problems
    assert not problems, problems
    return of_text(plan)


def read_candidates(data: bytes, folder: Path) -> str:
    path = folder / "candidates.json"
    path.write_bytes(data)
    measured, _ = read_measurement(path)
    pack_plan = make_plan(measured, Limits(samples.CAP), {})
    assert pack_plan.plan.total_bytes <= samples.CAP
    return of_text(measured)


# --- Tensors ------------------------------------------------------------------------------------


def damaged_tensors(rng: Random, name: str, data: bytes) -> tuple[bytes, bool]:
    """Zip files have checksums, but of the records' contents alone."""
    if data[:2] == b"PK":
        if rng.random() < 0.3:
            return mutate_bytes(rng, data), False
        return mutate_torch_zip(rng, data), False
    if name == "safetensors" or data[8:9] == b"{":
        return mutate_safetensors(rng, data), False
    return mutate_bytes(rng, data), False


def damaged_foreign(rng: Random, name: str, data: bytes) -> tuple[bytes, bool]:
    """Half of them are compressed again, so that what is inside is read."""
    mutant, _ = damaged_tensors(rng, name, data)
    return (recompressed(rng, mutant) if rng.random() < 0.4 else mutant), False


def read_a_checkpoint(data: bytes, folder: Path) -> str:
    path = folder / "model.bin"
    path.write_bytes(data)
    checkpoint = read_checkpoint(path, max_memory=MAX_BYTES)
    for name, tensor in checkpoint.tensors.items():
        if tensor.is_floating_point():  # infinities as masks have them are read, all of one sign
            values = tensor.float()
            assert not values.isnan().any(), name
            assert not (values.isposinf().any() and values.isneginf().any()), name
    return digest_of(
        {**checkpoint.tensors, **{t: checkpoint.tensors[k] for t, k in checkpoint.ties.items()}}
    )


def read_a_folder(data: bytes, folder: Path) -> str:
    """A folder of shards, whose index is the mutant."""
    from safetensors.torch import save_file

    save_file({"a": torch.ones(3)}, folder / "one.safetensors")
    (folder / "model.safetensors.index.json").write_bytes(data)
    return digest_of(read_checkpoint(folder).tensors)


def read_a_curvature(data: bytes, folder: Path) -> str:
    path = folder / "curvature.safetensors"
    path.write_bytes(data)
    curvature = read_curvature(path, _checkpoint())
    for one in curvature.by_tensor.values():
        assert bool(one.hessian.isfinite().all())
    contents_fingerprint(_checkpoint())
    return of_text(curvature.provenance())


def read_unfinished(data: bytes, folder: Path) -> str:
    path = folder / "kept"
    path.write_bytes(data)
    state = ResumeFile(path, samples.KNOWN_BY).read()
    assert state is not None
    return of_text((state.batches, state.tokens, state.vocab_size, digest_of(state.sums)))


def damaged_model(rng: Random, _: str, data: bytes) -> tuple[bytes, bool]:
    return mutate_model(rng, data), False


def read_a_model(data: bytes, folder: Path) -> str:
    """The companion model of a checkpoint that carries its configuration."""
    path = folder / "model.safetensors"
    path.write_bytes(data)
    built = ModelOptions(None, None, None, "cpu")
    (subject,) = load_subjects([str(path)], built, torch.device("cpu"), _to_nobody)
    return digest_of(subject.model.state_dict())


def _to_nobody(_: object) -> None:
    """Where notes go."""


def read_a_state(data: bytes, folder: Path) -> str:
    path = folder / "state.pt"
    path.write_bytes(data)
    return of_text(read_state(path)["step"])


# --- Tokens and settings ------------------------------------------------------------------------


def damaged_bytes(rng: Random, _: str, data: bytes) -> tuple[bytes, bool]:
    return mutate_bytes(rng, data), False


def read_a_shard(data: bytes, folder: Path) -> str:
    path = folder / "a.bin"
    path.write_bytes(data)
    stream = read_shards([path], vocab_size=1024)
    tokens = stream[:]
    assert len(tokens) == len(stream) and not (tokens >= 1024).any()
    return hashlib.sha256(tokens.tobytes()).hexdigest()


def read_table(data: bytes, folder: Path) -> str:
    path = folder / "bytes.json"
    path.write_bytes(data)
    return of_text(from_json(path).base.tolist())


def read_tokenizer(data: bytes, folder: Path) -> str:
    path = folder / "bpe.model"
    path.write_bytes(data)
    return of_text(from_sentencepiece(path).base.tolist())


def tokenizers() -> dict[str, bytes]:
    """A model of a few pieces, trained on a line."""
    import io

    import sentencepiece

    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the quick brown fox jumps over the lazy dog"] * 4),
        model_writer=out,
        vocab_size=48,
        model_type="bpe",
        minloglevel=2,
    )
    return {"bpe": out.getvalue()}


def damaged_settings(rng: Random, name: str, data: bytes) -> tuple[bytes, bool]:
    return (mutate_text if name == "toml" else mutate_json_text)(rng, data), False


def read_model_settings(data: bytes, folder: Path) -> str:
    """As the model's configuration, and as text that goes into an artifact."""
    path = folder / "config.json"
    path.write_bytes(data)
    read_settings(str(path))
    return of_text(config_from(read_model_config(path)))


def read_run_settings(data: bytes, folder: Path) -> str:
    path = folder / "run.toml"
    path.write_bytes(data)
    return of_text(run_settings(read_run(str(path))))


MODEL = {
    "vocab_size": 64,
    "num_layers": 2,
    "model_dim": 32,
    "num_heads": 4,
    "num_kv_heads": 2,
    "mlp_mult": 3.0,
}

# --- Submissions --------------------------------------------------------------------------------


@functools.cache
def _submission() -> Mapping[str, bytes]:
    return {
        "submission.json": json.dumps(samples.CLAIMS).encode(),
        "train.log": samples.LOG,
        "README.md": samples.README,
        "train_gpt.py": samples.CODE,
        "model.ptz": samples.foreign()["zlib"],
    }


def submissions() -> dict[str, bytes]:
    return {name: name.encode() + b"\0" + data for name, data in _submission().items()}


def damaged_submission(rng: Random, name: str, data: bytes) -> tuple[bytes, bool]:
    """The mutant carries its own name in front, so that the folder can be put together."""
    data = data.partition(b"\0")[2]
    if name.endswith(".json"):
        mutant = mutate_json_text(rng, data)
    elif name.endswith(".ptz"):
        mutant = mutate_bytes(rng, data)
    else:
        mutant = mutate_text(rng, data)
    return name.encode() + b"\0" + mutant, False


def read_a_submission(data: bytes, folder: Path) -> str:
    """A folder with one damaged file: checked, every rule with a verdict."""
    name, _, mutant = data.partition(b"\0")
    for other, content in _submission().items():
        (folder / other).write_bytes(mutant if other.encode() == name else content)
    findings = check(read_submission(folder, max_memory=MAX_BYTES))
    lines = [json.dumps(finding.to_json()) for finding in findings]
    assert len(lines) > 10
    return of_text(lines)


def _every_reader() -> tuple[Reader, ...]:
    golden = ROOT / "tests" / "golden"
    settings = {"json": json.dumps(MODEL).encode()}
    return (
        Reader("artifact", lambda: samples.artifacts(golden), damaged_artifact, read_artifact),
        Reader("plan", lambda: {"plan": _planned()[1]}, damaged_json, read_a_plan),
        Reader("candidates", lambda: {"all": _planned()[0]}, damaged_json, read_candidates),
        Reader("checkpoint", samples.checkpoints, damaged_tensors, read_a_checkpoint),
        Reader(
            "folder",
            lambda: {"index": json.dumps(samples.INDEX).encode()},
            damaged_json,
            read_a_folder,
        ),
        Reader("foreign", samples.foreign, damaged_foreign, read_a_checkpoint, 64 << 20),
        Reader(
            "curvature",
            lambda: {"safetensors": samples.curvature()},
            damaged_tensors,
            read_a_curvature,
        ),
        Reader(
            "unfinished",
            lambda: {"safetensors": samples.unfinished()},
            damaged_tensors,
            read_unfinished,
        ),
        Reader("model", samples.models, damaged_model, read_a_model),
        Reader("state", lambda: {"zip": samples.training_state()}, damaged_tensors, read_a_state),
        Reader("shard", lambda: {"bin": samples.shard()}, damaged_bytes, read_a_shard),
        Reader("table", lambda: {"json": samples.TABLE.encode()}, damaged_json, read_table),
        Reader("tokenizer", tokenizers, damaged_bytes, read_tokenizer),
        Reader("settings", lambda: settings, damaged_settings, read_model_settings),
        Reader("run", lambda: {"toml": samples.RUN}, damaged_settings, read_run_settings),
        Reader("submission", submissions, damaged_submission, read_a_submission),
    )


READERS = {reader.name: reader for reader in _every_reader()}
