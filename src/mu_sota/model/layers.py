"""The layers of the MU model: block attention, cross-block attention, feed-forward, dynamic sensitivity, gated update.

Legend: B batch, T time, D state (block-major), N = 16 blocks, S values a block, H heads. `bias` is that of
`attention.attention_bias`.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import Cache
from transformers.modeling_layers import GradientCheckpointingLayer

from .attention import causal_attention, causal_attention_with_entropy, rotated
from .backend import (
    readable,
    use_attention_kernel,
    use_block_attention_kernel,
    use_feed_forward_kernel,
    use_one_product_for_all_blocks,
    use_turning_attention_kernel,
)
from .blocks import NUM_BLOCKS, block_diagonal, join_blocks, split_blocks
from .cache import ATTENTIONS
from .configuration import SENSITIVITY_HIDDEN, MuConfig
from .kernels import fused_attention, fused_block_attention, fused_feed_forward


@readable
class BlockLinear(nn.Module):
    """16 independent affine maps, one for each block: [B, T, N, in] to [B, T, N, out]."""

    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(NUM_BLOCKS, out_features, in_features))
        self.bias = nn.Parameter(torch.empty(NUM_BLOCKS, out_features))

    def forward(self, blocks: Tensor) -> Tensor:
        if use_one_product_for_all_blocks(blocks):
            product = F.linear(join_blocks(blocks), block_diagonal(self.weight), join_blocks(self.bias))
            return split_blocks(product)
        return torch.einsum("btni,noi->btno", blocks, self.weight) + self.bias


@readable
class BlockAttention(nn.Module):
    """16 independent causal self-attentions: each block is a head with projections of its own.

    Args:
        cache_layer: index of its layer in the key/value cache.
    """

    def __init__(self, config: MuConfig, cache_layer: int) -> None:
        super().__init__()
        self.cache_layer = cache_layer
        self.qkv = BlockLinear(config.block_size, 3 * config.block_size)
        self.out = BlockLinear(config.block_size, config.block_size)

    def forward(self, state: Tensor, bias: Tensor | None, cache: Cache | None, turns: Tensor | None = None) -> Tensor:
        blocks = split_blocks(state)
        if use_block_attention_kernel(blocks, bias, cache, self.qkv, self.out):
            weights = (self.qkv.weight, self.qkv.bias, self.out.weight, self.out.bias)
            return join_blocks(fused_block_attention(blocks, *weights, turns)[0])
        heads = self.qkv(blocks).unflatten(-1, (3, -1)).transpose(2, 3)  # [B, T, 3, N, S]
        if turns is not None:
            heads = rotated(heads, turns)
        query, key, value = heads.permute(2, 0, 3, 1, 4)  # [B, N, T, S] each
        if cache is not None:
            key, value = cache.update(key, value, self.cache_layer)
        if use_attention_kernel(heads, key, bias):
            mixed = fused_attention(heads)[0]
        else:
            mixed = causal_attention(query, key, value, bias).transpose(1, 2)
        return join_blocks(self.out(mixed))


@readable
class CrossBlockAttention(nn.Module):
    """One causal self-attention over full states, where the blocks meet; also returns the entropy of its rows.

    Args:
        cache_layer: index of its layer in the key/value cache.
    """

    def __init__(self, config: MuConfig, cache_layer: int) -> None:
        super().__init__()
        self.cache_layer = cache_layer
        self.num_heads = config.num_attention_heads
        self.qkv = nn.Linear(config.hidden_size, 3 * config.hidden_size)
        self.out = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self, state: Tensor, bias: Tensor | None, cache: Cache | None, turns: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """State [B, T, D] to the attention's output [B, T, D] and entropies in nats, the mean over heads, [B, T]."""
        heads = self.qkv(state).unflatten(-1, (3, self.num_heads, -1))  # [B, T, 3, H, D/H]
        if turns is not None and not use_turning_attention_kernel(heads, bias, cache):
            heads, turns = rotated(heads, turns), None
        query, key, value = heads.permute(2, 0, 3, 1, 4)  # [B, H, T, D/H] each
        if cache is not None:
            key, value = cache.update(key, value, self.cache_layer)
        if use_attention_kernel(heads, key, bias):
            mixed, entropy, _ = fused_attention(heads, turns)
        else:
            mixed, entropy = causal_attention_with_entropy(query, key, value, bias)
            mixed = mixed.transpose(1, 2)
        return self.out(mixed.flatten(-2)), entropy.mean(1)


@readable
class FeedForward(nn.Module):
    """Linear, GELU, dropout, linear."""

    def __init__(self, config: MuConfig) -> None:
        super().__init__()
        self.up = nn.Linear(config.hidden_size, config.intermediate_size)
        self.dropout = nn.Dropout(config.dropout)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, state: Tensor) -> Tensor:
        if use_feed_forward_kernel(state, self.up, self.dropout, self.down):
            rate = self.dropout.p if self.training else 0.0
            seed = torch.randint(2**62, ()) if rate else torch.zeros((), dtype=torch.int64)
            weights = (self.up.weight, self.up.bias, self.down.weight, self.down.bias)
            return fused_feed_forward(state, *weights, rate, seed)
        return self.down(self.dropout(F.gelu(self.up(state))))


@readable
class DynamicSensitivity(nn.Module):
    """How far each block of each token moves in this layer: a learned number, about 0 to 1.

    Its inputs are the token's affinity to the blocks, mixed by the block interaction, and the entropy of its cross-
    block attention, the mean over heads.
    """

    def __init__(self, config: MuConfig) -> None:
        super().__init__()
        self.interaction = nn.Parameter(torch.empty(NUM_BLOCKS, NUM_BLOCKS))
        self.up = nn.Linear(NUM_BLOCKS + 1, SENSITIVITY_HIDDEN)
        self.dropout = nn.Dropout(config.dropout)
        self.down = nn.Linear(SENSITIVITY_HIDDEN, NUM_BLOCKS)
        self.base = nn.Parameter(torch.empty(NUM_BLOCKS))

    def forward(self, affinity: Tensor, entropy: Tensor) -> Tensor:
        """Affinity [B, T, N] and entropy [B, T] to sensitivity [B, T, N]."""
        features = torch.cat([affinity @ self.interaction, entropy[..., None].to(affinity.dtype)], dim=-1)
        return self.base * torch.sigmoid(self.down(self.dropout(F.gelu(self.up(features)))))


@readable
class MuLayer(GradientCheckpointingLayer):
    """One layer: it computes a candidate state, and the sensitivity says how far each block moves towards it."""

    def __init__(self, config: MuConfig, index: int) -> None:
        super().__init__()
        self.block_norm: nn.LayerNorm | None = None
        if config.norm_placement == "before":
            self.block_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.block_attention = BlockAttention(config, ATTENTIONS * index)
        self.cross_attention = CrossBlockAttention(config, ATTENTIONS * index + 1)
        self.attention_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.feed_forward = FeedForward(config)
        self.feed_forward_norm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.sensitivity = DynamicSensitivity(config)

    def forward(
        self,
        state: Tensor,
        affinity: Tensor,
        bias: Tensor | None,
        cache: Cache | None = None,
        turns: tuple[Tensor | None, Tensor | None] = (None, None),
    ) -> Tensor:
        """State [B, T, D] and the tokens' affinities [B, T, N] to the next state [B, T, D].

        `turns` are those of `attention.rotary_turns` for block and for cross-block attention.
        """
        if self.block_norm is not None:
            attended = state + self.block_attention(self.block_norm(state), bias, cache, turns[0])
            crossed, entropy = self.cross_attention(self.attention_norm(attended), bias, cache, turns[1])
            candidate = attended + crossed
            candidate = candidate + self.feed_forward(self.feed_forward_norm(candidate))
        else:
            attended = self.block_attention(state, bias, cache, turns[0])
            crossed, entropy = self.cross_attention(attended, bias, cache, turns[1])
            candidate = self.attention_norm(attended + crossed)
            candidate = self.feed_forward_norm(candidate + self.feed_forward(candidate))
        sensitivity = self.sensitivity(affinity, entropy)
        return state + join_blocks(sensitivity[..., None] * split_blocks(candidate - state))
