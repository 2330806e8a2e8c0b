"""Small language models, each with one leak planted, and a few that only look as if they leaked.

Legend: B batch, T time, D width, V vocabulary.
"""

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from mu_sota.leakcheck.report import Report, Result

VOCABULARY, WIDTH = 50, 24


def embed(ids: Tensor) -> Tensor:
    """A fixed vector a token, [B, T, V]."""
    return torch.randn(VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(1))[ids]


def running_mean(ids: Tensor) -> Tensor:
    """A causal function, logits [B, T, V]: the mean of the vectors up to a position."""
    return embed(ids).cumsum(1) / torch.arange(1, ids.shape[1] + 1)[:, None]


class RunningMean(nn.Module):
    """Causal: each position sees the mean of those up to it."""

    def forward(self, state: Tensor) -> Tensor:
        return state.cumsum(1) / torch.arange(1, state.shape[1] + 1)[:, None]


class TinyLM(nn.Module):
    """A causal model but for the mixer it is given: embedding, clean layer, mixer, linear layer, head."""

    def __init__(self, mixer: nn.Module, strength: float = 0.3) -> None:
        super().__init__()
        self.embedding = nn.Embedding(VOCABULARY, WIDTH)
        self.before = RunningMean()
        self.mixer = mixer
        self.after = nn.Linear(WIDTH, WIDTH)
        self.head = nn.Linear(WIDTH, VOCABULARY)
        self.strength = strength

    def forward(self, ids: Tensor) -> Tensor:
        state = self.embedding(ids)
        state = state + self.before(state)
        state = state + self.strength * self.mixer(state)
        return self.head(state + torch.tanh(self.after(state)))


class Attention(nn.Module):
    """One head; `diagonal` of its mask: 0 as it should be, 1 sees one token too many, None has no mask."""

    def __init__(self, diagonal: int | None) -> None:
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(WIDTH, WIDTH) for _ in range(4))
        self.diagonal = diagonal

    def forward(self, state: Tensor) -> Tensor:
        scores = self.query(state) @ self.key(state).transpose(1, 2) / math.sqrt(WIDTH)
        if self.diagonal is not None:
            visible = torch.ones(scores.shape[1:]).tril(self.diagonal).bool()
            scores = scores.masked_fill(~visible, -math.inf)
        return self.out(scores.softmax(-1) @ self.value(state))


class NextTokenLM(TinyLM):
    """The embedding of the next token is concatenated to the input."""

    def __init__(self) -> None:
        super().__init__(nn.Linear(2 * WIDTH, WIDTH))
        self.lookahead = nn.Embedding(VOCABULARY, WIDTH)

    def forward(self, ids: Tensor) -> Tensor:
        state = torch.cat([self.embedding(ids), self.lookahead(ids.roll(-1, 1))], dim=-1)
        return self.head(self.after(self.mixer(state)))


class SequenceMean(nn.Module):
    def forward(self, state: Tensor) -> Tensor:
        return state.mean(1, keepdim=True).expand_as(state)


class PooledGate(nn.Module):
    """Squeeze and excitation: a module pools the sequence, another makes a gate of it."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.AdaptiveAvgPool1d(1)
        self.gate = nn.Linear(WIDTH, WIDTH)

    def forward(self, state: Tensor) -> Tensor:
        return state * torch.sigmoid(self.gate(self.pool(state.transpose(1, 2)).squeeze(-1)))[:, None]


class SidePath(nn.Module):
    """A score a position, softmax over all positions: how salient each token is in its text."""

    def __init__(self) -> None:
        super().__init__()
        self.score = nn.Linear(WIDTH, 1)

    def forward(self, state: Tensor) -> Tensor:
        return state * self.score(state).softmax(dim=1) * state.shape[1]


class OverBatch(nn.Module):
    def __init__(self, statistic: Callable[..., Any]) -> None:
        super().__init__()
        self.statistic = statistic

    def forward(self, state: Tensor) -> Tensor:
        found = self.statistic(state, dim=0, keepdim=True)
        return (found if isinstance(found, Tensor) else found.values).expand_as(state)


class OverTime(nn.Module):
    """A norm of the vision kind, [B, D, T], whose statistics run over time."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, state: Tensor) -> Tensor:
        return self.norm(state.transpose(1, 2)).transpose(1, 2)


class ByLength(nn.Module):
    """How far along the text a token is, as a share of its length."""

    def forward(self, state: Tensor) -> Tensor:
        length = state.shape[1]
        return torch.arange(length)[:, None].expand_as(state) / length


class Convolution(nn.Module):
    """Width 3; `causal` pads on the left only."""

    def __init__(self, causal: bool) -> None:
        super().__init__()
        self.causal = causal
        self.convolution = nn.Conv1d(WIDTH, WIDTH, 3, padding=0 if causal else 1)

    def forward(self, state: Tensor) -> Tensor:
        channels = state.transpose(1, 2)
        return self.convolution(F.pad(channels, (2, 0)) if self.causal else channels).transpose(1, 2)


class Recurrent(nn.Module):
    def __init__(self, bidirectional: bool) -> None:
        super().__init__()
        self.rnn = nn.GRU(WIDTH, WIDTH // (2 if bidirectional else 1), batch_first=True, bidirectional=bidirectional)

    def forward(self, state: Tensor) -> Tensor:
        return self.rnn(state)[0]


class OnlyInTraining(nn.Module):
    """Teacher forcing gone wrong: the token after it, as long as there is one to train on."""

    def forward(self, state: Tensor) -> Tensor:
        return state.roll(-1, 1) if self.training else state


class TimeFirst(nn.Module):
    """A module of the [T, B, D] kind, inside a model of the [B, T, D] kind."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(WIDTH, 2)

    def forward(self, state: Tensor) -> Tensor:
        state = state.transpose(0, 1)
        return self.attention(state, state, state, need_weights=False)[0].transpose(0, 1)


class ZeroProjection(nn.Module):
    """An attention without a mask behind a projection that starts at zero, as residual branches often do."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = Attention(None)
        self.projection = nn.Linear(WIDTH, WIDTH)
        nn.init.zeros_(self.projection.weight)
        nn.init.zeros_(self.projection.bias)

    def forward(self, state: Tensor) -> Tensor:
        return self.projection(self.attention(state))


class FewSteps(nn.Module):
    """Attention within chunks of 8 tokens, without a mask inside them: only seams inside a chunk show it."""

    def forward(self, state: Tensor) -> Tensor:
        chunks = F.pad(state, (0, 0, 0, -state.shape[1] % 8)).unflatten(1, (-1, 8))
        return chunks.mean(2, keepdim=True).expand_as(chunks).flatten(1, 2)[:, : state.shape[1]]


class AtSeams(nn.Module):
    """The last token of every chunk sees the first of the next."""

    def __init__(self, size: int) -> None:
        super().__init__()
        self.size = size

    def forward(self, state: Tensor) -> Tensor:
        last = (torch.arange(1, state.shape[1] + 1) % self.size == 0)[:, None]
        return last * F.pad(state[:, 1:], (0, 0, 0, 1))


class Buffered(nn.Module):
    """Keeps running values in buffers that it replaces, in eval mode too; causal."""

    average: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("average", torch.zeros(WIDTH))

    def forward(self, state: Tensor) -> Tensor:
        self.average = 0.9 * self.average + 0.1 * state.detach().mean((0, 1))
        return state


class AtOnePosition(nn.Module):
    """One position in the middle of the text sees the token after it."""

    def forward(self, state: Tensor) -> Tensor:
        mixed = torch.zeros_like(state)
        if state.shape[1] > 38:
            mixed[:, 37] = state[:, 38]
        return mixed


class Gated(nn.Module):
    """A mean over the sequence (or over the batch) behind gates; the gate makes one number of all of them."""

    def __init__(self, gates: list[float], gate: Callable[[Tensor], Tensor], axis: int = 1) -> None:
        super().__init__()
        self.gates = nn.ParameterList(nn.Parameter(torch.tensor(start)) for start in gates)
        self.gate, self.axis = gate, axis

    def forward(self, state: Tensor) -> Tensor:
        return self.gate(torch.stack(list(self.gates))) * state.mean(self.axis, keepdim=True).expand_as(state)


def _bit(gates: Tensor) -> Tensor:
    """Open or shut, with the derivative of a straight-through estimator."""
    return ((gates > 0.5).float() - gates.detach() + gates).prod()


class Hashed(nn.Module):
    """Each token sees those in its bucket, before and after it; the buckets are drawn at random, in eval mode too."""

    def forward(self, state: Tensor) -> Tensor:
        bucket = (state @ torch.randn(WIDTH, 4)).argmax(-1)
        same = (bucket[:, :, None] == bucket[:, None]).to(state)
        return same @ state / same.sum(-1, keepdim=True)


class Capacity(nn.Module):
    """An expert that takes half of the tokens of the batch, those with the best score, to which noise is added."""

    def __init__(self) -> None:
        super().__init__()
        self.router, self.expert = nn.Linear(WIDTH, 1), nn.Linear(WIDTH, WIDTH)

    def forward(self, state: Tensor) -> Tensor:
        flat = state.flatten(0, 1)
        score = self.router(flat)[:, 0] + torch.randn(len(flat))
        taken = torch.zeros(len(flat)).index_fill(0, score.topk(len(flat) // 2).indices, 1.0)
        return (taken[:, None] * self.expert(flat)).view_as(state)


class Only(nn.Module):
    """A mean over the sequence (or over the batch), but only where the condition is met; else nothing."""

    def __init__(self, condition: Callable[[Tensor], bool], axis: int = 1) -> None:
        super().__init__()
        self.condition, self.axis = condition, axis

    def forward(self, state: Tensor) -> Tensor:
        return state.mean(self.axis, keepdim=True).expand_as(state) * self.condition(state)


class PairedRows(nn.Module):
    """Rows are taken two and two, where their number is even."""

    def forward(self, state: Tensor) -> Tensor:
        if len(state) % 2:
            return torch.zeros_like(state)
        return state.unflatten(0, (-1, 2)).flip(1).flatten(0, 1)


class Noisy(nn.Module):
    """Draws in eval mode too; causal."""

    def forward(self, state: Tensor) -> Tensor:
        return F.dropout(state, 0.5)


class Filled(nn.Module):
    """Rotates by angles from a buffer; a plain number says how much of it is filled. Causal."""

    cache: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("cache", torch.zeros(256, WIDTH), persistent=False)
        self.filled = 0

    def forward(self, state: Tensor) -> Tensor:
        length = state.shape[1]
        if length > self.filled:
            self.cache[:length] = torch.sin(torch.arange(length)[:, None] / torch.arange(1, WIDTH + 1))
            self.filled = length
        return state * self.cache[:length]


def _llama(kind: type[LlamaForCausalLM] = LlamaForCausalLM) -> LlamaForCausalLM:
    return kind(
        LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            max_position_embeddings=64,
            bos_token_id=1,
            eos_token_id=2,
            initializer_range=0.3,
        )
    )


class CacheOneOff(LlamaForCausalLM):
    """While decoding from its cache, every position is taken for the one after it."""

    def forward(self, input_ids: Tensor, attention_mask: Any = None, position_ids: Any = None, **inputs: Any) -> Any:
        if position_ids is not None and input_ids.shape[1] == 1:
            position_ids = position_ids + 1
        return super().forward(input_ids, attention_mask=attention_mask, position_ids=position_ids, **inputs)


def _stale_cache() -> LlamaForCausalLM:
    """The second layer's attention forgets the newest key and value when it decodes."""
    model = _llama()
    attention = model.model.layers[1].self_attn
    original = attention.forward

    def forward(hidden_states: Tensor, **inputs: Any) -> Any:
        mixed, weights = original(hidden_states, **inputs)
        return (mixed * 0.5 if hidden_states.shape[1] == 1 else mixed), weights

    attention.forward = forward
    return model


class CacheOfNaN(LlamaForCausalLM):
    """While decoding it computes nonsense."""

    def forward(self, input_ids: Tensor, attention_mask: Any = None, position_ids: Any = None, **inputs: Any) -> Any:
        output = super().forward(input_ids, attention_mask=attention_mask, position_ids=position_ids, **inputs)
        cached = inputs.get("cache", inputs.get("past_key_values"))  # its name from transformers 5.24 on, and before
        if cached is not None and input_ids.shape[1] == 1:
            output.logits = output.logits * math.nan
        return output


class NoMaskIfAllOnes(TinyLM):
    """Causal, unless it is told that nothing is padded: then it leaves out the causal mask too."""

    def __init__(self) -> None:
        super().__init__(Attention(0))
        self.open = Attention(None)

    def forward(self, ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        state = self.embedding(ids)
        if attention_mask is not None and attention_mask.all():
            return self.head(self.open(state))
        return super().forward(ids)


class MaskIgnored(GPT2LMHeadModel):
    """Takes an attention_mask, and attends to padding all the same."""

    def forward(self, input_ids: Tensor, attention_mask: Any = None, position_ids: Any = None, **inputs: Any) -> Any:
        return super().forward(input_ids, position_ids=position_ids, **inputs)


def _gpt2(kind: type[GPT2LMHeadModel] = GPT2LMHeadModel) -> GPT2LMHeadModel:
    return kind(
        GPT2Config(
            vocab_size=VOCABULARY,
            n_embd=16,
            n_layer=2,
            n_head=2,
            n_positions=64,
            initializer_range=0.3,
            bos_token_id=1,
            eos_token_id=2,
        )
    )


LEAKS: dict[str, tuple[Callable[[], nn.Module], str, str]] = {
    # name: how to make it, the check that must find it, the module it must be traced to
    "no mask": (lambda: TinyLM(Attention(None)), "future", "mixer"),
    "mask off by one": (lambda: TinyLM(Attention(1)), "future", "mixer"),
    "next token concatenated": (NextTokenLM, "future", ""),
    "mean over the sequence": (lambda: TinyLM(SequenceMean()), "future", "mixer"),
    "pooled gate": (lambda: TinyLM(PooledGate()), "future", "mixer"),
    "softmax over all positions": (lambda: TinyLM(SidePath()), "future", "mixer"),
    "minimum over the batch": (lambda: TinyLM(OverBatch(torch.min)), "batch", "mixer"),
    "maximum over the batch": (lambda: TinyLM(OverBatch(torch.max)), "batch", "mixer"),
    "mean over the batch": (lambda: TinyLM(OverBatch(torch.mean)), "batch", "mixer"),
    "BatchNorm over time": (lambda: TinyLM(OverTime(nn.BatchNorm1d(WIDTH))), "future (training)", "mixer.norm"),
    "GroupNorm over time": (lambda: TinyLM(OverTime(nn.GroupNorm(4, WIDTH))), "future", "mixer.norm"),
    "InstanceNorm over time": (lambda: TinyLM(OverTime(nn.InstanceNorm1d(WIDTH))), "future", "mixer.norm"),
    "divided by the length": (lambda: TinyLM(ByLength()), "length", "mixer"),
    "symmetric convolution": (lambda: TinyLM(Convolution(causal=False)), "future", "mixer.convolution"),
    "bidirectional RNN": (lambda: TinyLM(Recurrent(bidirectional=True)), "future", "mixer.rnn"),
    "only in training": (lambda: TinyLM(OnlyInTraining()), "future (training)", "mixer"),
    "time first, no mask": (lambda: TinyLM(TimeFirst()), "future", "mixer.attention"),
    "behind a zero projection": (lambda: TinyLM(ZeroProjection()), "future", "mixer.attention"),
    "inside chunks": (lambda: TinyLM(FewSteps()), "future", "mixer"),
    "at seams of 13": (lambda: TinyLM(AtSeams(13)), "future", "mixer"),
    "at seams of 24": (lambda: TinyLM(AtSeams(24)), "future", "mixer"),
    "at one position": (lambda: TinyLM(AtOnePosition()), "future", "mixer"),
    "weak": (lambda: TinyLM(SequenceMean(), strength=1e-2), "future", "mixer"),
    "behind a hard bit": (lambda: TinyLM(Gated([0.1], _bit)), "future (louder)", "mixer"),
    "behind hard bits, rounded": (
        lambda: TinyLM(Gated([-1.0, -2.0], lambda gates: gates.sigmoid().round().prod())),
        "future (louder)",
        "mixer",
    ),
    "behind sigmoid(-20)": (
        lambda: TinyLM(Gated([-20.0], lambda gates: gates.sigmoid().prod())),
        "future (louder)",
        "mixer",
    ),
    "behind 1 - sigmoid(20)": (
        lambda: TinyLM(Gated([20.0], lambda gates: 1 - gates.double().sigmoid().float().prod())),
        "future (louder)",
        "mixer",
    ),
    "behind a product of gates": (lambda: TinyLM(Gated([0.01] * 5, torch.prod)), "future (louder)", "mixer"),
    "over the batch, behind sigmoid(-20)": (
        lambda: TinyLM(Gated([-20.0], lambda gates: gates.sigmoid().prod(), axis=0)),
        "batch (louder)",
        "mixer",
    ),
    "hashing attention": (lambda: TinyLM(Hashed()), "future", "mixer"),
    "experts with a capacity": (lambda: TinyLM(Capacity()), "future", "mixer"),
    "only with gradients": (lambda: TinyLM(Only(lambda state: torch.is_grad_enabled())), "future", "mixer"),
    "only with gradients, in training": (
        lambda: TinyLM(Only(lambda state: state.requires_grad and torch.is_grad_enabled(), axis=0)),
        "batch (training)",
        "mixer",
    ),
    "only in pairs of rows": (lambda: TinyLM(PairedRows()), "batch", "mixer"),
    "only in whole chunks of 16": (lambda: TinyLM(Only(lambda state: state.shape[1] % 16 == 0)), "future", "mixer"),
    "cache one step off": (lambda: _llama(CacheOneOff), "cache", "model"),
    "cache of one layer": (_stale_cache, "cache", "model.layers.1.self_attn"),
    "NaN from the cache": (lambda: _llama(CacheOfNaN), "cache", ""),
    "no mask if all ones": (NoMaskIfAllOnes, "padding", ""),
    "mask ignored under padding": (lambda: _gpt2(MaskIgnored), "padding", "transformer.h.0.attn"),
}

CLEAN: dict[str, Callable[[], nn.Module]] = {
    "attention": lambda: TinyLM(Attention(0)),
    "convolution": lambda: TinyLM(Convolution(causal=True)),
    "RNN": lambda: TinyLM(Recurrent(bidirectional=False)),
    "LayerNorm": lambda: TinyLM(nn.LayerNorm(WIDTH)),
    "buffers": lambda: TinyLM(Buffered()),
    "draws in eval mode": lambda: TinyLM(nn.Sequential(Attention(0), Noisy())),
    "cache that is filled": lambda: TinyLM(Filled()),
    "dropout": lambda: TinyLM(nn.Sequential(Attention(0), nn.Dropout(0.5))),
    "GPT-2": _gpt2,
    "Llama": _llama,
}


def ends() -> None:
    """Not a model: a script that ends the program."""
    raise SystemExit(1)


def planted(name: str) -> nn.Module:
    """A leaky model by name, always with the same weights."""
    torch.manual_seed(0)
    return LEAKS[name][0]()


def results(report: Report) -> dict[str, Result]:
    """The results of a report by the names of their checks."""
    return {result.check: result for result in report.results}
