"""One pass over a text: probabilities, states, sensitivities and attention of every token.

Legend: T tokens of the text, L layers, H heads, N = 16 blocks, D values of a state, V vocabulary, K alternatives.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mu_sota.common.hooks import attached
from mu_sota.model.attention import rotary_turns, rotated
from mu_sota.model.blocks import to_matrix
from mu_sota.model.modeling import MuForCausalLM

ALTERNATIVES = 5


class Attention(NamedTuple):
    """What one token attends to in one layer: a weight for each token up to and including itself; rows sum to 1."""

    cross: Tensor  # [H, position + 1], the heads of the cross-block attention
    block: Tensor  # [N, position + 1], the attention of each block


@dataclass(frozen=True)
class Trace:
    """One pass over a text: the model's predictions and its layers' states, sensitivities and attention.

    Attributes:
        ids: [T].
        log_probs: [T], in nats, of each token after those before it; NaN for the first, which nothing predicts.
        top_ids, top_log_probs: [T, K], the likeliest tokens *after* each token, the last one's included.
        states: [L + 1, T, D] block-major: the input of the first layer, then the output of each layer as its reader
            gets it. A block that is switched off is 0 in all of them.
        sensitivities: [L, T, N], how much of its new value each block took over; 0 keeps the old one.
    """

    ids: Tensor
    log_probs: Tensor
    top_ids: Tensor
    top_log_probs: Tensor
    states: Tensor
    sensitivities: Tensor
    _cross: tuple[tuple[Tensor, Tensor], ...]  # query and key of each layer, [H, T, D / H]
    _block: tuple[tuple[Tensor, Tensor], ...]  # query and key of each layer, [N, T, S]

    @property
    def nll(self) -> Tensor:
        """How surprising each token after the first is, in nats, [T - 1]; the sum is -log of the text's probability."""
        return -self.log_probs[1:]

    def matrix(self, position: int, layer: int) -> Tensor:
        """The M x M state of a token after `layer` layers; 0 is the embedding."""
        return to_matrix(self.states[layer, position])

    def attention(self, position: int, layer: int) -> Attention:
        """The attention of a token in a layer, counted from 1 as the states are."""
        return Attention(_row(*self._cross[layer - 1], position), _row(*self._block[layer - 1], position))


@torch.no_grad()
def trace(model: MuForCausalLM, ids: list[int]) -> Trace:
    """Run the model on a text once; blocks that are off (`ablation.blocks_off`) are off here too.

    Raises:
        ValueError: the text is longer than the model's positions.
    """
    layers = list(model.model.layers)
    states: list[Tensor] = []
    projected: dict[str, list[Tensor]] = {"cross": [], "block": []}

    def keep_input(module: nn.Module, inputs: tuple[Any, ...]) -> None:
        states.append(inputs[0][0])

    def keep_output(kind: str) -> Callable[[nn.Module, Any, Tensor], None]:
        return lambda module, inputs, output: projected[kind].append(output[0])

    hooks = [
        *(reader.register_forward_pre_hook(keep_input) for reader in (*layers, model.model.norm)),
        *(layer.cross_attention.qkv.register_forward_hook(keep_output("cross")) for layer in layers),
        *(layer.block_attention.qkv.register_forward_hook(keep_output("block")) for layer in layers),
    ]
    with attached(hooks):
        inputs = torch.tensor([ids], device=model.device)
        output = model(inputs, output_sensitivities=True)
    logits = output.logits[0]
    log_probs = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
    own = log_probs[:-1].gather(-1, inputs[0, 1:, None])[:, 0]
    top = log_probs.topk(min(ALTERNATIVES, log_probs.shape[-1]))
    heads = layers[0].cross_attention.num_heads
    turned = partial(_turned, learned=model.model.position_embedding is not None)
    cross = (turned(qkv.unflatten(-1, (3, heads, -1))) for qkv in projected["cross"])  # [3, H, T, D / H]
    block = (turned(qkv.unflatten(-1, (3, -1)).transpose(1, 2)) for qkv in projected["block"])  # [3, N, T, S]
    return Trace(
        ids=inputs[0].cpu(),
        log_probs=torch.cat([torch.full((1,), float("nan")), own.cpu()]),
        top_ids=top.indices.cpu(),
        top_log_probs=top.values.cpu(),
        states=torch.stack(states).cpu(),
        sensitivities=torch.stack([layer[0] for layer in output.sensitivities]).cpu(),
        # Copies: a view would keep the value projections alive, which nobody asks for.
        _cross=tuple((query.to("cpu", copy=True), key.to("cpu", copy=True)) for query, key, _ in cross),
        _block=tuple((query.to("cpu", copy=True), key.to("cpu", copy=True)) for query, key, _ in block),
    )


def _turned(heads: Tensor, learned: bool) -> Tensor:
    """Queries, keys and values [T, 3, H, K] as the attention meets them, [3, H, T, K]."""
    if not learned:
        positions = torch.arange(len(heads), device=heads.device)[None]
        heads = rotated(heads[None], rotary_turns(positions, heads.shape[-1]))[0]
    return heads.permute(1, 2, 0, 3)


def _row(query: Tensor, key: Tensor, position: int) -> Tensor:
    """Causal attention weights of one position: two times [..., T, K] to [..., position + 1]."""
    scores = key[..., : position + 1, :] @ query[..., position, :, None]
    return (scores[..., 0] * query.shape[-1] ** -0.5).softmax(-1)
