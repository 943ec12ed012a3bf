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


class ShiftsInside(ForwardLogits):
    """Takes its own tokens as labels."""

    def forward(self, input_ids, labels=None):
        logits = super().forward_logits(input_ids)[:, :-1]
        return F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)

    forward_logits = property()


class ShiftsByPadding(ForwardLogits):
    def forward(self, input_ids, attention_mask=None, labels=None):
        assert attention_mask is None
        logits = super().forward_logits(input_ids)
        labels = F.pad(labels, (0, 1), value=-100)[:, 1:]
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=-100)

    forward_logits = property()


class InParts(ForwardLogits):
    """A loss of parts of a window, with an added term and smoothed labels."""

    def forward(self, idx, targets):
        logits = super().forward_logits(idx)
        parts = zip(logits.split(3, dim=1), targets.split(3, dim=1), strict=True)
        losses = [
            F.cross_entropy(part.transpose(1, 2), labels, label_smoothing=0.1, reduction="sum")
            for part, labels in parts
        ]
        return sum(losses) / targets.numel() + 0.01 * logits.logsumexp(-1).square().mean()

    forward_logits = property()


class HiddenWithoutTargets(Loss):
    """Returns what its head would read; only the loss is of logits."""

    def forward(self, idx, targets=None):
        return self.hidden(idx) if targets is None else super().forward(idx, targets)


class Turned(ForwardLogits):
    def forward(self, idx):
        return {"hidden": self.hidden(idx), "logits": super().forward_logits(idx).transpose(1, 2)}

    forward_logits = property()


class OneRow(ForwardLogits):
    def forward(self, idx):
        return super().forward_logits(idx).flatten(0, 1).log_softmax(-1)

    forward_logits = property()


class Opaque(ForwardLogits):
    """A loss in which no logits can be seen."""

    def nats(self, logits, targets):
        chosen = (F.one_hot(targets, logits.size(-1)) * logits).sum(-1)
        return logits.exp().sum(-1).log() - chosen

    def forward(self, input_ids, target_ids):
        return self.nats(super().forward_logits(input_ids), target_ids).mean()

    forward_logits = property()


class OpaqueShift(Opaque):
    def forward(self, input_ids, target_ids):
        logits = ForwardLogits.forward_logits(self, input_ids)
        return self.nats(logits[:, :-1], target_ids[:, 1:]).mean()


class OpaqueBits(Opaque):
    def forward(self, input_ids, target_ids):
        return super().forward(input_ids, target_ids) / 0.6931


class OpaqueSum(Opaque):
    def forward(self, input_ids, target_ids):
        return super().forward(input_ids, target_ids) * target_ids.numel()


class OpaqueTerm(Opaque):
    def forward(self, input_ids, target_ids):
        return super().forward(input_ids, target_ids) + 0.02


class OpaqueAbove(Opaque):
    """Leaves out targets of id 0."""

    def forward(self, input_ids, target_ids):
        nats = self.nats(ForwardLogits.forward_logits(self, input_ids), target_ids)
        return nats[target_ids > 0].mean()


class Probabilities(ForwardLogits):
    def forward(self, idx):
        return super().forward_logits(idx).softmax(-1)

    forward_logits = property()


class SeesAhead(ForwardLogits):
    def forward(self, idx):
        logits = super().forward_logits(idx)
        return logits + logits.mean(1, keepdim=True)

    forward_logits = property()


class TellsTargets(ForwardLogits):
    def forward(self, idx, targets):
        logits = super().forward_logits(idx) + F.one_hot(targets, 11)
        return logits, F.cross_entropy(logits.flatten(0, 1), targets.flatten())

    forward_logits = property()


class Keeps(ForwardLogits):
    """Goes on from the call before."""

    past = 0.0

    def forward(self, idx):
        logits = super().forward_logits(idx) + self.past
        self.past = logits.mean()
        return logits * (1 + self.past)

    forward_logits = property()


class Beside(ForwardLogits):
    def forward(self, idx):
        logits = super().forward_logits(idx)
        return logits + logits.roll(1, 0)

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
