"""The companion model: a plain GPT with a switch for every part of the contest's 11-layer family.

The names of its state dict are those of that family, so such checkpoints load with `strict=True`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .attention import Attend, Attention, rms_norm, rope_tables, stream_dtype
from .layers import (
    ACTIVATIONS,
    MLP,
    BigramHash,
    Block,
    SmearGate,
    ValueEmbedding,
    layer_norm_scale,
)
from .past import Past

# The embedding of a position looks two tokens back: a pair of tokens, and the one before by a gate.
TOKENS_EMBEDDED = 3

MAX_MLP_MULT = 1_000


@dataclass(frozen=True)
class GPTConfig:
    """Everything that decides the model; the first five have no default.

    Raises ValueError: a setting that cannot be, with its name, the value and the values allowed.
    """

    vocab_size: int
    num_layers: int
    model_dim: int
    num_heads: int
    num_kv_heads: int
    mlp_mult: float = 3.0  # hidden width of the MLP over model_dim
    activation: str = "relu_squared"  # or leaky_relu_squared
    tie_embeddings: bool = True
    logit_softcap: float = 30.0  # logits = cap * tanh(logits / cap); 0 leaves them alone
    rope_base: float = 10_000.0
    rope_dims: int = 0  # leading dimensions of a head that rotate; 0 means all
    rope_train_length: int = 1024  # beyond it the base is rescaled; 0 never rescales it
    xsa_last_n: int = 0
    ln_scale: bool = False  # block norms times 1 / sqrt(layer + 1)
    smear_gate: bool = False
    bigram_vocab_size: int = 0  # rows of the hashed bigram table; 0 leaves it out
    bigram_dim: int = 128
    value_embedding_dim: int = 0  # 0 leaves value embeddings out
    value_embedding_layers: tuple[int, ...] = ()
    u_net_skips: bool = True
    qk_norm: bool = True
    q_gain_init: float = 1.5
    resid_mix: bool = True
    resid_mix_phase: bool = False  # start from a share of the stream that rises with depth (#569)
    output_scales: bool = True  # attn_scale and mlp_scale
    value_residual: bool = False  # VRL: later layers add layer 0's values through a sigmoid gate
    value_residual_init: float = -1.5  # of the gate, before the sigmoid
    memory_tokens: int = 0  # learned positions before every window (#352); 0 leaves them out
    backout: bool = False  # subtract a learned share of the mid-depth stream before the head
    orthogonal_init: bool = True
    scaled_projections: bool = (
        False  # bigram and value projections start 1 / sqrt(2 layers) as large
    )
    embedding_init_std: float = 0.005

    def __post_init__(self) -> None:
        object.__setattr__(self, "value_embedding_layers", tuple(self.value_embedding_layers))
        self._check_sizes()
        self._check_parts()

    def _check_sizes(self) -> None:
        for name in ("vocab_size", "num_layers", "model_dim", "num_heads", "num_kv_heads"):
            require(getattr(self, name) > 0, name, getattr(self, name), "a positive number")
        require(
            self.model_dim % self.num_heads == 0,
            "num_heads",
            self.num_heads,
            f"a divisor of model_dim = {self.model_dim}",
        )
        require(
            self.num_heads % self.num_kv_heads == 0,
            "num_kv_heads",
            self.num_kv_heads,
            f"a divisor of num_heads = {self.num_heads}",
        )
        require(
            0 < self.mlp_mult <= MAX_MLP_MULT and self.mlp_dim > 0,
            "mlp_mult",
            self.mlp_mult,
            f"a positive number up to {MAX_MLP_MULT:,}",
        )
        rotating = self.rotating_dims
        require(
            4 <= rotating <= self.head_dim and rotating % 2 == 0,
            "rope_dims",
            self.rope_dims,
            f"0 (the whole head) or an even number from 4 to the head's {self.head_dim}",
        )
        require(
            self.rope_train_length >= 0,
            "rope_train_length",
            self.rope_train_length,
            "0 (never rescaled) or a positive number",
        )
        require(self.memory_tokens >= 0, "memory_tokens", self.memory_tokens, "0 or more")

    def _check_parts(self) -> None:
        require(
            self.activation in ACTIVATIONS,
            "activation",
            self.activation,
            " or ".join(ACTIVATIONS),
        )
        require(
            self.resid_mix or not self.resid_mix_phase,
            "resid_mix_phase",
            self.resid_mix_phase,
            "left out without resid_mix",
        )
        require(self.logit_softcap >= 0, "logit_softcap", self.logit_softcap, "0 or more")
        require(
            0 <= self.xsa_last_n <= self.num_layers,
            "xsa_last_n",
            self.xsa_last_n,
            f"0 to num_layers = {self.num_layers}",
        )
        require(
            self.bigram_vocab_size != 1 and self.bigram_vocab_size >= 0,
            "bigram_vocab_size",
            self.bigram_vocab_size,
            "0, or at least 2 rows",
        )
        layers = self.value_embedding_layers
        require(
            len(set(layers)) == len(layers) and all(0 <= i < self.num_layers for i in layers),
            "value_embedding_layers",
            layers,
            f"different layers from 0 to {self.num_layers - 1}",
        )
        require(
            (self.value_embedding_dim > 0) == bool(layers),
            "value_embedding_layers",
            layers,
            f"layers exactly when value_embedding_dim ({self.value_embedding_dim}) is above 0",
        )

    @property
    def head_dim(self) -> int:
        return self.model_dim // self.num_heads

    @property
    def kv_dim(self) -> int:
        return self.head_dim * self.num_kv_heads

    @property
    def mlp_dim(self) -> int:
        return int(self.mlp_mult * self.model_dim)

    @property
    def rotating_dims(self) -> int:
        return self.rope_dims or self.head_dim

    @property
    def num_skips(self) -> int:
        """Encoder layers are the first half; each hands its output to one decoder layer."""
        return self.num_layers // 2 if self.u_net_skips else 0


def require(holds: bool, name: str, value: object, allowed: str) -> None:
    if not holds:
        raise ValueError(f"{name} = {value!r} cannot be: it must be {allowed}")


class GPT(nn.Module):
    """Tokens [batch, time] to logits [batch, time, vocab]."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config
        c = config
        self.tok_emb = nn.Embedding(c.vocab_size, c.model_dim)
        self.bigram = None
        if c.bigram_vocab_size:
            self.bigram = BigramHash(c.bigram_vocab_size, c.bigram_dim, c.model_dim)
        self.smear = SmearGate(c.model_dim) if c.smear_gate else None
        self.memory = None
        if c.memory_tokens:
            self.memory = nn.Parameter(torch.empty(c.memory_tokens, c.model_dim))
        self.skip_weights = None
        if c.num_skips:
            self.skip_weights = nn.Parameter(torch.ones(c.num_skips, c.model_dim))
        self.blocks = nn.ModuleList(_block(c, layer) for layer in range(c.num_layers))
        self.ve_shared, self.ve_layer_scales = None, None
        if c.value_embedding_dim:
            self.ve_shared = ValueEmbedding(c.vocab_size, c.value_embedding_dim, c.kv_dim)
            self.ve_layer_scales = nn.ParameterList(
                nn.Parameter(torch.ones(1)) for _ in c.value_embedding_layers
            )
        self.backout_lambda = nn.Parameter(torch.full((1,), 0.2)) if c.backout else None
        self.lm_head = None
        if not c.tie_embeddings:
            self.lm_head = nn.Linear(c.model_dim, c.vocab_size, bias=False)
        self.reset_parameters()

    @property
    def attend(self) -> Attend:
        """The attention of every block."""
        block = self.blocks[0]
        assert isinstance(block, Block)
        return block.attn.attend

    def reset_parameters(self) -> None:
        """Draw the matrices anew from torch's global generator; control tensors keep their start.

        Outputs of attention, MLP and an untied head start at zero, so that the first forward is
        the embedding alone; everything else is orthogonal. The projection of value embeddings
        starts at zero unless projections are scaled.
        """
        scaled = self.config.scaled_projections
        nn.init.normal_(self.tok_emb.weight, std=self.config.embedding_init_std)
        if self.memory is not None:
            nn.init.normal_(self.memory, std=self.config.embedding_init_std)
        zero = [self.lm_head]
        for block in self.blocks:
            assert isinstance(block, Block)
            zero += [block.attn.proj, block.mlp.proj]
        if self.bigram is not None:
            # Only one of the two factors may be zero, or neither would ever see a gradient.
            nn.init.zeros_(self.bigram.embed.weight)
        if self.ve_shared is not None:
            nn.init.normal_(self.ve_shared.embed.weight, std=0.01)
            zero += [] if scaled else [self.ve_shared.proj]
        if self.config.orthogonal_init:
            for module in self.modules():
                if isinstance(module, nn.Linear):
                    nn.init.orthogonal_(module.weight)
        for linear in zero:
            if linear is not None:
                nn.init.zeros_(linear.weight)
        for table in (self.bigram, self.ve_shared) if scaled else ():
            if table is not None and table.proj is not None:
                table.proj.weight.data /= math.sqrt(2 * self.config.num_layers)

    def forward(self, tokens: Tensor, targets: Tensor | None = None) -> Tensor:
        """Logits [batch, time, vocab], or with `targets` [batch, time] the mean loss in nats."""
        logits = self.tail_logits(tokens, tokens.size(1))
        if targets is None:
            return logits
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())

    def tail_logits(self, tokens: Tensor, count: int) -> Tensor:
        """Logits [batch, count, vocab] of the last `count` positions of tokens [batch, time].

        The last block's queries, its MLP and the head are computed at those positions only.
        """
        return self._head(self._stream(tokens, count))

    def start(self, length: int) -> Past:
        """What `next_logits` keeps while it goes through windows of `length` tokens."""
        c, device = self.config, self.tok_emb.weight.device
        length += c.memory_tokens
        rope = rope_tables(length, c.rotating_dims, c.rope_base, c.rope_train_length, device)
        return Past(c.num_layers, length, rope)

    def next_logits(self, tokens: Tensor, past: Past) -> Tensor:
        """Logits [batch, vocab] after the last of tokens [batch, time].

        Only that position is computed; `past` has been through all before it and takes it in. The
        same numbers, but for rounding, as `forward` has there for the whole window.
        Raises ValueError: `past` has been through more or fewer positions.
        """
        seen = max(past.filled - self.config.memory_tokens, 0)
        if seen != tokens.size(1) - 1:
            raise ValueError(f"{tokens.size(1)} tokens, and {seen} of them were seen")
        if self.memory is not None and not past.filled:
            for x in torch.split(self._remembered(self.memory, len(tokens)), 1, dim=1):
                self._through_blocks(x, {}, past.rope_here(), 1, past)
        x = self._embed(tokens[:, -TOKENS_EMBEDDED:])[:, -1:]
        values = self._embedded_values(tokens[:, -1:])
        return self._head(self._through_blocks(x, values, past.rope_here(), 1, past))[:, -1]

    def _head(self, x: Tensor) -> Tensor:
        """Logits of a residual stream [batch, time, dim]."""
        x = rms_norm(x)
        head = self.tok_emb if self.lm_head is None else self.lm_head
        logits = F.linear(x, head.weight)
        cap = self.config.logit_softcap
        return cap * torch.tanh(logits / cap) if cap else logits

    def _stream(self, tokens: Tensor, last: int) -> Tensor:
        """The residual stream [batch, last, dim] after all blocks, before the final norm."""
        c, time = self.config, self.config.memory_tokens + tokens.size(1)
        rope = rope_tables(time, c.rotating_dims, c.rope_base, c.rope_train_length, tokens.device)
        x, values = self._embed(tokens), self._embedded_values(tokens)
        if self.memory is not None:
            x = torch.cat((self._remembered(self.memory, len(tokens)).to(x.dtype), x), dim=1)
            values = {i: F.pad(v, (0, 0, c.memory_tokens, 0)) for i, v in values.items()}
        return self._through_blocks(x, values, rope, last)

    @staticmethod
    def _remembered(memory: Tensor, batch: int) -> Tensor:
        """The learned positions that come before every window, [batch, memory_tokens, dim]."""
        return rms_norm(memory).expand(batch, -1, -1)

    def _through_blocks(
        self,
        x: Tensor,
        embedded_values: dict[int, Tensor],
        rope: tuple[Tensor, Tensor],
        last: int,
        past: Past | None = None,
    ) -> Tensor:
        """As `_stream`, from embeddings [batch, time, dim]; with `past` of one position alone."""
        c, time, x0 = self.config, x.size(1), x
        skips: list[Tensor] = []
        first_values, middle = None, None
        for layer, block in enumerate(self.blocks):
            decoding = layer - c.num_layers // 2
            if skips and decoding >= 0 and self.skip_weights is not None:
                x = torch.addcmul(x, self.skip_weights[decoding].to(x.dtype), skips.pop())
            needed = last if layer == c.num_layers - 1 else time
            before = None if past is None else past.layers[layer]
            x, values = block(x, x0, rope, embedded_values.get(layer), first_values, needed, before)
            if layer == 0:
                first_values = values
            if decoding < 0:
                skips.append(x)
            if layer == c.num_layers // 2:
                middle = x
        if self.backout_lambda is not None and middle is not None:
            x = x - self.backout_lambda.to(x.dtype) * middle[:, -last:]
        return x

    def _embed(self, tokens: Tensor) -> Tensor:
        x: Tensor = self.tok_emb(tokens)
        if self.bigram is not None:
            x = x + self.bigram(tokens)
        x = rms_norm(x).to(stream_dtype(x))
        return x if self.smear is None else self.smear(x)

    def _embedded_values(self, tokens: Tensor) -> dict[int, Tensor]:
        """Value embedding [batch, time, kv_dim] of each layer that has one."""
        if self.ve_shared is None or self.ve_layer_scales is None:
            return {}
        shared = self.ve_shared(tokens)
        layers = self.config.value_embedding_layers
        return {
            layer: shared * scale for layer, scale in zip(layers, self.ve_layer_scales, strict=True)
        }


def _block(c: GPTConfig, layer: int) -> Block:
    attention = Attention(
        c.model_dim,
        c.num_heads,
        c.num_kv_heads,
        q_gain_init=c.q_gain_init if c.qk_norm else None,
        xsa=layer >= c.num_layers - c.xsa_last_n,
        # Layer 0 has no earlier values to mix in.
        value_residual_init=c.value_residual_init if c.value_residual and layer > 0 else None,
    )
    return Block(
        c.model_dim,
        attention,
        MLP(c.model_dim, c.mlp_dim, c.activation),
        norm_scale=layer_norm_scale(layer) if c.ln_scale else 1.0,
        resid_mix=_resid_mix_start(c, layer),
        output_scales=c.output_scales,
    )


def _resid_mix_start(c: GPTConfig, layer: int) -> float | None:
    """The share of the stream that a block starts with beside its embedding; None: no mixing."""
    if not c.resid_mix_phase:
        return 1.0 if c.resid_mix else None
    return 1 / (1 + math.exp(-3 * (layer / max(c.num_layers - 1, 1) - 0.5)))


def model_of(config: GPTConfig, weights: Mapping[str, Tensor]) -> GPT:
    """A model in evaluation mode whose parameters are these weights, on their device, not copied.

    Raises RuntimeError: names or shapes of another model.
    """
    with torch.device("meta"):  # nothing is drawn only to be replaced
        model = GPT(config)
    model.load_state_dict(dict(weights), assign=True)
    return model.eval()
