"""The MU model as its specification (shared/spec/model.md) tells it, in plain PyTorch, with no thought of speed.

A token's state is an M x M matrix. Blocks are cut out of it by row and column ranges, every block has an attention
module of its own, and every attention matrix is held. `copy_weights` is the only code here that knows `mu_sota`.

Legend: B batch, T time, M side of the matrix, D = M * M, S values a block.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

GRID = (
    ("I", "S", "C1", "C2"),
    ("R1", "R2", "T", "K"),
    ("G", "M", "D", "F"),
    ("P", "E", "A", "X"),
)


def block_ranges(matrix_size: int) -> list[tuple[int, int, int, int]]:
    """First row, end row, first column, end column of the 16 blocks in reading order."""
    side = matrix_size // 4
    ranges = []
    for grid_row in range(4):
        for grid_column in range(4):
            row, column = grid_row * side, grid_column * side
            ranges.append((row, row + side, column, column + side))
    return ranges


def cut(matrix: Tensor, block: int) -> Tensor:
    """The values of one block of [..., M, M], row by row: [..., S]."""
    top, bottom, left, right = block_ranges(matrix.shape[-1])[block]
    return matrix[..., top:bottom, left:right].flatten(-2)


def concatenate(matrix: Tensor) -> Tensor:
    """[..., M, M] to [..., D] block-major."""
    return torch.cat([cut(matrix, block) for block in range(16)], dim=-1)


def place(state: Tensor, matrix_size: int) -> Tensor:
    """[..., D] block-major to [..., M, M]."""
    matrix = torch.full((*state.shape[:-1], matrix_size, matrix_size), float("nan"), dtype=state.dtype)
    size, side = state.shape[-1] // 16, matrix_size // 4
    for block, (top, bottom, left, right) in enumerate(block_ranges(matrix_size)):
        values = state[..., block * size : (block + 1) * size]
        for row in range(side):
            matrix[..., top + row, left:right] = values[..., row * side : (row + 1) * side]
        assert matrix[..., top:bottom, left:right].shape[-2:] == (side, side)
    return matrix


def hash_of_pair(previous: int, token: int, rows: int) -> int:
    """Which row of the table stands for a token after another, in whole numbers of Python; -1 is no token."""
    mixed = (previous + 1) * 2654435761 + (token + 1) * 2246822519
    mixed ^= mixed >> 15
    return (mixed ^ (mixed >> 29)) % rows


def token_after_last_match(text: list[int], length: int) -> int | None:
    """What followed when the last `length` tokens of a text last occurred in it; None if they never did."""
    if length > len(text):
        return None
    for end in range(len(text) - 1, length - 1, -1):
        if text[end - length : end] == text[-length:]:
            return text[end]
    return None


class ReferenceOutput(NamedTuple):
    """What the reference computed, with its insides."""

    logits: Tensor  # [B, T, V]
    states: list[Tensor]  # [B, T, M, M]: before the first layer, and after each
    entropies: list[Tensor]  # [B, T] for each layer
    sensitivities: list[Tensor]  # [B, T, 16] for each layer


def turned(values: Tensor) -> Tensor:
    """Rotary positions (Su et al. 2021, eq. 13): pair i of a head's values at position t, as a complex number, times
    exp(1j t theta_i); value i is paired with value i + K // 2. [B, T, K]."""
    size = values.shape[-1]
    pairs = size // 2
    result = values.clone()
    for position in range(values.shape[1]):
        for pair in range(pairs):
            angle = torch.tensor(position * 10_000 ** (-pair / pairs), dtype=torch.float64)
            number = torch.complex(values[:, position, pair].double(), values[:, position, pair + pairs].double())
            number = number * torch.polar(torch.ones_like(angle), angle)
            result[:, position, pair], result[:, position, pair + pairs] = number.real, number.imag
    return result


def rotary_attention(module: nn.MultiheadAttention, inputs: Tensor) -> tuple[Tensor, Tensor]:
    """What an attention module computes with rotary positions, and its weights [B, H, T, T], head by head."""
    assert module.in_proj_weight is not None
    query, key, value = (inputs @ module.in_proj_weight.T + module.in_proj_bias).chunk(3, dim=-1)
    length, size = inputs.shape[1], inputs.shape[-1] // module.num_heads
    outputs, weights = [], []
    for head in range(module.num_heads):
        part = slice(head * size, (head + 1) * size)
        scores = turned(query[..., part]) @ turned(key[..., part]).transpose(1, 2) / size**0.5
        scores = scores.masked_fill(torch.ones(length, length, dtype=torch.bool).triu(1), float("-inf"))
        weights.append(scores.softmax(-1))
        outputs.append(weights[-1] @ value[..., part])
    return module.out_proj(torch.cat(outputs, dim=-1)), torch.stack(weights, dim=1)


class ReferenceLayer(nn.Module):
    """One layer, step by step as numbered in the specification; or with rotary positions, or with norms before."""

    def __init__(
        self, vocab_size: int, matrix_size: int, heads: int, inner: int, dropout: float, form: tuple[str, str]
    ) -> None:
        super().__init__()
        self.rotary, self.norm_first = form[0] == "rotary", form[1] == "before"
        state_size = matrix_size * matrix_size
        block_size = state_size // 16
        self.block_attentions = nn.ModuleList(nn.MultiheadAttention(block_size, 1, batch_first=True) for _ in range(16))
        self.cross_attention = nn.MultiheadAttention(state_size, heads, batch_first=True)
        self.norm_0 = nn.LayerNorm(state_size) if self.norm_first else None
        self.norm_1 = nn.LayerNorm(state_size)
        self.feed_forward = nn.Sequential(
            nn.Linear(state_size, inner), nn.GELU(), nn.Dropout(dropout), nn.Linear(inner, state_size)
        )
        self.norm_2 = nn.LayerNorm(state_size)
        self.affinity = nn.Embedding(vocab_size, 16)
        self.interaction = nn.Parameter(torch.zeros(16, 16))
        self.network = nn.Sequential(nn.Linear(17, 32), nn.GELU(), nn.Dropout(dropout), nn.Linear(32, 16), nn.Sigmoid())
        self.base = nn.Parameter(torch.zeros(16))

    def forward(self, input_ids: Tensor, matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Ids [B, T] and states [B, T, M, M] to new states, entropy [B, T] and sensitivity [B, T, 16]."""
        length = input_ids.shape[1]
        hidden = torch.ones(length, length, dtype=torch.bool).triu(diagonal=1)  # True: may not be seen

        # 1. Block attention.
        read = matrix
        if self.norm_0 is not None:
            read = place(self.norm_0(concatenate(matrix)), matrix.shape[-1])
        outputs = []
        for block, attention in enumerate(self.block_attentions):
            assert isinstance(attention, nn.MultiheadAttention)
            values = cut(read, block)
            if self.rotary:
                output, _ = rotary_attention(attention, values)
            else:
                output, _ = attention(values, values, values, attn_mask=hidden, need_weights=False)
            outputs.append(output)

        # 2. Cross-block attention.
        joined = torch.cat(outputs, dim=-1)
        if self.norm_first:
            joined = concatenate(matrix) + joined
        read = self.norm_1(joined) if self.norm_first else joined
        if self.rotary:
            crossed, weights = rotary_attention(self.cross_attention, read)
        else:
            crossed, weights = self.cross_attention(
                read, read, read, attn_mask=hidden, need_weights=True, average_attn_weights=False
            )

        # 3. Feed-forward.
        if self.norm_first:
            output = joined + crossed
            output = output + self.feed_forward(self.norm_2(output))
        else:
            output = self.norm_1(joined + crossed)
            output = self.norm_2(output + self.feed_forward(output))

        # 4. Dynamic sensitivity. Entropy in nats of each head's row, averaged over the heads; 0 log 0 is 0.
        entropy = -(weights * weights.clamp(min=torch.finfo(weights.dtype).tiny).log()).sum(-1).mean(1)
        affinity = self.affinity(input_ids) @ self.interaction
        sensitivity = self.base * self.network(torch.cat([affinity, entropy[..., None]], dim=-1))

        # 5. Gated update, block by block.
        output_matrix = place(output, matrix.shape[-1])
        updated = matrix.clone()
        for block, (top, bottom, left, right) in enumerate(block_ranges(matrix.shape[-1])):
            old, new = matrix[..., top:bottom, left:right], output_matrix[..., top:bottom, left:right]
            updated[..., top:bottom, left:right] = old + sensitivity[..., block, None, None] * (new - old)
        return updated, entropy, sensitivity


class ReferenceMu(nn.Module):
    """The whole model; embeddings, final LayerNorm and output projection know the state in matrix order."""

    def __init__(
        self,
        vocab_size: int,
        matrix_size: int,
        layers: int,
        heads: int,
        inner: int,
        positions: int,
        dropout: float = 0.0,
        form: tuple[str, str] = ("learned", "after"),
        pair_rows: int = 0,
        induction: int = 0,
        sources: bool = False,
    ) -> None:
        super().__init__()
        self.matrix_size = matrix_size
        state_size = matrix_size * matrix_size
        self.tokens = nn.Embedding(vocab_size, state_size)
        self.positions = nn.Embedding(positions, state_size) if form[0] == "learned" else None
        self.pairs = nn.Embedding(pair_rows, state_size) if pair_rows else None
        self.induction = nn.ModuleList(nn.Embedding(vocab_size, state_size) for _ in range(induction))
        rows = {"P": positions, "C1": vocab_size, "C2": vocab_size, "G": vocab_size} if sources else {}
        self.sources = nn.ModuleDict({name: nn.Embedding(count, state_size // 16) for name, count in rows.items()})
        self.layers = nn.ModuleList(
            ReferenceLayer(vocab_size, matrix_size, heads, inner, dropout, form) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(state_size)
        self.head = nn.Linear(state_size, vocab_size)

    def forward(self, input_ids: Tensor) -> ReferenceOutput:
        length = input_ids.shape[1]
        flat = self.tokens(input_ids)
        if self.positions is not None:
            flat = flat + self.positions(torch.arange(length))
        if self.pairs is not None:
            hashes = [
                [hash_of_pair(text[t - 1] if t else -1, text[t], len(self.pairs.weight)) for t in range(length)]
                for text in input_ids.tolist()
            ]
            flat = flat + self.pairs(torch.tensor(hashes))
        for length_of_match, table in enumerate(self.induction, start=1):
            nothing = flat.new_zeros(flat.shape[-1])
            found = [
                token_after_last_match(text[: t + 1], length_of_match)
                for text in input_ids.tolist()
                for t in range(length)
            ]
            rows = [nothing if follower is None else table(torch.tensor(follower)) for follower in found]
            flat = flat + torch.stack(rows).unflatten(0, (-1, length))
        matrix = flat.unflatten(-1, (self.matrix_size, self.matrix_size))
        if self.sources:
            matrix = torch.stack([self.with_sources(*each) for each in zip(input_ids, matrix, strict=True)])
        states, entropies, sensitivities = [matrix], [], []
        for layer in self.layers:
            matrix, entropy, sensitivity = layer(input_ids, matrix)
            states.append(matrix)
            entropies.append(entropy)
            sensitivities.append(sensitivity)
        return ReferenceOutput(self.head(self.norm(matrix.flatten(-2))), states, entropies, sensitivities)

    def with_sources(self, text: Tensor, matrix: Tensor) -> Tensor:
        """The states of one text, [T, M, M], with what four blocks receive."""
        matrix = matrix.clone()
        tables: dict[str, Any] = {name: table.weight for name, table in self.sources.items()}
        for t in range(len(text)):
            received = {"P": tables["P"][t]}
            if t:
                received["C1"] = tables["C1"][text[t - 1]]
            for name, decay in (("C2", 0.99), ("G", 0.98)):
                weights = [decay ** (t - u) for u in range(t + 1)]
                rows = [weights[u] * tables[name][text[u]] for u in range(t + 1)]
                received[name] = torch.stack(rows).sum(0) / sum(weights) ** 0.5
            for name, values in received.items():
                top, bottom, left, right = block_ranges(self.matrix_size)[sum(GRID, ()).index(name)]
                block = values.view(bottom - top, right - left)
                if name in ("P", "C1"):
                    block = block + matrix[t, top:bottom, left:right]
                matrix[t, top:bottom, left:right] = block
        return matrix


def to_reference(tensors: dict[str, Tensor], matrix_size: int) -> dict[str, Tensor]:
    """Weights, or gradients, of a `MuForCausalLM` under the names, and in the order of values, of the reference."""

    def rows(name: str) -> Tensor:  # [..., D] block-major to [..., D] in matrix order
        return place(tensors[name], matrix_size).flatten(-2)

    mapped = {
        "tokens.weight": rows("model.token_embedding.weight"),
        "norm.weight": rows("model.norm.weight"),
        "norm.bias": rows("model.norm.bias"),
        "head.weight": rows("lm_head.weight"),
        "head.bias": tensors["lm_head.bias"],
    }
    tables = {"position_embedding": "positions", "lookups.pairs": "pairs"}
    tables |= {f"lookups.induction.{number}": f"induction.{number}" for number in range(9)}
    for ours, theirs in tables.items():
        if f"model.{ours}.weight" in tensors:
            mapped[f"{theirs}.weight"] = rows(f"model.{ours}.weight")
    for name in ("P", "C1", "C2", "G"):
        if f"model.sources.tables.{name}.weight" in tensors:
            mapped[f"sources.{name}.weight"] = tensors[f"model.sources.tables.{name}.weight"]
    same = {
        "cross_attention.in_proj_weight": "cross_attention.qkv.weight",
        "cross_attention.in_proj_bias": "cross_attention.qkv.bias",
        "cross_attention.out_proj.weight": "cross_attention.out.weight",
        "cross_attention.out_proj.bias": "cross_attention.out.bias",
        "norm_1.weight": "attention_norm.weight",
        "norm_1.bias": "attention_norm.bias",
        "feed_forward.0.weight": "feed_forward.up.weight",
        "feed_forward.0.bias": "feed_forward.up.bias",
        "feed_forward.3.weight": "feed_forward.down.weight",
        "feed_forward.3.bias": "feed_forward.down.bias",
        "norm_2.weight": "feed_forward_norm.weight",
        "norm_2.bias": "feed_forward_norm.bias",
        "interaction": "sensitivity.interaction",
        "network.0.weight": "sensitivity.up.weight",
        "network.0.bias": "sensitivity.up.bias",
        "network.3.weight": "sensitivity.down.weight",
        "network.3.bias": "sensitivity.down.bias",
        "base": "sensitivity.base",
    }
    blocks = {
        "in_proj_weight": "qkv.weight",
        "in_proj_bias": "qkv.bias",
        "out_proj.weight": "out.weight",
        "out_proj.bias": "out.bias",
    }
    affinity = tensors["model.affinity.weight"]
    for layer in range(affinity.shape[-1] // 16):
        ours, theirs = f"model.layers.{layer}", f"layers.{layer}"
        mapped[f"{theirs}.affinity.weight"] = affinity[:, layer * 16 : (layer + 1) * 16]
        for norm in ("weight", "bias"):
            if f"{ours}.block_norm.{norm}" in tensors:
                mapped[f"{theirs}.norm_0.{norm}"] = tensors[f"{ours}.block_norm.{norm}"]
        for target, source in same.items():
            mapped[f"{theirs}.{target}"] = tensors[f"{ours}.{source}"]
        for block in range(16):
            for target, source in blocks.items():
                fused = tensors[f"{ours}.block_attention.{source}"]
                mapped[f"{theirs}.block_attentions.{block}.{target}"] = fused[block]
    return mapped


def copy_weights(model: nn.Module, reference: ReferenceMu) -> None:
    """Give the reference the weights of a `MuForCausalLM`; every tensor of both must find its counterpart."""
    weights = to_reference(model.state_dict(), reference.matrix_size)
    assert sum(tensor.numel() for tensor in weights.values()) == sum(p.numel() for p in model.parameters())
    reference.load_state_dict(weights)
