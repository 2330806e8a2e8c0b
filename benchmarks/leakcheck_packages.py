"""Leak-check causal language models of public packages on PyPI, each tiny and with random weights.

    python benchmarks/leakcheck_packages.py --requirements          # what to install, and how
    OMP_NUM_THREADS=1 python benchmarks/leakcheck_packages.py --out docs/results/leakcheck
    OMP_NUM_THREADS=1 python benchmarks/leakcheck_packages.py --out docs/results/leakcheck --only reformer-pytorch

Every model is built by its package's own constructor and checked in a process of its own. Whatever the check says, the
same is asked by plain calls that share nothing with it: a newly built model is run on two texts, after the same
`torch.manual_seed`, and the logits before the cut are compared. A finding that plain calls do not confirm is not
reported as one. Packages that are not installed are left out, with the reason.
"""

import argparse
import ast
import contextlib
import inspect
import io
import json
import logging
import math
import multiprocessing
import sys
import textwrap
import time
import warnings
from collections.abc import Callable, Iterable
from importlib import metadata
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import MagicMock

import torch
from torch import Tensor, nn

from mu_sota import machine
from mu_sota.causality import check
from mu_sota.errors import InputError
from mu_sota.files import replacing, write_json
from mu_sota.subject import logits_in, one_line

VOCAB, DIM, DEPTH, HEADS, HEAD, LENGTH = 96, 64, 2, 4, 16, 128
"""Sizes of all models: vocabulary, width, layers, heads, width of a head, longest text."""

ROWS, TOKENS = 5, 61
"""Of the plain calls; the same as of the check."""

CUTS = (1, 2, 7, 16, 31, 32, 33, 48, 60)
"""Where the plain calls replace the rest of the text, or end it."""

CONFIRMED = 1e-3
"""A change by plain calls, in standard deviations of the logits, above which it is no rounding."""


class Model(NamedTuple):
    """A model to check.

    Args:
        name: of the row: the package, and what is special.
        package: its name on PyPI.
        build: makes the model, a function or module from ids [B, T] to logits.
        whole: whether the package has the whole language model; else its layers are put into a `Layers`.
        note: what else should be known of how it was made.
    """

    name: str
    package: str
    build: Callable[[], Callable[..., Any]]
    whole: bool
    note: str

    def made(self) -> str:
        """The constructor's call, as it is written here."""
        function = ast.parse(textwrap.dedent(inspect.getsource(self.build))).body[0]
        assert isinstance(function, ast.FunctionDef)
        lines = [ast.unparse(line) for line in function.body if not isinstance(line, ast.Import | ast.ImportFrom)]
        return "; ".join(lines).removeprefix("return ")


MODELS: dict[str, Model] = {}


def model(package: str, variant: str = "", whole: bool = True, note: str = "") -> Callable[..., Any]:
    """Register a builder."""

    def register(build: Callable[[], Callable[..., Any]]) -> Callable[[], Callable[..., Any]]:
        name = f"{package} {variant}".strip()
        assert name not in MODELS
        MODELS[name] = Model(name, package, build, whole, note)
        return build

    return register


# How what is no whole language model, or does not take any length, is made one.


class Layers(nn.Module):
    """A minimal language model around layers [B, T, D] -> [B, T, D]: embedding, normed residual layers, head."""

    def __init__(self, make: Callable[[], nn.Module], count: int = DEPTH, positions: bool = True) -> None:
        super().__init__()
        self.tokens = nn.Embedding(VOCAB, DIM)
        self.positions = nn.Embedding(LENGTH, DIM) if positions else None
        self.layers = nn.ModuleList(make() for _ in range(count))
        self.norms = nn.ModuleList(nn.LayerNorm(DIM) for _ in range(count))
        self.head = nn.Linear(DIM, VOCAB)

    def forward(self, ids: Tensor) -> Tensor:
        hidden = self.tokens(ids)
        if self.positions is not None:
            hidden = hidden + self.positions(torch.arange(ids.shape[1]))
        for norm, layer in zip(self.norms, self.layers, strict=True):
            hidden = hidden + _first(layer(norm(hidden)))
        return self.head(hidden)


class Attention(nn.Module):
    """Causal self-attention of the plainest kind, for packages of other layers."""

    def __init__(self, turn: Callable[[Tensor], Tensor] = lambda tensor: tensor) -> None:
        super().__init__()
        self.inward, self.outward = nn.Linear(DIM, 3 * DIM), nn.Linear(DIM, DIM)
        self.turn = turn

    def forward(self, hidden: Tensor) -> Tensor:
        heads = self.inward(hidden).unflatten(-1, (3, HEADS, HEAD)).permute(2, 0, 3, 1, 4)
        queries, keys, values = self.turn(heads[0]), self.turn(heads[1]), heads[2]
        mixed = nn.functional.scaled_dot_product_attention(queries, keys, values, is_causal=True)
        return self.outward(mixed.transpose(1, 2).flatten(2))


class Mixed(nn.Module):
    """Attention, then a layer that is to treat every token by itself, such as experts."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.attention, self.norm, self.layer = Attention(), nn.LayerNorm(DIM), layer

    def forward(self, hidden: Tensor) -> Tensor:
        hidden = self.attention(hidden)
        return hidden + _first(self.layer(self.norm(hidden)))


class Padded(nn.Module):
    """Fills the text up on the right to a multiple, for models that take no other length."""

    def __init__(self, inner: nn.Module, multiple: int) -> None:
        super().__init__()
        self.inner, self.multiple = inner, multiple

    def forward(self, ids: Tensor) -> Tensor:
        filled = nn.functional.pad(ids, (0, -ids.shape[1] % self.multiple))
        return logits_in(self.inner(filled))[0][:, : ids.shape[1]]


class Called(nn.Module):
    """A model that is called with further arguments, or whose output holds the logits elsewhere."""

    def __init__(self, inner: nn.Module, call: Callable[[nn.Module, Tensor], Any]) -> None:
        super().__init__()
        self.inner, self.call = inner, call

    def forward(self, ids: Tensor) -> Any:
        return self.call(self.inner, ids)


def _first(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


def without(*names: str) -> None:
    """Stand-ins for modules that a package imports for something else than its language model."""
    import transformers.utils.import_utils  # noqa: F401  which looks for what is installed before that

    for name in names:
        sys.modules.setdefault(name, MagicMock(__spec__=None))


# The models.


@model("x-transformers")
def x_transformers() -> nn.Module:
    from x_transformers import Decoder, TransformerWrapper

    layers = Decoder(dim=DIM, depth=DEPTH, heads=HEADS, attn_dim_head=HEAD, rotary_pos_emb=True)
    return TransformerWrapper(num_tokens=VOCAB, max_seq_len=LENGTH, attn_layers=layers)


@model("x-transformers", "alibi, shift_tokens")
def x_transformers_alibi() -> nn.Module:
    from x_transformers import Decoder, TransformerWrapper

    layers = Decoder(
        dim=DIM, depth=DEPTH, heads=HEADS, attn_dim_head=HEAD, alibi_pos_bias=True, shift_tokens=1, ff_glu=True
    )
    return TransformerWrapper(num_tokens=VOCAB, max_seq_len=LENGTH, attn_layers=layers)


@model("x-transformers", "memory tokens, dynamic positions")
def x_transformers_memory() -> nn.Module:
    from x_transformers import Decoder, TransformerWrapper

    layers = Decoder(
        dim=DIM, depth=DEPTH, heads=HEADS, attn_dim_head=HEAD, dynamic_pos_bias=True, attn_num_mem_kv=4, sandwich_norm=True
    )
    return TransformerWrapper(num_tokens=VOCAB, max_seq_len=LENGTH, num_memory_tokens=4, attn_layers=layers)


@model("reformer-pytorch")
def reformer() -> nn.Module:
    from reformer_pytorch import ReformerLM

    return Padded(
        ReformerLM(
            num_tokens=VOCAB, dim=DIM, depth=DEPTH, max_seq_len=LENGTH, heads=HEADS, bucket_size=8, n_hashes=2, causal=True
        ),
        16,
    )


@model("reformer-pytorch", "use_full_attn")
def reformer_full() -> nn.Module:
    from reformer_pytorch import ReformerLM

    return Padded(
        ReformerLM(
            num_tokens=VOCAB, dim=DIM, depth=DEPTH, max_seq_len=LENGTH, heads=HEADS, bucket_size=8, causal=True,
            use_full_attn=True,
        ),
        16,
    )


@model("performer-pytorch")
def performer() -> nn.Module:
    from performer_pytorch import PerformerLM

    return PerformerLM(
        num_tokens=VOCAB, max_seq_len=LENGTH, dim=DIM, depth=DEPTH, heads=HEADS, dim_head=HEAD, causal=True
    )


@model("performer-pytorch", "generalized_attention, local heads")
def performer_generalized() -> nn.Module:
    from performer_pytorch import PerformerLM

    return PerformerLM(
        num_tokens=VOCAB, max_seq_len=LENGTH, dim=DIM, depth=DEPTH, heads=HEADS, dim_head=HEAD, causal=True,
        generalized_attention=True, local_attn_heads=2, local_window_size=16,
    )


@model("linear-attention-transformer")
def linear_attention_transformer() -> nn.Module:
    from linear_attention_transformer import LinearAttentionTransformerLM

    return LinearAttentionTransformerLM(
        num_tokens=VOCAB, dim=DIM, depth=DEPTH, max_seq_len=LENGTH, heads=HEADS, causal=True,
        n_local_attn_heads=2, local_attn_window_size=16,
    )


@model("linear-attention-transformer", "blindspot_size=8")
def linear_attention_transformer_blind() -> nn.Module:
    from linear_attention_transformer import LinearAttentionTransformerLM

    return LinearAttentionTransformerLM(
        num_tokens=VOCAB, dim=DIM, depth=DEPTH, max_seq_len=LENGTH, heads=HEADS, causal=True, blindspot_size=8,
        n_local_attn_heads=2, local_attn_window_size=16,
    )


@model("routing-transformer")
def routing_transformer() -> nn.Module:
    from routing_transformer import RoutingTransformerLM

    return Padded(
        RoutingTransformerLM(
            num_tokens=VOCAB, dim=DIM, depth=DEPTH, max_seq_len=LENGTH, heads=HEADS, window_size=16, causal=True
        ),
        LENGTH,
    )


@model("sinkhorn-transformer")
def sinkhorn() -> nn.Module:
    from sinkhorn_transformer import SinkhornTransformerLM

    return Padded(
        SinkhornTransformerLM(
            num_tokens=VOCAB, dim=DIM, max_seq_len=LENGTH, depth=DEPTH, heads=HEADS, bucket_size=16, causal=True
        ),
        LENGTH,
    )


@model("local-attention")
def local_attention() -> nn.Module:
    from local_attention import LocalTransformer

    return LocalTransformer(
        num_tokens=VOCAB, dim=DIM, depth=DEPTH, max_seq_len=LENGTH, heads=HEADS, dim_head=HEAD,
        local_attn_window_size=16, causal=True, use_xpos=True,
    )


@model("rotary-embedding-torch", whole=False)
def rotary() -> nn.Module:
    from rotary_embedding_torch import RotaryEmbedding

    return Layers(lambda: Attention(RotaryEmbedding(dim=HEAD).rotate_queries_or_keys), positions=False)


@model("memory-transformer-xl")
def memory_transformer_xl() -> nn.Module:
    from memory_transformer_xl import MemoryTransformerXL

    return MemoryTransformerXL(
        num_tokens=VOCAB, dim=DIM, heads=HEADS, depth=DEPTH, seq_len=LENGTH, mem_len=LENGTH, lmem_len=32
    )


@model("compressive-transformer-pytorch")
def compressive() -> nn.Module:
    from compressive_transformer_pytorch import CompressiveTransformer

    return CompressiveTransformer(
        num_tokens=VOCAB, dim=DIM, depth=DEPTH, seq_len=LENGTH, mem_len=LENGTH, cmem_len=LENGTH // 4, heads=HEADS
    )


@model("feedback-transformer-pytorch")
def feedback() -> nn.Module:
    from feedback_transformer_pytorch import FeedbackTransformer

    return FeedbackTransformer(
        num_tokens=VOCAB, dim=DIM, depth=DEPTH, seq_len=2, mem_len=32, heads=HEADS, dim_head=HEAD
    )


@model("recurrent-memory-transformer-pytorch")
def recurrent_memory() -> nn.Module:
    from recurrent_memory_transformer_pytorch import RecurrentMemoryTransformer

    return RecurrentMemoryTransformer(
        DIM, num_tokens=VOCAB, depth=DEPTH, num_memory_tokens=4, seq_len=LENGTH, causal=True, heads=HEADS, dim_head=HEAD
    )


@model("recurrent-memory-transformer-pytorch", "in segments of 16")
def recurrent_memory_segments() -> nn.Module:
    from recurrent_memory_transformer_pytorch import RecurrentMemoryTransformer, RecurrentMemoryTransformerWrapper

    return Called(
        RecurrentMemoryTransformerWrapper(
            RecurrentMemoryTransformer(
                DIM, num_tokens=VOCAB, depth=DEPTH, num_memory_tokens=4, seq_len=16, causal=True, heads=HEADS, dim_head=HEAD
            )
        ),
        lambda inner, ids: inner(ids)[0],
    )


@model("block-recurrent-transformer-pytorch")
def block_recurrent() -> nn.Module:
    from block_recurrent_transformer_pytorch import BlockRecurrentTransformer

    return BlockRecurrentTransformer(
        num_tokens=VOCAB, dim=DIM, depth=DEPTH, dim_head=HEAD, heads=HEADS, max_seq_len=LENGTH, block_width=16,
        recurrent_layers=(2,), num_state_vectors=16,
    )


@model("Mega-pytorch")
def mega() -> nn.Module:
    from mega_pytorch import Mega

    return Mega(num_tokens=VOCAB, dim=DIM, depth=DEPTH, ema_heads=8, attn_dim_qk=16, attn_dim_value=64, laplacian_attn_fn=True, causal=True)


@model("gateloop-transformer")
def gateloop() -> nn.Module:
    from gateloop_transformer import Transformer

    return Transformer(DIM, num_tokens=VOCAB, depth=DEPTH, dim_head=HEAD, heads=HEADS)


@model("simple-hierarchical-transformer")
def simple_hierarchical() -> nn.Module:
    from simple_hierarchical_transformer import HierarchicalTransformer

    return HierarchicalTransformer(
        num_tokens=VOCAB, dim=DIM, depth=DEPTH, seq_len=LENGTH, dim_head=HEAD, heads=HEADS, hierarchies=(1, 4),
        window_sizes=(16, None),
    )


@model("h-transformer-1d")
def h_transformer() -> nn.Module:
    from h_transformer_1d import HTransformer1D

    return HTransformer1D(
        num_tokens=VOCAB, dim=DIM, depth=DEPTH, max_seq_len=LENGTH, causal=True, heads=HEADS, dim_head=HEAD, block_size=16
    )


@model("g-mlp-pytorch")
def g_mlp() -> nn.Module:
    from g_mlp_pytorch import gMLP

    return Padded(gMLP(num_tokens=VOCAB, dim=DIM, depth=DEPTH, seq_len=LENGTH, heads=2, causal=True), LENGTH)


@model("g-mlp-pytorch", "circulant_matrix, attn_dim")
def g_mlp_circulant() -> nn.Module:
    from g_mlp_pytorch import gMLP

    return Padded(
        gMLP(
            num_tokens=VOCAB, dim=DIM, depth=DEPTH, seq_len=LENGTH, heads=2, causal=True, circulant_matrix=True, attn_dim=16
        ),
        LENGTH,
    )


@model("MEGABYTE-pytorch")
def megabyte() -> nn.Module:
    from MEGABYTE_pytorch import MEGABYTE

    return MEGABYTE(
        num_tokens=VOCAB, dim=(DIM, DIM), depth=(DEPTH, DEPTH), max_seq_len=(32, 4), dim_head=HEAD, heads=HEADS
    )


@model("memorizing-transformers-pytorch")
def memorizing() -> nn.Module:
    from memorizing_transformers_pytorch import MemorizingTransformer

    return MemorizingTransformer(
        num_tokens=VOCAB, dim=DIM, depth=DEPTH, dim_head=HEAD, heads=HEADS, memorizing_layers=2, num_retrieved_memories=4
    )


@model("yet-another-retnet")
def yet_another_retnet() -> nn.Module:
    from yet_another_retnet.retnet import RetNet

    return RetNet(num_tokens=VOCAB, d_model=DIM, nhead=HEADS, num_layers=DEPTH, dim_feedforward=128)


@model("rwkv7-hf")
def rwkv7() -> nn.Module:
    from rwkv7_hf import RWKV7Config, RWKV7ForCausalLM

    return RWKV7ForCausalLM(
        RWKV7Config(
            vocab_size=VOCAB, hidden_size=DIM, num_hidden_layers=DEPTH, head_dim=HEAD, num_heads=HEADS, decay_low_rank_dim=8,
            gate_low_rank_dim=8, a_low_rank_dim=8, v_low_rank_dim=8, initializer_range=0.2,
        )
    )


@model("mambapy", whole=False)
def mambapy() -> nn.Module:
    from mambapy.mamba import Mamba, MambaConfig

    return Layers(lambda: Mamba(MambaConfig(d_model=DIM, n_layers=DEPTH)), count=1, positions=False)


@model("mambapy", "without pscan", whole=False)
def mambapy_sequential() -> nn.Module:
    from mambapy.mamba import Mamba, MambaConfig

    return Layers(lambda: Mamba(MambaConfig(d_model=DIM, n_layers=DEPTH, pscan=False)), count=1, positions=False)


@model("minGRU-pytorch")
def min_gru() -> nn.Module:
    from minGRU_pytorch.minLM import minLM

    return minLM(num_tokens=VOCAB, dim=DIM, depth=DEPTH, enable_conv=True)


@model("minGRU-pytorch", "use_lstm")
def min_lstm() -> nn.Module:
    from minGRU_pytorch.minLM import minLM

    return minLM(num_tokens=VOCAB, dim=DIM, depth=DEPTH, use_lstm=True)


@model("st-moe-pytorch", whole=False)
def st_moe() -> nn.Module:
    from st_moe_pytorch import MoE

    return Layers(lambda: Mixed(MoE(dim=DIM, num_experts=4)))


@model("mixture-of-experts", whole=False)
def mixture_of_experts() -> nn.Module:
    from mixture_of_experts import MoE

    return Layers(lambda: Mixed(MoE(dim=DIM, num_experts=4)))


@model("mixture-of-experts", "second_policy_eval=all", whole=False)
def mixture_of_experts_all() -> nn.Module:
    from mixture_of_experts import MoE

    return Layers(lambda: Mixed(MoE(dim=DIM, num_experts=4, second_policy_eval="all")))


@model("soft-moe-pytorch", whole=False)
def soft_moe() -> nn.Module:
    from soft_moe_pytorch import SoftMoE

    return Layers(lambda: Mixed(SoftMoE(dim=DIM, seq_len=LENGTH, num_experts=4)))


@model("PEER-pytorch", whole=False)
def peer() -> nn.Module:
    from PEER_pytorch import PEER

    return Layers(lambda: Mixed(PEER(dim=DIM, heads=HEADS, num_experts=256, num_experts_per_head=8)))


@model("product-key-memory", whole=False)
def product_key_memory() -> nn.Module:
    from product_key_memory import PKM

    return Layers(lambda: Mixed(PKM(dim=DIM, heads=HEADS, num_keys=16, topk=8, dim_head=HEAD)))


@model("PaLM-rlhf-pytorch")
def palm_rlhf() -> nn.Module:
    from palm_rlhf_pytorch import PaLM

    return PaLM(num_tokens=VOCAB, dim=DIM, depth=DEPTH, dim_head=HEAD, heads=HEADS)


@model("PaLM-pytorch")
def palm() -> nn.Module:
    from palm_pytorch import PaLM

    return PaLM(num_tokens=VOCAB, dim=DIM, depth=DEPTH, dim_head=HEAD, heads=HEADS)


@model("titans-pytorch")
def titans() -> nn.Module:
    from titans_pytorch import MemoryAsContextTransformer

    return MemoryAsContextTransformer(
        num_tokens=VOCAB, dim=DIM, depth=DEPTH, segment_len=16, num_persist_mem_tokens=4, num_longterm_mem_tokens=4,
        neural_memory_layers=(2,), dim_head=HEAD, heads=HEADS,
    )


@model("titans-pytorch", "NeuralMemory", whole=False)
def titans_memory() -> nn.Module:
    from titans_pytorch import NeuralMemory

    return Layers(lambda: NeuralMemory(dim=DIM, chunk_size=8))


@model("native-sparse-attention-pytorch")
def native_sparse() -> nn.Module:
    from native_sparse_attention_pytorch.transformer import Transformer

    return Transformer(
        VOCAB, DIM, DEPTH, dim_head=HEAD, heads=HEADS, kv_heads=2, use_sparse_attn=True,
        sparse_attn_kwargs={
            "sliding_window_size": 8, "compress_block_size": 8, "compress_block_sliding_stride": 4,
            "selection_block_size": 8, "num_selected_blocks": 2,
        },
    )


@model("litgpt", "Llama")
def litgpt_llama() -> nn.Module:
    from litgpt import GPT, Config

    return GPT(Config.from_name("Llama-3.2-1B", block_size=LENGTH, n_layer=DEPTH, n_embd=DIM, n_head=HEADS, n_query_groups=2, head_size=HEAD, padded_vocab_size=VOCAB, vocab_size=VOCAB, intermediate_size=128))


@model("litgpt", "Gemma 2, sliding windows of 16")
def litgpt_gemma() -> nn.Module:
    from litgpt import GPT, Config

    return GPT(Config.from_name("Gemma-2-2b", block_size=LENGTH, n_layer=DEPTH, n_embd=DIM, n_head=HEADS, n_query_groups=2, head_size=HEAD, padded_vocab_size=VOCAB, vocab_size=VOCAB, intermediate_size=128, sliding_window_size=16, sliding_window_indices=[1, 0]))


@model("litgpt", "Mixtral")
def litgpt_mixtral() -> nn.Module:
    from litgpt import GPT, Config

    return GPT(Config.from_name("Mixtral-8x7B-v0.1", block_size=LENGTH, n_layer=DEPTH, n_embd=DIM, n_head=HEADS, n_query_groups=2, padded_vocab_size=VOCAB, vocab_size=VOCAB, intermediate_size=128, n_expert=4))


@model("torchtune", "llama3")
def torchtune_llama() -> nn.Module:
    from torchtune.models.llama3 import llama3

    return llama3(VOCAB, num_layers=DEPTH, num_heads=HEADS, num_kv_heads=2, embed_dim=DIM, max_seq_len=LENGTH, intermediate_dim=128)


@model("torchtune", "gemma2")
def torchtune_gemma2() -> nn.Module:
    from torchtune.models.gemma2 import gemma2

    return gemma2(VOCAB, num_layers=DEPTH, num_heads=HEADS, head_dim=HEAD, num_kv_heads=2, embed_dim=DIM, intermediate_dim=128, max_seq_len=LENGTH, sliding_window_size=16)


@model("torchtune", "qwen2")
def torchtune_qwen2() -> nn.Module:
    from torchtune.models.qwen2 import qwen2

    return qwen2(VOCAB, num_layers=DEPTH, num_heads=HEADS, num_kv_heads=2, embed_dim=DIM, intermediate_dim=128, max_seq_len=LENGTH)


@model("torchtune", "phi3")
def torchtune_phi3() -> nn.Module:
    from torchtune.models.phi3 import phi3

    return phi3(VOCAB, num_layers=DEPTH, num_heads=HEADS, num_kv_heads=HEADS, embed_dim=DIM, intermediate_dim=128, max_seq_len=LENGTH)


@model("conformer", "conv_causal", whole=False, note="the attention of the package has no causal setting")
def conformer() -> nn.Module:
    from conformer import ConformerConvModule

    return Layers(lambda: ConformerConvModule(DIM, causal=True, expansion_factor=2, kernel_size=7))


@model("perceiver-ar-pytorch")
def perceiver_ar() -> nn.Module:
    from perceiver_ar_pytorch import PerceiverAR

    return PerceiverAR(
        num_tokens=VOCAB, dim=DIM, depth=DEPTH, max_seq_len=LENGTH, cross_attn_seq_len=16, dim_head=HEAD, heads=HEADS
    )


@model("transformer-lens")
def transformer_lens() -> nn.Module:
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    return HookedTransformer(
        HookedTransformerConfig(
            n_layers=DEPTH, d_model=DIM, n_ctx=LENGTH, d_head=HEAD, n_heads=HEADS, d_vocab=VOCAB, act_fn="gelu",
            positional_embedding_type="rotary", device="cpu",
        )
    )


@model("taylor-series-linear-attention", whole=False)
def taylor_series() -> nn.Module:
    from taylor_series_linear_attention import TaylorSeriesLinearAttn

    return Layers(lambda: TaylorSeriesLinearAttn(dim=DIM, dim_head=8, heads=HEADS, causal=True, rotary_emb=True))


@model("infini-transformer-pytorch")
def infini() -> nn.Module:
    from infini_transformer_pytorch import InfiniTransformer

    return InfiniTransformer(num_tokens=VOCAB, dim=DIM, depth=DEPTH, dim_head=HEAD, heads=HEADS)


@model("CoLT5-attention", "ConditionalRoutedAutoregressiveAttention", whole=False)
def colt5_attention() -> nn.Module:
    from colt5_attention import ConditionalRoutedAutoregressiveAttention

    return Padded(
        Layers(
            lambda: ConditionalRoutedAutoregressiveAttention(
                DIM, num_heavy_tokens_q=8, num_heavy_tokens_kv=8, light_dim_head=HEAD, light_heads=HEADS,
                light_window_size=16, heavy_window_size=16, heavy_dim_head=HEAD, heavy_heads=HEADS,
            )
        ),
        16,
    )


@model("mixture-of-attention", "MixtureOfAutoregressiveAttention", whole=False)
def mixture_of_attention() -> nn.Module:
    from mixture_of_attention import MixtureOfAutoregressiveAttention

    return Padded(
        Layers(
            lambda: MixtureOfAutoregressiveAttention(
                DIM, num_routed_queries=8, num_routed_key_values=8, local_attn_window_size=16, num_experts=2, dim_head=HEAD,
                heads=HEADS, flash_attn=False,
            )
        ),
        16,
    )


@model("token-shift-gpt")
def token_shift() -> nn.Module:
    from token_shift_gpt import TokenShiftGPT

    return TokenShiftGPT(num_tokens=VOCAB, dim=DIM, max_seq_len=LENGTH, depth=6)


@model("hourglass-transformer-pytorch")
def hourglass() -> nn.Module:
    from hourglass_transformer_pytorch import HourglassTransformerLM

    return HourglassTransformerLM(
        num_tokens=VOCAB, dim=DIM, max_seq_len=LENGTH, shorten_factor=4, depth=(2, 1, 2), heads=HEADS, dim_head=HEAD
    )


@model("hourglass-transformer-pytorch", "updown_sample_type=linear")
def hourglass_linear() -> nn.Module:
    from hourglass_transformer_pytorch import HourglassTransformerLM

    return HourglassTransformerLM(
        num_tokens=VOCAB, dim=DIM, max_seq_len=LENGTH, shorten_factor=4, depth=(2, 1, 2), heads=HEADS, dim_head=HEAD,
        updown_sample_type="linear",
    )


@model("minimamba")
def minimamba() -> nn.Module:
    from minimamba import MambaForCausalLM, MambaLMConfig

    return MambaForCausalLM(MambaLMConfig(d_model=DIM, n_layer=DEPTH, vocab_size=VOCAB, d_state=8))


@model("xlstm", "mLSTM and sLSTM")
def xlstm() -> nn.Module:
    from xlstm import (
        FeedForwardConfig,
        mLSTMBlockConfig,
        mLSTMLayerConfig,
        sLSTMBlockConfig,
        sLSTMLayerConfig,
        xLSTMLMModel,
        xLSTMLMModelConfig,
    )

    mlstm = mLSTMBlockConfig(mlstm=mLSTMLayerConfig(conv1d_kernel_size=4, qkv_proj_blocksize=4, num_heads=HEADS))
    layer = sLSTMLayerConfig(backend="vanilla", num_heads=HEADS, conv1d_kernel_size=4)
    slstm = sLSTMBlockConfig(slstm=layer, feedforward=FeedForwardConfig(proj_factor=1.3, act_fn="gelu"))
    return xLSTMLMModel(
        xLSTMLMModelConfig(
            mlstm_block=mlstm, slstm_block=slstm, context_length=LENGTH, num_blocks=DEPTH, embedding_dim=DIM,
            slstm_at=[1], vocab_size=VOCAB,
        )
    )


@model("fast-weight-attention", whole=False)
def fast_weight_attention() -> nn.Module:
    from fast_weight_attention import FastWeightAttention

    return Layers(lambda: FastWeightAttention(DIM, dim_head=HEAD, heads=HEADS, chunk_size=8))


@model("gated-state-spaces-pytorch")
def gated_state_spaces() -> nn.Module:
    from gated_state_spaces_pytorch import GatedStateSpacesLM

    return GatedStateSpacesLM(num_tokens=VOCAB, dim=DIM, depth=DEPTH, dss_kernel_N=32, dss_kernel_H=32)


@model("FLASH-pytorch")
def flash() -> nn.Module:
    from flash_pytorch import FLASHTransformer

    return FLASHTransformer(
        num_tokens=VOCAB, dim=DIM, depth=DEPTH, causal=True, group_size=16, query_key_dim=32, laplace_attn_fn=True
    )


@model("s5-pytorch", whole=False)
def s5() -> nn.Module:
    from s5 import S5

    return Layers(lambda: S5(DIM, 32))


@model("long-short-transformer")
def long_short() -> nn.Module:
    from long_short_transformer import LongShortTransformer

    return LongShortTransformer(
        num_tokens=VOCAB, dim=DIM, depth=DEPTH, heads=HEADS, dim_head=HEAD, max_seq_len=LENGTH, window_size=16,
        segment_size=8, r=1, causal=True,
    )


@model("ponder-transformer", note="of its two outputs in evaluation the first, the logits")
def ponder() -> nn.Module:
    from ponder_transformer import PonderTransformer

    return PonderTransformer(num_tokens=VOCAB, dim=DIM, max_seq_len=LENGTH, causal=True, dim_head=HEAD, heads=HEADS)


@model("multistream-transformers")
def multistream() -> nn.Module:
    from multistream_transformers import MultistreamTransformer

    return MultistreamTransformer(
        num_tokens=VOCAB, dim=DIM, depth=DEPTH, max_seq_len=LENGTH, causal=True, dim_head=HEAD, heads=HEADS, num_streams=2
    )


@model("torchxlstm", whole=False)
def torchxlstm() -> nn.Module:
    from torchxlstm import xLSTM

    return Layers(lambda: xLSTM(DIM, HEAD, HEADS, layers=["m", "s"], batch_first=True), count=1)


@model("opengdn", whole=False)
def opengdn() -> nn.Module:
    from opengdn import GatedDeltaMixer

    return Layers(lambda: GatedDeltaMixer(DIM, HEADS, backend="pytorch", chunk_size=16))


@model("RLT-pytorch")
def rlt() -> nn.Module:
    from RLT import RLT

    return RLT(
        DIM, enc_depth=DEPTH, dec_depth=DEPTH, num_tokens=VOCAB, dim_head=HEAD, heads=HEADS, recurrent_block_size=4
    )


@model("llms-from-scratch", "ch04 GPTModel")
def llms_from_scratch() -> nn.Module:
    from llms_from_scratch.ch04 import GPTModel

    return GPTModel({"vocab_size": VOCAB, "context_length": LENGTH, "emb_dim": DIM, "n_heads": HEADS, "n_layers": DEPTH, "drop_rate": 0.1, "qkv_bias": False})


@model("llms-from-scratch", "Llama3Model")
def llms_from_scratch_llama() -> nn.Module:
    from llms_from_scratch.llama3 import Llama3Model

    return Llama3Model({"vocab_size": VOCAB, "context_length": LENGTH, "emb_dim": DIM, "n_heads": HEADS, "n_layers": DEPTH, "hidden_dim": 128, "n_kv_groups": 2, "rope_base": 1e4, "dtype": torch.float32, "rope_freq": None})


@model("llms-from-scratch", "Qwen3Model")
def llms_from_scratch_qwen() -> nn.Module:
    from llms_from_scratch.qwen3 import Qwen3Model

    return Qwen3Model({"vocab_size": VOCAB, "context_length": LENGTH, "emb_dim": DIM, "n_heads": HEADS, "n_layers": DEPTH, "hidden_dim": 128, "head_dim": HEAD, "qk_norm": True, "n_kv_groups": 2, "rope_base": 1e4, "dtype": torch.float32})


@model("pylmt", "GPT")
def pylmt_gpt() -> nn.Module:
    from lmt import GPT, ModelConfig

    return GPT(ModelConfig(context_length=LENGTH, vocab_size=VOCAB, num_layers=DEPTH, num_heads=HEADS, embed_dim=DIM))


@model("pylmt", "LLaMA")
def pylmt_llama() -> nn.Module:
    from lmt import LLaMA, ModelConfig

    return LLaMA(ModelConfig(context_length=LENGTH, vocab_size=VOCAB, num_layers=DEPTH, num_heads=HEADS, embed_dim=DIM, num_kv_heads=2))


@model("pylmt", "Mamba")
def pylmt_mamba() -> nn.Module:
    from lmt import Mamba, ModelConfig

    return Mamba(ModelConfig(context_length=LENGTH, vocab_size=VOCAB, num_layers=DEPTH, num_heads=HEADS, embed_dim=DIM))


@model("kydon-gpt")
def kydon() -> nn.Module:
    from kydon_gpt.GPTModel import GPTModel

    return GPTModel({"vocab_size": VOCAB, "context_length": LENGTH, "emb_dim": DIM, "n_heads": HEADS, "n_layers": DEPTH, "drop_rate": 0.1, "qkv_bias": False})


@model("nano-gpt", note="its tokenizer, which the model only keeps, is left out")
def nano_gpt() -> nn.Module:
    from nano_gpt.model import GPT, GPTConfig

    return GPT(GPTConfig(block_size=LENGTH, vocab_size=VOCAB, n_layer=DEPTH, n_head=HEADS, n_embd=DIM), None)


@model("curated-transformers", "GPTNeoXCausalLM", note="its mask, which it requires, is all true")
def curated_neox() -> nn.Module:
    from curated_transformers.layers import AttentionMask
    from curated_transformers.models import GPTNeoXCausalLM, GPTNeoXConfig

    return Called(
        GPTNeoXCausalLM(GPTNeoXConfig(dtype=torch.float32, hidden_width=DIM, intermediate_width=128, n_attention_heads=HEADS, n_hidden_layers=DEPTH, n_pieces=VOCAB)),
        lambda inner, ids: inner(ids, AttentionMask(torch.ones_like(ids, dtype=torch.bool))).logits,
    )


@model("curated-transformers", "LlamaCausalLM", note="its mask, which it requires, is all true")
def curated_llama() -> nn.Module:
    from curated_transformers.layers import AttentionMask
    from curated_transformers.models import LlamaCausalLM, LlamaConfig

    return Called(
        LlamaCausalLM(LlamaConfig(dtype=torch.float32, hidden_width=DIM, intermediate_width=128, n_query_heads=HEADS, n_key_value_heads=2, n_hidden_layers=DEPTH, n_pieces=VOCAB, rotary_embedding_fraction=1.0)),
        lambda inner, ids: inner(ids, AttentionMask(torch.ones_like(ids, dtype=torch.bool))).logits,
    )


@model("pytorch-mixtures", "ExpertChoiceMoE", whole=False)
def pytorch_mixtures_choice() -> nn.Module:
    from pytorch_mixtures import ExpertChoiceMoE, MoEConfig

    return Layers(lambda: Mixed(ExpertChoiceMoE(MoEConfig(DIM, 128, 4, "mlp", "gelu", "ec", 1.0, None, torch.float32))))


@model("pytorch-mixtures", "TopkMoE", whole=False)
def pytorch_mixtures_topk() -> nn.Module:
    from pytorch_mixtures import MoEConfig, TopkMoE

    return Layers(lambda: Mixed(TopkMoE(MoEConfig(DIM, 128, 4, "mlp", "gelu", "topk", None, 2, torch.float32))))


@model("memory-efficient-attention-pytorch")
def memory_efficient() -> nn.Module:
    from memory_efficient_attention_pytorch.transformer import Transformer

    return Transformer(
        num_tokens=VOCAB, max_seq_len=LENGTH, dim=DIM, depth=DEPTH, causal=True, dim_head=HEAD, heads=HEADS,
        use_flash_attn=False, memory_efficient=True, q_bucket_size=8, k_bucket_size=16,
    )


@model("memory-efficient-attention-pytorch", "use_flash_attn")
def memory_efficient_flash() -> nn.Module:
    from memory_efficient_attention_pytorch.transformer import Transformer

    return Transformer(
        num_tokens=VOCAB, max_seq_len=LENGTH, dim=DIM, depth=DEPTH, causal=True, dim_head=HEAD, heads=HEADS,
        q_bucket_size=8, k_bucket_size=16,
    )


@model("ring-attention-pytorch")
def ring_attention() -> nn.Module:
    from ring_attention_pytorch import RingTransformer

    return RingTransformer(
        num_tokens=VOCAB, dim=DIM, depth=DEPTH, causal=True, dim_head=HEAD, heads=HEADS, bucket_size=16,
        num_grouped_query_heads=2,
    )


@model("darkformer-pytorch")
def darkformer() -> nn.Module:
    from darkformer_pytorch import DarkformerLM

    return DarkformerLM(VOCAB, DIM, DEPTH, heads=HEADS, max_seq_len=LENGTH, causal_chunk_size=16)


@model("coconut-pytorch")
def coconut() -> nn.Module:
    from coconut_pytorch import Transformer

    return Transformer(num_tokens=VOCAB, dim=DIM, depth=DEPTH, dim_head=HEAD, heads=HEADS)


@model("multihead-latent-attention", whole=False)
def mla() -> nn.Module:
    from mla import MLA, MLAConfig

    return Layers(lambda: MLA(MLAConfig(DIM, HEADS, kv_compressed_dim=32, q_compressed_dim=32, rope_dim=8, seq_len=LENGTH)))


@model("torchscale", "RetNetDecoder")
def torchscale_retnet() -> nn.Module:
    from torchscale.architecture.config import RetNetConfig
    from torchscale.architecture.retnet import RetNetDecoder

    config = RetNetConfig(vocab_size=VOCAB, decoder_embed_dim=DIM, decoder_value_embed_dim=DIM, decoder_retention_heads=HEADS, decoder_ffn_embed_dim=128, decoder_layers=DEPTH)
    return RetNetDecoder(config, embed_tokens=nn.Embedding(VOCAB, DIM))


@model("torchscale", "RetNetDecoder, chunks of 16")
def torchscale_retnet_chunks() -> nn.Module:
    from torchscale.architecture.config import RetNetConfig
    from torchscale.architecture.retnet import RetNetDecoder

    config = RetNetConfig(vocab_size=VOCAB, decoder_embed_dim=DIM, decoder_value_embed_dim=DIM, decoder_retention_heads=HEADS, decoder_ffn_embed_dim=128, decoder_layers=DEPTH, chunkwise_recurrent=True, recurrent_chunk_size=16)
    return RetNetDecoder(config, embed_tokens=nn.Embedding(VOCAB, DIM))


@model("torchscale", "Decoder")
def torchscale_decoder() -> nn.Module:
    from torchscale.architecture.config import DecoderConfig
    from torchscale.architecture.decoder import Decoder

    config = DecoderConfig(vocab_size=VOCAB, decoder_embed_dim=DIM, decoder_attention_heads=HEADS, decoder_ffn_embed_dim=128, decoder_layers=DEPTH, xpos_rel_pos=True)
    return Decoder(config, embed_tokens=nn.Embedding(VOCAB, DIM))


@model("stackformer", "GPT2")
def stackformer_gpt2() -> nn.Module:
    from stackformer import GPT2

    return GPT2(VOCAB, DEPTH, DIM, HEADS, LENGTH)


@model("stackformer", "Llama2")
def stackformer_llama2() -> nn.Module:
    from stackformer import Llama2

    return Llama2(VOCAB, DEPTH, DIM, HEADS, 2, batch_size=8, kv_seq_len=LENGTH)


@model("stackformer", "Gemma1_2B")
def stackformer_gemma() -> nn.Module:
    from stackformer import Gemma1_2B

    return Gemma1_2B(VOCAB, DEPTH, DIM, HEADS, LENGTH)


@model("openlanguagemodel", "LM")
def olm() -> nn.Module:
    from olm.nn.blocks.LM import LM

    return LM(VOCAB, DIM, HEADS, DEPTH, LENGTH)


@model("attn-res")
def attn_res() -> nn.Module:
    from attn_res import AttnResTransformer, TransformerConfig

    return AttnResTransformer(
        TransformerConfig(d_model=DIM, n_layers=4, n_heads=HEADS, n_kv_heads=2, vocab_size=VOCAB, max_seq_len=LENGTH, n_blocks=2)
    )


@model("mamba3-ssm")
def mamba3() -> nn.Module:
    from mamba3_ssm import MambaConfig, MambaLMHeadModel

    return MambaLMHeadModel(
        MambaConfig(d_model=DIM, n_layer=DEPTH, vocab_size=VOCAB, ssm_cfg={"d_state": 16, "headdim": 16})
    )


@model("bitnet", note="torchvision, imported for images, is a stand-in")
def bitnet() -> nn.Module:
    without("torchvision", "torchvision.transforms")
    from bitnet import BitNetTransformer

    return BitNetTransformer(dim=DIM, depth=DEPTH, num_tokens=VOCAB, heads=HEADS)


@model("griffin-torch", note="torchvision, imported for images, is a stand-in")
def griffin() -> nn.Module:
    without("torchvision", "torchvision.transforms")
    from griffin_torch import Griffin

    return Griffin(dim=DIM, depth=DEPTH, num_tokens=VOCAB, seq_len=LENGTH, mlp_mult=2)


@model("switch-transformers", note="torchvision, imported for images, is a stand-in")
def switch_transformers() -> nn.Module:
    without("torchvision", "torchvision.transforms")
    from switch_transformers import SwitchTransformer

    return SwitchTransformer(num_tokens=VOCAB, dim=DIM, heads=HEADS, dim_head=HEAD, depth=DEPTH)


@model("longnet", note="torchvision, imported for images, is a stand-in")
def longnet() -> nn.Module:
    without("torchvision", "torchvision.transforms")
    from long_net import LongNetTransformer

    return LongNetTransformer(num_tokens=VOCAB, dim=DIM, depth=DEPTH, dim_head=HEAD, heads=HEADS, ff_mult=4)


@model("differential-transformer", note="torchvision, imported for images, is a stand-in")
def differential_transformer() -> nn.Module:
    without("torchvision", "torchvision.transforms")
    from differential_transformer import DifferentialTransformer

    return DifferentialTransformer(dim=DIM, heads=HEADS, depth=DEPTH, num_tokens=VOCAB)


@model("moe-mamba", note="torchvision, imported for images, is a stand-in")
def moe_mamba() -> nn.Module:
    without("torchvision", "torchvision.transforms")
    from moe_mamba import MoEMamba

    return MoEMamba(num_tokens=VOCAB, dim=DIM, depth=DEPTH, d_state=16, causal=True, dim_head=HEAD)


@model("zetascale", "Decoder", note="torchvision, imported for images, is a stand-in")
def zeta() -> nn.Module:
    without("torchvision", "torchvision.transforms")
    from zeta.structs import Decoder, Transformer

    return Transformer(num_tokens=VOCAB, max_seq_len=LENGTH, attn_layers=Decoder(dim=DIM, depth=DEPTH, heads=HEADS))


@model("sru", whole=False)
def sru() -> nn.Module:
    from sru import SRU

    return Layers(lambda: Turned(SRU(DIM, DIM, num_layers=1)))


class Turned(nn.Module):
    """A layer that has time before the batch."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, hidden: Tensor) -> Tensor:
        return _first(self.inner(hidden.transpose(0, 1))).transpose(0, 1)
