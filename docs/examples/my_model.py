"""A small GPT with a mistake: the attention of its fourth layer has no mask. The example of docs/leakcheck.md."""

import torch
from torch import nn
from torch.nn import functional as F


class Attention(nn.Module):
    def __init__(self, causal):
        super().__init__()
        self.qkv, self.out, self.causal = nn.Linear(32, 96), nn.Linear(32, 32), causal

    def forward(self, x):
        q, k, v = self.qkv(x).chunk(3, dim=-1)
        return self.out(F.scaled_dot_product_attention(q, k, v, is_causal=self.causal))


class Block(nn.Module):
    def __init__(self, causal):
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(32), Attention(causal)
        self.mlp = nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 128), nn.GELU(), nn.Linear(128, 32))

    def forward(self, x):
        x = x + self.attention(self.norm(x))
        return x + self.mlp(x)


class GPT(nn.Module):
    def __init__(self, layers):
        super().__init__()
        self.tokens, self.positions = nn.Embedding(100, 32), nn.Embedding(64, 32)
        self.layers = nn.ModuleList(Block(causal=number != 3) for number in range(layers))
        self.norm, self.head = nn.LayerNorm(32), nn.Linear(32, 100)

    def forward(self, ids):
        x = self.tokens(ids) + self.positions(torch.arange(ids.shape[1]))
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


def build(layers=6):
    return GPT(layers)
