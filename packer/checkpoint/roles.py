"""What each tensor is for, read from its name and shape; and selectors that speak of roles."""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import Enum
from fnmatch import fnmatchcase

from packer.errors import SelectorError


class Role(str, Enum):
    """What a tensor does in the model; the value is the spelling users write."""

    TOKEN_EMBEDDING = "token-embedding"
    HEAD = "head"
    ATTENTION = "attention"  # several of q, k, v, o in one tensor
    ATTENTION_Q = "attention-q"
    ATTENTION_K = "attention-k"
    ATTENTION_V = "attention-v"
    ATTENTION_O = "attention-o"
    MLP_IN = "mlp-in"
    MLP_OUT = "mlp-out"
    MLP_GATE = "mlp-gate"
    HASHED_BIGRAM = "hashed-bigram"
    VALUE_EMBEDDING = "value-embedding"
    GATE = "gate"
    CONTROL = "control"
    NORM = "norm"
    OTHER = "other"


@dataclass(frozen=True)
class TensorRole:
    """layer: index of the block the name puts the tensor into, None outside the blocks."""

    role: Role
    layer: int | None


@dataclass(frozen=True)
class Rule:
    """A role for names with one of these parts, for tensors of `min_rank` axes or more.

    parts: a regular expression that must match whole parts of the name, where dots separate parts.
    Rules are tried in order; the first that fits decides.
    """

    parts: str
    role: Role
    min_rank: int = 2


MLP_PART = r"(\w*mlp\w*|ffn?|feed_?forward|dense_?relu_?dense|experts\.\d+|intermediate)"
ATTENTION_PART = r"(\w*(attn|attention)\w*)"

# Sources: the names of the parameter-golf family (plain, banked, SwiGLU), GPT-2 and nanoGPT,
# modded-nanogpt and nanochat, Llama/Mistral/Qwen/Gemma as Hugging Face names them and as Meta does,
# Mixtral, GPT-NeoX, Phi, BERT and T5.
RULES = (
    Rule(r"ln(_?\w+)?|\w*norm\w*", Role.NORM, min_rank=0),
    Rule(r"(bi|tri|n)gram\w*", Role.HASHED_BIGRAM),
    Rule(r"(ve(_shared)?|ves|value_emb\w*)", Role.VALUE_EMBEDDING),
    Rule(r"mtp_heads?", Role.HEAD),
    Rule(r"(lm_head|embed_out|unembed\w*|output_projection|head)(\.weight)?$", Role.HEAD),
    Rule(r"^(model\.)?output\.weight$", Role.HEAD),
    Rule(
        r"(tok(en)?_emb\w*|wte|embed_tokens|word_emb\w*|embed_in|embeddings?|embed|emb|shared)"
        r"(\.weight)?$",
        Role.TOKEN_EMBEDDING,
    ),
    Rule(r"(mlp_)?(gate_?up|up_?gate)(_proj)?|w13", Role.MLP_IN),
    Rule(r"mlp_up_bank", Role.MLP_IN),
    Rule(r"mlp_down_bank", Role.MLP_OUT),
    Rule(r"mlp_gate_bank", Role.MLP_GATE),
    Rule(rf"{MLP_PART}\.(.+\.)?(c_gate|gate_proj|w_?gate|w1|wi_0|gate)", Role.MLP_GATE),
    Rule(rf"{ATTENTION_PART}\.(.+\.)?gate_proj", Role.GATE),
    Rule(r"gate_proj", Role.MLP_GATE),
    Rule(
        rf"{MLP_PART}\.(.+\.)?(c_fc\d?|fc(1|_in)?|up(_proj)?|w3|wi(_1)?|lin(ear)?_?1)", Role.MLP_IN
    ),
    Rule(r"dense_h_to_4h|up_proj|c_fc|fc1|fc_in|linear1|intermediate\.dense", Role.MLP_IN),
    Rule(
        rf"{MLP_PART}\.(.+\.)?((c_|out_)?proj|fc(2|_out)|down(_proj)?|w2|wo|lin(ear)?_?2)",
        Role.MLP_OUT,
    ),
    Rule(r"dense_4h_to_h|down_proj|fc2|fc_out|linear2", Role.MLP_OUT),
    Rule(r"\w*gates?(_\w+)?|router|block_sparse_moe\.gate", Role.GATE, min_rank=0),
    Rule(r"\w*(scales?|gains?|lambdas?|alphas?|mix(es)?|lanes?)", Role.CONTROL, min_rank=0),
    Rule(r"(skip_w|lane_w|parallel_w)\w*", Role.CONTROL, min_rank=0),
    Rule(r"(qo|kv|qkv|qkvo)_(bank|w)|w?qkvo?(_proj)?|query_key_value", Role.ATTENTION),
    Rule(r"c_attn|c_kv|c_qkv|kv_proj|to_qkv|to_kv", Role.ATTENTION),
    Rule(rf"{ATTENTION_PART}\.(.+\.)?in_proj(_weight)?", Role.ATTENTION),
    Rule(rf"c_q|q_proj|wq|to_q|query|{ATTENTION_PART}\.(.+\.)?q", Role.ATTENTION_Q),
    Rule(rf"c_k|k_proj|wk|to_k|key|{ATTENTION_PART}\.(.+\.)?k", Role.ATTENTION_K),
    Rule(rf"c_v|v_proj|wv|to_v|value|{ATTENTION_PART}\.(.+\.)?v", Role.ATTENTION_V),
    Rule(
        rf"{ATTENTION_PART}\.(.+\.)?((c_|out_|o_)?proj|dense|wo|o|to_out)|o_proj|wo|to_out",
        Role.ATTENTION_O,
    ),
    Rule(r"output\.dense", Role.MLP_OUT),
)
COMPILED = tuple(
    (re.compile(rf"(^|\.)({rule.parts})(\.|$)", re.IGNORECASE), rule) for rule in RULES
)
BLOCK = re.compile(r"(?:^|[._])(?:h|blocks?|layers?)[._]?(\d{1,6})(?:\.|$)")
SMALL_ELEMENTS = 65_536  # what the field keeps in 16 or 32 bits whatever it is

# Tables looked up by row, as opposed to the projections that follow some of them.
TABLE_ROLES = frozenset({Role.TOKEN_EMBEDDING, Role.HASHED_BIGRAM, Role.VALUE_EMBEDDING})
OTHER_TABLE = re.compile(r"(^|\.)(wpe|\w*pos\w*_emb\w*|token_type_emb\w*)(\.|$)")
# Tables that a formula makes, of angles, frequencies, slopes or exponents; Llama, GPT-NeoX, BLOOM,
# MPT, Mamba and sinusoidal positions.
FORMULA = re.compile(
    r"(^|[._])(inv_?freqs?|freqs?(_cis|_cos|_sin|_complex)?|timescales?|(cos|sin)(_cached|_cache)?"
    r"|(cos|sin)_?tables?|rope\w*|(alibi_?)?slopes?|alibi|sinusoid\w*|A_log)(\.|$)",
    re.IGNORECASE,
)
PROJECTION = re.compile(r"(^|\.)\w*(proj|linear)\w*(\.|$)")
LATE_KEYS = re.compile(r"late-k(?::([1-9]\d{0,5}))?")


def roles_of(
    shapes: Mapping[str, tuple[int, ...]], ties: Mapping[str, str] | None = None
) -> dict[str, TensorRole]:
    """The role and layer of every name, in the order given.

    ties: tied name -> kept name. A head that shares its values with a token embedding is one:
    which of the two names a file keeps is an accident of its order.
    """
    roles = {name: TensorRole(_role(name, shape), _layer(name)) for name, shape in shapes.items()}
    for tied, kept in (ties or {}).items():
        if kept in shapes and _role(tied, shapes[kept]) is Role.TOKEN_EMBEDDING:
            roles[kept] = TensorRole(Role.TOKEN_EMBEDDING, roles[kept].layer)
    return roles


def select(selector: str, roles: Mapping[str, TensorRole]) -> tuple[str, ...]:
    """The names a selector means, in the order of `roles`; never empty.

    In this order: a tensor's exact name; `embeddings`, every lookup table (their projections not);
    `late-k`, the key projection of the last block that has one, `late-k:N` of the last N; a role;
    a glob on names (case matters). Raises SelectorError when nothing matches.
    """
    if selector in roles:
        return (selector,)
    if selector == "embeddings":
        selected = tuple(name for name, role in roles.items() if _is_table(name, role.role))
    elif selector == "late-k" or selector.startswith("late-k:"):
        return _late_keys(selector, roles)
    elif selector in {role.value for role in Role}:
        selected = tuple(name for name, role in roles.items() if role.role.value == selector)
    else:
        selected = matching(selector, roles)
    if not selected:
        near = nearest(selector, [*roles, *_words(roles)])
        hint = f"the nearest that does is {near!r}" if near else "there are no tensors at all"
        raise SelectorError(f"{selector!r} matches no tensor; {hint}")
    return selected


def matching(glob: str, names: Iterable[str]) -> tuple[str, ...]:
    """The names a glob matches (case matters): the very name before all, and brackets as they are
    where they match nothing as a set of letters, for names such as layers[0].weight.
    """
    names = tuple(names)
    if glob in names:
        return (glob,)
    matched = tuple(name for name in names if fnmatchcase(name, glob))
    return matched or tuple(name for name in names if fnmatchcase(name, glob.replace("[", "[[]")))


def nearest(text: str, names: Iterable[str]) -> str | None:
    """The name most like a mistyped name or glob, None when there are no names."""
    letters = re.sub(r"[*?\[\]]", "", text)
    return next(iter(difflib.get_close_matches(letters, list(names), n=1, cutoff=0.0)), None)


def _role(name: str, shape: tuple[int, ...]) -> Role:
    for pattern, rule in COMPILED:
        if len(shape) >= rule.min_rank and pattern.search(name):
            return rule.role
    if len(shape) <= 1 and math.prod(shape) <= SMALL_ELEMENTS:
        return Role.CONTROL
    return Role.OTHER


def _layer(name: str) -> int | None:
    block = BLOCK.search(name)
    return int(block[1]) if block else None


def _is_table(name: str, role: Role) -> bool:
    if role in TABLE_ROLES:
        return PROJECTION.search(name) is None
    return role is Role.OTHER and OTHER_TABLE.search(name) is not None


def made_by_formula(name: str) -> bool:
    """Whether a name is that of a table of angles, frequencies or exponents."""
    return FORMULA.search(name) is not None


def _words(roles: Mapping[str, TensorRole]) -> list[str]:
    """The selectors other than names that match something here."""
    words = sorted({role.role.value for role in roles.values()})
    if Role.ATTENTION_K.value in words:
        words.append("late-k")
    if any(_is_table(name, role.role) for name, role in roles.items()):
        words.append("embeddings")
    return words


def _late_keys(selector: str, roles: Mapping[str, TensorRole]) -> tuple[str, ...]:
    spelled = LATE_KEYS.fullmatch(selector)
    if spelled is None:
        raise SelectorError(f"{selector!r}: after late-k: stands a number of blocks, 1 or more")
    wanted = int(spelled[1] or 1)
    keys = {name: role.layer for name, role in roles.items() if role.role is Role.ATTENTION_K}
    fused = [name for name, role in roles.items() if role.role is Role.ATTENTION]
    if not keys and fused:
        raise SelectorError(
            f"{selector!r}: here keys lie in one tensor with other weights and cannot be chosen "
            f"alone; name the whole tensor, such as {fused[-1]!r}"
        )
    layers = sorted({-1 if layer is None else layer for layer in keys.values()})
    if len(layers) < wanted:
        raise SelectorError(
            f"{selector!r} asks for the key projections of {wanted} blocks where {len(layers)} "
            "have one of their own"
        )
    chosen = set(layers[-wanted:])
    return tuple(n for n, layer in keys.items() if (-1 if layer is None else layer) in chosen)
