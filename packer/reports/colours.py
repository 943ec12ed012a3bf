"""Colours of pages and pictures by name, and one for every role: embeddings purple, attention blue,
MLP green, the rest in earth.
"""

from __future__ import annotations

from packer.checkpoint.roles import Role

INK, SOFT, LINE, PAPER, WASH = "#1d2733", "#5b6773", "#dfe4ea", "#ffffff", "#f6f8fa"
ACCENT, BOUND, CURVE = "#c2413b", "#6b7785", "#2f6fb5"  # none of them a role's colour
# On light paper -> (name, on dark paper); other colours are the same on both.
NAMED = {
    INK: ("ink", "#e6ebf1"),
    SOFT: ("soft", "#9aa7b5"),
    LINE: ("line", "#37424e"),
    PAPER: ("paper", "#161c23"),
    WASH: ("wash", "#0f1419"),
    ACCENT: ("accent", "#ff8a7d"),
    BOUND: ("bound", "#93a1b0"),
    CURVE: ("curve", "#7fb2ee"),
}
ROLE_COLOURS = {
    Role.TOKEN_EMBEDDING.value: "#76489e",
    Role.HEAD.value: "#9468b8",
    Role.HASHED_BIGRAM.value: "#a83f7f",
    Role.VALUE_EMBEDDING.value: "#c76d9b",
    Role.ATTENTION.value: "#2f6db5",
    Role.ATTENTION_Q.value: "#2f6db5",
    Role.ATTENTION_K.value: "#4d8acb",
    Role.ATTENTION_V.value: "#1d4f8a",
    Role.ATTENTION_O.value: "#77a8dc",
    Role.MLP_IN.value: "#23806f",
    Role.MLP_GATE.value: "#5cae9c",
    Role.MLP_OUT.value: "#2e9e63",
    Role.GATE.value: "#b07d21",
    Role.CONTROL.value: "#bd6a35",
    Role.NORM.value: "#d19a45",
    Role.OTHER.value: "#788593",
}


def in_order(roles: set[str]) -> list[str]:
    """Roles in the order of tables and legends."""
    return [role for role in ROLE_COLOURS if role in roles]
