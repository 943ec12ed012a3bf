"""A training script as strangers write them: FlashAttention on top, loss-returning forward."""

from __future__ import annotations

import os
from dataclasses import dataclass
from types import SimpleNamespace

import torch
import torch.nn.functional as F
from flash_attn_interface import flash_attn_func as flash_attn_3_func
from neighbour import WIDTH
from torch import nn


class Hyperparameters:
    seed = int(os.environ.get("NO_SUCH_SEED", 1337))


class Loss(nn.Module):
    def __init__(self, vocab_size: int, heads: int = 4, kv_heads: int = 2, cap: float = 15.0):
        super().__init__()
        self.heads, self.kv_heads, self.cap = heads, kv_heads, cap
        self.tok_emb = nn.Embedding(vocab_size, WIDTH)
        self.qkv = nn.Linear(WIDTH, WIDTH + 2 * WIDTH * kv_heads // heads, bias=False)

    def hidden(self, input_ids):
        batch, time = input_ids.shape
        x = self.tok_emb(input_ids)
        sizes = [self.heads, self.kv_heads, self.kv_heads]
        q, k, v = self.qkv(x).view(batch, time, sum(sizes), -1).split(sizes, dim=2)
        return x + flash_attn_3_func(q, k, v, causal=True).reshape(batch, time, WIDTH)

    def forward(self, input_ids, target_ids):
        x = F.rms_norm(self.hidden(input_ids), (WIDTH,))
        logits = F.linear(x.reshape(-1, WIDTH), self.tok_emb.weight)
        logits = self.cap * torch.tanh(logits / self.cap)
        return F.cross_entropy(logits.float(), target_ids.reshape(-1), reduction="mean")


class ForwardLogits(Loss):
    def forward_logits(self, input_ids):
        x = F.rms_norm(self.hidden(input_ids), (WIDTH,))
        return self.cap * torch.tanh(F.linear(x, self.tok_emb.weight) / self.cap)


class LogitsAndLoss(ForwardLogits):
    """Logits for all positions only with targets, as in generation code that saves work."""

    def forward(self, idx, targets=None):
        logits = super().forward_logits(idx)
        if targets is None:
            return logits[:, [-1]], None
        return logits, F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    forward_logits = property()


class Plain(ForwardLogits):
    def forward(self, idx):
        return SimpleNamespace(logits=super().forward_logits(idx))

    forward_logits = property()


class HandmadeLoss(ForwardLogits):
    def forward(self, input_ids, target_ids):
        logs = torch.log_softmax(super().forward_logits(input_ids), dim=-1)
        return -logs.gather(2, target_ids[..., None]).mean()

    forward_logits = property()


class Nothing(ForwardLogits):
    def forward(self, input_ids):
        return self.tok_emb.weight + 0 * input_ids.sum()

    forward_logits = property()


@dataclass
class Config:
    vocab_size: int
    heads: int = 2


class FromDataclass(Loss):
    def __init__(self, config: Config):
        super().__init__(config.vocab_size, heads=config.heads)


class FromNamespace(Loss):
    def __init__(self, config):
        super().__init__(config.vocab_size, heads=config.heads)


def factory(vocab_size, heads):
    return ForwardLogits(vocab_size, heads=heads)


if __name__ == "__main__":
    raise SystemExit("the main of a stranger's script must not run")
