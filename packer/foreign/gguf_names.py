"""Names of llama.cpp's tensors as Hugging Face spells them, and what it did to their values."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from packer.errors import CheckpointError, listed

# Architectures whose models are built as Llama is. llama.cpp orders the rows of queries and keys
# of the first by pairs, as their original code rotates them, and adds 1 to the norms of the last.
INTERLEAVED = frozenset({"llama", "granite", "smollm3"})
SHIFTED = frozenset({"gemma", "gemma2", "gemma3"})
LIKE_LLAMA = INTERLEAVED | SHIFTED | {"qwen2", "qwen3"}
OUTER = {
    "token_embd": "model.embed_tokens",
    "output_norm": "model.norm",
    "output": "lm_head",
}
INNER = {
    "attn_norm": "input_layernorm",
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "attn_q_norm": "self_attn.q_norm",
    "attn_k_norm": "self_attn.k_norm",
    "ffn_norm": "post_attention_layernorm",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
# Of Gemma 2 and 3, which have four norms a layer.
FOUR_NORMS = {
    "post_attention_norm": "post_attention_layernorm",
    "ffn_norm": "pre_feedforward_layernorm",
    "post_ffw_norm": "post_feedforward_layernorm",
}
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
ROTARY = re.compile(r"(blk\.\d+\.)?rope_(freqs|factors_(long|short))\.weight")
BLOCK = re.compile(r"blk\.(\d{1,6})\.(\w+)\.(weight|bias)")


@dataclass(frozen=True)
class Place:
    """name: of a tensor here. heads, shift: as in GGUFTensor."""

    name: str
    heads: int = 0
    shift: float = 0.0


class HuggingFaceNames:
    """Of a file with these settings."""

    def __init__(self, settings: Mapping[str, Any]) -> None:
        self._architecture = str(settings.get("general.architecture", "unknown"))
        self._known = self._architecture in LIKE_LLAMA
        four = self._architecture in ("gemma2", "gemma3")
        self._inner = {**INNER, **FOUR_NORMS} if four else INNER
        heads = f"{self._architecture}.attention.head_count"
        queries = settings.get(heads)
        self._heads = {"attn_q": queries, "attn_k": settings.get(f"{heads}_kv", queries)}

    def place(self, name: str) -> Place | None:
        """Where a tensor goes; None for tables of rotary embeddings, which a model makes itself."""
        if not self._known:
            return Place(name)
        if ROTARY.fullmatch(name):
            return None
        shifted = self._architecture in SHIFTED and name.endswith("norm.weight")
        shift = 1.0 if shifted else 0.0
        stem, _, kind = name.rpartition(".")
        if stem in OUTER:
            return Place(f"{OUTER[stem]}.{kind}", shift=shift)
        block = BLOCK.fullmatch(name)
        if block is None or block[2] not in self._inner:
            return Place(name, shift=shift)
        renamed = f"model.layers.{block[1]}.{self._inner[block[2]]}.{block[3]}"
        interleaved = self._architecture in INTERLEAVED and block[2] in self._heads
        heads = _count(self._heads[block[2]], int(block[1]), name) if interleaved else 0
        return Place(renamed, heads, shift)

    def ties(self, names: Iterable[str]) -> dict[str, str]:
        """The head that shares the token embedding, where the file has none of its own."""
        present = set(names)
        tied = self._known and EMBEDDING in present and HEAD not in present
        return {HEAD: EMBEDDING} if tied else {}

    def notes(self, names: Iterable[str]) -> list[str]:
        """What is not as in a Hugging Face folder, in words for people. names: in the file."""
        if not self._known:
            return [
                f"architecture {self._architecture!r} is not built as Llama is: its tensors keep "
                "the names and the order of rows that llama.cpp gives them"
            ]
        places = {name: self.place(name) for name in names}
        left = [name for name, place in places.items() if place is None]
        kept = [name for name, place in places.items() if place and place.name == name]
        notes = [f"left out, tables that the model makes itself: {listed(left)}"] if left else []
        if kept:
            notes.append(f"names of llama.cpp that Hugging Face spells otherwise: {listed(kept)}")
        return notes


def _count(value: Any, layer: int, name: str) -> int:
    """A layer's number of heads; value: for all layers, or one for each.

    Raises CheckpointError: there is none.
    """
    count = value
    if isinstance(value, np.ndarray):
        count = int(value[layer]) if layer < len(value) else None
    if not isinstance(count, int) or count < 1:
        raise CheckpointError(
            f"the setting attention.head_count is {count!r}, so that the rows of {name} cannot be "
            "put into order; copy or download the file again"
        )
    return count
