"""The bundle: one script that holds both the encoder and the decoder of just a plan's formats.

A submission is run again from its training code, so what packs the weights has to be in it, and
counts. Like the loader it is the source text of our own functions.
"""

from __future__ import annotations

import ast
import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from packer.code.extract import Module, extract
from packer.code.minify import is_literal, parse
from packer.code.shorten import shorten
from packer.code.wrapper import ENTRY, wrap
from packer.ship import DECODERS, ENTRIES, EVERYTHING, PARTS, minified_loader, parts_of

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
        "entropy",
        "trellis_encoder",
        "artifact",
        "filling",
    )
)
BUNDLE_ENTRIES = (*ENTRIES, "filled", "read_curvatures", "Choice", "Curvature")
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
# Loops that are of use compiled alone; what does the same without is slower, and needs no compiler.
COMPILED = ("_compiled_block", "_compiled_tile")


@dataclass(frozen=True)
class Bundle:
    """script: the file. decoder_bytes: of the minified decoder alone under brotli-11; both_bytes:
    of all that the script holds.
    """

    script: str
    decoder_bytes: int
    both_bytes: int

    @property
    def encoder_bytes(self) -> int:
        """What the encoder, the plan and the command line add to the decoder."""
        return self.both_bytes - self.decoder_bytes

    @property
    def size_bytes(self) -> int:
        return len(self.script.encode())


GLUE = """
def encode_weights(weights, curvature, cap_bytes, code_bytes):
    choices = {{name: Choice(*_KINDS[kind], step) for name, kind, step in _PLAN}}
    return filled(weights, choices, _TIES, _METADATA, curvature, cap_bytes, code_bytes)

_KINDS = {kinds}
_PLAN = {plan}
_TIES = {ties!r}
_METADATA = {metadata!r}
"""
COMMAND = """
if __name__ == "__main__":
    import sys, torch
    _, weights, curvature, out, *cap = sys.argv
    def read(path):
        with open(path, "rb") as file:
            return file.read()
    if weights.endswith(".safetensors"):
        weights, _ = read_tensors(read(weights))
    else:
        weights = torch.load(weights, map_location="cpu", weights_only=True)
    code = len(read(__file__)) + {beside}
    data = encode_weights(weights, read_curvatures(read(curvature)), int(*cap or [{cap}]), code)
    with open(out, "wb") as file:
        file.write(data)
    print(f"code {{code}} + artifact {{len(data)}} = {{code + len(data)}}")
"""


def make_bundle(plan: PackPlan) -> Bundle:
    """`python bundle.py WEIGHTS CURVATURE OUT [CAP]`; imported or executed, it defines
    `encode_weights(weights, curvature, cap_bytes, code_bytes)`, `read_curvatures(data)`,
    `Curvature(hessian, fisher, tokens, ...)` by position, and `read_weights(data)`.

    The plan's cap and the other files that it counts as code are in the script.
    """
    beside = sum(file.size_bytes for file in plan.limits.code) + plan.limits.margin_bytes
    text = _source(plan, COMMAND.format(beside=beside, cap=plan.limits.cap_bytes))
    return _bundle(plan, text, _wrapped(plan, text))


def inline_bundle(plan: PackPlan, script: str) -> Bundle:
    """The script with the bundle in front of its first statement, under the one name `bundle`: a
    dictionary of the functions that `make_bundle` tells of.
    """
    text = _source(plan, "")
    line = _wrapped(plan, text).replace("exec(", "bundle={};exec(", 1).rstrip("\n")
    line = f"{line[:-1]},bundle)"
    lines = script.splitlines(keepends=True)
    at = _first_statement(script)
    return _bundle(plan, text, "".join([*lines[:at], line, "\n", *lines[at:]]))


def _first_statement(script: str) -> int:
    """How many lines stand before it: the docstring and imports from __future__ stay first."""
    at = 0
    for node in parse(script, "the script to put the bundle into").body:
        future = isinstance(node, ast.ImportFrom) and node.module == "__future__"
        if not future and not (is_literal(node) and at == 0):
            break
        at = node.end_lineno or at
    return at


def _wrapped(plan: PackPlan, text: str) -> str:
    codecs = ("lzma", "brotli") if "brotli" in parts_of(plan.choices.values()) else ("lzma",)
    return wrap({ENTRY: text}, codecs=codecs).text


def _bundle(plan: PackPlan, text: str, script: str) -> Bundle:
    decoder = minified_loader(parts_of(plan.choices.values()))
    return Bundle(script, compressed_bytes(decoder), compressed_bytes(text))


def compressed_bytes(text: str) -> int:
    import brotli

    return len(brotli.compress(text.encode(), quality=11, lgwin=24))


def _source(plan: PackPlan, command: str) -> str:
    from packer.quantizers.choice import parse_choice

    choices = {name: parse_choice(text) for name, text in plan.choices.items()}
    parts = parts_of(plan.choices.values())
    classes = sorted({kind for one in choices.values() for kind in _classes(one.format)})
    never = [name for part in sorted(EVERYTHING - parts) for name in PARTS[part]]
    never += [name for part in sorted(EVERYTHING - parts) for name in ENCODER_PARTS[part]]
    never += [name for way in sorted(WAYS.keys() - _ways(choices)) for name in WAYS[way]]
    never += COMPILED
    entries = [*BUNDLE_ENTRIES, *classes, *(["read_tensors"] if command else [])]
    tree = extract((*DECODERS, *ENCODERS), entries, never)
    tree.body += ast.parse(_glue(plan, choices) + command).body
    return shorten(tree, (*ENTRIES, "read_curvatures", "encode_weights", "Curvature"))


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
    )


def _spell(choice: Choice) -> str:
    """The arguments of a Choice but for its step."""
    values = (choice.coder, choice.range_rule, choice.range_value, choice.reach, choice.prune)
    return f"({_spell_format(choice.format)},{','.join(map(repr, values))},{choice.rounding!r})"


def _spell_format(format: object) -> str:
    assert dataclasses.is_dataclass(format)
    fields = [getattr(format, one.name) for one in dataclasses.fields(format) if one.init]
    inner = [_spell_format(f) if dataclasses.is_dataclass(f) else repr(f) for f in fields]
    return f"{type(format).__name__}({','.join(inner)})"
