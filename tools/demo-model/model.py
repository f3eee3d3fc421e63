"""The model: a small Llama, with the tensors and the order of rotated pairs that GGUF files have."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn


@dataclass(frozen=True)
class Config:
    vocabulary: int = 4096
    hidden: int = 256
    layers: int = 6
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 64
    feed_forward: int = 768
    context: int = 512
    epsilon: float = 1e-5
    rope_base: float = 10000.0


def rotations(config, length):
    """cos and sin [length, head_dim / 2] of every position and pair."""
    pairs = torch.arange(0, config.head_dim, 2) / config.head_dim
    angles = torch.outer(torch.arange(length), config.rope_base**-pairs)
    return angles.cos(), angles.sin()


def rotate(x, cos, sin):
    """Turns the pairs (2i, 2i + 1) of x [batch, heads, length, head_dim]."""
    even, odd = x[..., 0::2], x[..., 1::2]
    turned = torch.stack([even * cos - odd * sin, even * sin + odd * cos], dim=-1)
    return turned.flatten(-2).type_as(x)


class Layer(nn.Module):
    def __init__(self, config, dropout):
        super().__init__()
        c = self.config = config
        linear = lambda n, k: nn.Linear(k, n, bias=False)
        self.attn_norm = nn.RMSNorm(c.hidden, c.epsilon)
        self.attn_q = linear(c.heads * c.head_dim, c.hidden)
        self.attn_k = linear(c.kv_heads * c.head_dim, c.hidden)
        self.attn_v = linear(c.kv_heads * c.head_dim, c.hidden)
        self.attn_output = linear(c.hidden, c.heads * c.head_dim)
        self.ffn_norm = nn.RMSNorm(c.hidden, c.epsilon)
        self.ffn_gate = linear(c.feed_forward, c.hidden)
        self.ffn_up = linear(c.feed_forward, c.hidden)
        self.ffn_down = linear(c.hidden, c.feed_forward)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x, cos, sin):
        c = self.config
        batch, length, _ = x.shape
        split = lambda y, heads: y.view(batch, length, heads, c.head_dim).transpose(1, 2)
        h = self.attn_norm(x)
        q = rotate(split(self.attn_q(h), c.heads), cos, sin)
        k = rotate(split(self.attn_k(h), c.kv_heads), cos, sin)
        v = split(self.attn_v(h), c.kv_heads)
        group = c.heads // c.kv_heads
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        y = y.transpose(1, 2).reshape(batch, length, c.heads * c.head_dim)
        x = x + self.dropout(self.attn_output(y))
        h = self.ffn_norm(x)
        return x + self.dropout(self.ffn_down(F.silu(self.ffn_gate(h)) * self.ffn_up(h)))


class Llama(nn.Module):
    """Token ids [batch, length] to logits [batch, length, vocabulary]; embeddings are tied."""

    def __init__(self, config, dropout=0.0):
        super().__init__()
        self.config = config
        self.token_embd = nn.Embedding(config.vocabulary, config.hidden)
        self.blk = nn.ModuleList(Layer(config, dropout) for _ in range(config.layers))
        self.output_norm = nn.RMSNorm(config.hidden, config.epsilon)
        cos, sin = rotations(config, config.context)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)
        for name, weight in self.named_parameters():
            if weight.ndim == 2:
                # What is added to the residual stream starts small: there are 2 additions a layer.
                added = name.endswith(("attn_output.weight", "ffn_down.weight"))
                nn.init.normal_(weight, std=0.02 / (2 * config.layers) ** (0.5 * added))

    def forward(self, ids):
        length = ids.shape[1]
        cos, sin = self.cos[:length], self.sin[:length]
        x = self.token_embd(ids)
        for layer in self.blk:
            x = layer(x, cos, sin)
        return F.linear(self.output_norm(x), self.token_embd.weight)
