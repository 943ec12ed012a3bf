"""The bundle: one script that holds both the encoder and the decoder of just a plan's formats.

A submission is run again from its training code, so what packs the weights has to be in it, and
counts. Like the loader it is the source text of our own functions.
"""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from packer.code.extract import Module, extract
from packer.code.insert import inserted
from packer.code.minify import minify_closed
from packer.code.never import Marks
from packer.code.wrapper import ENTRY, wrap
from packer.errors import CodeError
from packer.ship import (
    CHECKS,
    DECODERS,
    ENTRIES,
    EVERYTHING,
    GUARDS,
    PARTS,
    loader_bytes,
    parts_of,
)

if TYPE_CHECKING:
    from packer.planning import PackPlan
    from packer.quantizers.choice import Choice

ENCODERS: tuple[Module, ...] = tuple(
    ("packer.quantizers", f"{name}.py")
    for name in (
        *("clip", "prune", "curvature", "formats", "choice", "rounding", "stepping", "two_sided"),
        *("compiled_loops", "trellis_search", "trellis", "low_rank", "quantize"),
    )
) + tuple(
    ("packer", f"{name}.py")
    for name in (
        "lane_encoder",
        "symbol_stacks",
        "row_column_classes",
        "entropy",
        "trellis_encoder",
        "artifact",
        "filling",
    )
)
CALIBRATION: tuple[Module, ...] = (
    *(("packer", name) for name in ("errors.py", "checkpoint.py")),
    *(("packer.eval", name) for name in ("forward.py", "foreign_forward.py")),
    *(
        ("packer.curvature", f"{name}.py")
        for name in (
            *("weight_origins", "contractions", "weight_products", "moments", "weight_uses"),
            *("own_labels", "observing", "bundled"),
        )
    ),
)
BUNDLE_ENTRIES = (*ENTRIES, "filled", "read_curvatures", "Choice", "Curvature")
DEFINED = ("read_curvatures", "encode_weights", "Curvature")  # beside the loader's entries
# As CHECKS and GUARDS of packer/ship.py: what a bundle calls no more, and what raises in it.
ENCODER_CHECKS = CHECKS | {"check_shape"}
ENCODER_GUARDS = GUARDS | {"keep_fitting", "keep_usable"}
CALIBRATION_GUARDS = frozenset(
    {
        *("keep_finite", "keep_in_time", "keep_logits", "keep_read", "keep_same", "keep_tokens"),
        "keep_way",
    }
)
# What an encoder needs to know of each part, and the functions that only this needs.
ENCODER_PARTS = {
    "kept": ("_encode_kept", "_stored_bytes"),
    "scaled": ("_encode_scaled", "choose_scale"),
    "rank": ("_encode_factors", "correction"),
    "stepped": ("_encode_stepped", "_stepped"),
    "trellis": ("encode_trellis", "trellis_codes"),
    "ans": ("ConstrictionPushes",),
    "numpy": ("LanePushes",),
    "zstd": ("to_zstd",),
    "brotli": ("to_brotli",),
    "lzma": ("to_lzma",),
    "zlib": ("to_zlib",),
}
# Ways of choosing codes, and what only they need.
WAYS = {
    "gptq": ("_factors",),
    "gptq2": ("_output_factors", "round_both_ways"),
    "prune": ("prune_smallest",),
    "mse": ("least_squares_scale",),
    "kstd": ("kstd_scale",),
    "percentile": ("percentile_scale",),
    "absmax": ("absmax_scale",),
    "absmean": ("absmean_scale",),
    "ternary": ("ternary_scale",),
}
# Loops that are of use compiled alone, and what does the same without a compiler, some five times
# slower. A trellis has no such other way: where it is searched, the rest is compiled too.
COMPILED = ("_compiled_block", "_compiled_tile")
NOT_COMPILED = ("_by_columns", "_by_antidiagonals")
THREADS = 8  # for compiled loops; others would wait for the interpreter


@dataclass(frozen=True)
class Bundle:
    """script: the file. added_bytes: how much larger it is than the script without the bundle.
    decoder_bytes: of these, what the loader of the same formats takes by itself.
    """

    script: str
    added_bytes: int
    decoder_bytes: int

    @property
    def encoder_bytes(self) -> int:
        """What the encoder, the plan and the command line add to the decoder."""
        return self.added_bytes - self.decoder_bytes

    @property
    def size_bytes(self) -> int:
        return len(self.script.encode())


GLUE = """
def encode_weights(weights, curvature, cap_bytes, code_bytes):
    choices = {{name: Choice(*_KINDS[kind], step) for name, kind, step in _PLAN}}
    return filled(
        weights, choices, _TIES, _METADATA, curvature, cap_bytes, code_bytes, {threads})

_KINDS = {kinds}
_PLAN = {plan}
_TIES = {ties!r}
_METADATA = {metadata!r}
"""
CALIBRATED = """
def calibrated(model, weights, batches, seconds, seed=0):
    names = [name for name, *_ in _PLAN]
    return curvature_within(model, weights, names, _TIES, batches, seconds, seed)
"""
COMMAND = """
if __name__ == "__main__":
    import os, sys, torch
    if len(sys.argv) not in (4, 5):
        sys.exit("usage: WEIGHTS CURVATURE OUT [CAP]")
    _, weights, curvature, out, *cap = sys.argv
    def read(path, how):
        try:
            with open(path, "rb") as file:
                return how(file)
        except Exception as error:
            sys.exit(f"{{path}} cannot be read: {{error!r:.200}}")
    def tensors(file):
        if weights.endswith(".safetensors"):
            return read_tensors(file.read())[0]
        return torch.load(file, map_location="cpu", weights_only=True)
    weights = read(weights, tensors)
    curvature = read(curvature, lambda file: read_curvatures(file.read()))
    code = os.path.getsize(__file__) + {beside}
    try:
        data = encode_weights(weights, curvature, int(*cap or [{cap}]), code)
        with open(out + ".tmp", "wb") as file:
            file.write(data)
        os.replace(out + ".tmp", out)
    except Exception as error:
        sys.exit(f"{{out}} was not written: {{error}}")
    print(f"code {{code}} + artifact {{len(data)}} = {{code + len(data)}}")
"""


def make_bundle(plan: PackPlan, calibrate: bool = False) -> Bundle:
    """`python bundle.py WEIGHTS CURVATURE OUT [CAP]`; imported or executed, it defines
    `encode_weights(weights, curvature, cap_bytes, code_bytes)`, `read_curvatures(data)`,
    `Curvature(hessian, fisher, tokens, ...)` by position, and `read_weights(data)`.

    calibrate: with `calibrated(model, weights, batches, seconds, seed=0)`, which gives (curvature
    by tensor, tokens read, seconds taken) as `curvature_within` does.
    The plan's cap and the other files that it counts as code are in the script.
    """
    beside = sum(file.size_bytes for file in plan.limits.code) + plan.limits.margin_bytes
    text = _source(plan, COMMAND.format(beside=beside, cap=plan.limits.cap_bytes), calibrate)
    return _bundle(plan, wrap({ENTRY: text}, codecs=_codecs(plan)).text, "")


def inline_bundle(plan: PackPlan, script: str, calibrate: bool = False) -> Bundle:
    """The script with the bundle in front of its first statement, under the one name `bundle`: a
    dictionary of the functions that `make_bundle` tells of.

    What counts is how much longer it becomes; a script that extracts itself is compressed anew.
    """
    return _bundle(
        plan, inserted(_source(plan, "", calibrate), "bundle", script, _codecs(plan)), script
    )


def weigh_bundle(plan: PackPlan) -> tuple[int, int]:
    """(bytes of the decoder, of the encoder) that a bundle of this plan counts, in the script that
    its limits name, or as a file of its own. Raises PackerError: the script cannot be read.
    """
    made = bundle_in(plan, plan.limits.script, plan.limits.calibrate)
    return made.decoder_bytes, made.encoder_bytes


def bundle_in(plan: PackPlan, script: str | None, calibrate: bool) -> Bundle:
    """In the file of that name, or without one a file of its own. Raises CodeError."""
    if script is None:
        return make_bundle(plan, calibrate)
    return inline_bundle(plan, read_script(script), calibrate)


def read_script(path: str) -> str:
    """Raises CodeError."""
    try:
        return Path(path).read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CodeError(f"the script {path} cannot be read: {error}") from None


def _codecs(plan: PackPlan) -> tuple[str, ...]:
    return ("lzma", "brotli") if "brotli" in parts_of(plan.choices.values()) else ("lzma",)


def _bundle(plan: PackPlan, script: str, without: str) -> Bundle:
    added = len(script.encode()) - len(without.encode())
    return Bundle(script, added, loader_bytes(plan.choices.values()))


def _source(plan: PackPlan, command: str, calibrate: bool) -> str:
    from packer.quantizers.choice import parse_choice

    choices = {name: parse_choice(text) for name, text in plan.choices.items()}
    parts = parts_of(plan.choices.values())
    classes = sorted({kind for one in choices.values() for kind in _classes(one.format)})
    never = [name for part in sorted(EVERYTHING - parts) for name in PARTS[part]]
    never += [name for part in sorted(EVERYTHING - parts) for name in ENCODER_PARTS[part]]
    never += [name for way in sorted(WAYS.keys() - _ways(choices)) for name in WAYS[way]]
    never += NOT_COMPILED if "trellis" in parts else COMPILED
    guards = ENCODER_GUARDS
    entries = [*BUNDLE_ENTRIES, *classes, *(["read_tensors"] if command else [])]
    modules, names = (*DECODERS, *ENCODERS), [*ENTRIES, *DEFINED]
    if calibrate:
        modules, names = (*modules, *CALIBRATION), [*names, "calibrated"]
        command = CALIBRATED + command
        entries.append("curvature_within")
        never.append("note_call")  # only words for people
        guards |= CALIBRATION_GUARDS
    tree = extract(modules, entries, Marks(frozenset(never), ENCODER_CHECKS, guards))
    tree.body += ast.parse(_glue(plan, choices) + command).body
    return minify_closed(tree, names)


def _classes(format: object) -> list[str]:
    base = getattr(format, "base", None)
    return [type(format).__name__, *([] if base is None else _classes(base))]


def _ways(choices: Mapping[str, Choice]) -> set[str]:
    """Names of WAYS that some choice takes, and what these call in turn."""
    found: set[str] = set()
    for choice in choices.values():
        classes = _classes(choice.format)
        rule = "ternary" if "Ternary" in classes and choice.range_rule == "mse" else None
        found |= {rule or (choice.range_rule or "").partition("-")[0]} & WAYS.keys()
        found |= {"mse"} if "LowRank" in classes else set()
        found |= {"absmax"} if choice.range_rule == "kstd" else set()
        found |= {"prune"} if choice.prune else set()
        found |= {"gptq", choice.rounding} if choice.rounding != "nearest" else set()
    return found


def _glue(plan: PackPlan, choices: Mapping[str, Choice]) -> str:
    """What is the plan's own: every tensor's choice, in two tables."""
    spelled = {name: _spell(choice) for name, choice in choices.items()}
    kinds = list(dict.fromkeys(spelled.values()))
    rows = [(name, kinds.index(spelled[name]), choices[name].step) for name in choices]
    measured = plan.measurement
    return GLUE.format(
        kinds="[" + ",".join(kinds) + "]",
        plan=rows,
        ties=dict(measured.ties),
        metadata=dict(measured.metadata),
        threads=THREADS if any("trellis" in kind for kind in plan.choices.values()) else 1,
    )


def _spell(choice: Choice) -> str:
    """The arguments of a Choice but for its step."""
    values = (choice.coder, choice.range_rule, choice.range_value, choice.reach, choice.prune)
    rounding = f"{choice.rounding!r},{int(choice.ascending)}"
    return f"({_spell_format(choice.format)},{','.join(map(repr, values))},{rounding})"


def _spell_format(format: object) -> str:
    assert dataclasses.is_dataclass(format)
    fields = [getattr(format, one.name) for one in dataclasses.fields(format) if one.init]
    inner = [_spell_format(f) if dataclasses.is_dataclass(f) else repr(f) for f in fields]
    return f"{type(format).__name__}({','.join(inner)})"
