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
import multiprocessing
import sys
import tempfile
import textwrap
import time
import warnings
from collections.abc import Callable
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import MagicMock

import torch
from torch import Tensor, nn

from mu_sota import __version__
from mu_sota.common import environment
from mu_sota.common.files import replacing, write_json
from mu_sota.common.text import one_line
from mu_sota.leakcheck.checks import check
from mu_sota.leakcheck.logits import logits_in
from mu_sota.model.errors import InputError

VOCAB, DIM, DEPTH, HEADS, HEAD, LENGTH = 96, 64, 2, 4, 16, 128
"""Sizes of all models: vocabulary, width, layers, heads, width of a head, longest text."""

TINY = {"num_tokens": VOCAB, "dim": DIM, "depth": DEPTH}
MANY_HEADS = {"heads": HEADS, "dim_head": HEAD}
"""Arguments by the names that many packages share."""

ROWS, TOKENS = 5, 61
"""Of the plain calls; the same as of the check."""

CUTS = (1, 2, 7, 16, 31, 32, 33, 48, 60)
"""Where the plain calls replace the rest of the text, or end it."""

SHORT = 6
"""Tokens of a short text, in which few tokens decide."""

LEAST = {"float64": 1e-5, "float32": 1e-3}
"""Changes by plain calls, in standard deviations of the logits, that are no rounding (parts compute in float32)."""

BASE = (
    "torch==2.13.0 transformers==5.24.0 accelerate==1.15.0 datasets==5.2.0 psutil==7.2.2 numpy==2.4.6 "
    "scipy==1.17.1 matplotlib==3.11.2 einops==0.8.2 safetensors==0.8.0 tqdm==4.70.1 pydantic==2.14.4 "
    "pyyaml==6.0.4 typer==0.29.2 filelock==4.3.1 jinja2==3.1.6 setuptools==84.2.1 wheel==0.48.0"
)
"""What our package and most of the surveyed ones need; installed with all that these need themselves."""

NEEDED = (
    "adam-atan2-pytorch==0.4.1 antlr4-python3-runtime==4.13.2 assoc-scan==0.0.6 "
    "axial-positional-embedding==0.3.12 beartype==0.23.1 better-abc==0.0.3 catalogue==2.0.10 "
    "certifi==2026.10.19.post1 charset-normalizer==3.5.3 cloudpickle==3.1.3 curated-tokenizers==2.0.1 "
    "einops-exts==0.0.4 einx==0.4.3 ema-pytorch==0.8.3 fairscale==0.4.13 faiss-cpu==1.15.1 fancy-einsum==0.0.3 "
    "frozendict==2.5.1 hl-gauss-pytorch==0.3.0 hyper-connections==0.4.11 jaxtyping==0.3.11 joblib==1.6.0 "
    "lightning==2.6.6 lightning-utilities==0.15.3 linformer==0.2.3 lion-pytorch==0.2.5 loguru==0.7.3 "
    "memmap-replay-buffer==0.2.3 mogrifier==0.0.5 omegaconf==2.4.0 orjson==3.13.0 pytorch-lightning==2.6.6 "
    "pyvers==0.2.3 requests==2.34.2 rich==15.0.0 sentencepiece==0.2.3 swarms-torch==0.2.3 tensordict==0.15.3 "
    "tiktoken==0.14.0 torch-einops-utils==0.2.0 torchao==0.9.0 torchdata==0.11.0 torchmetrics==1.9.0 "
    "transformers-stream-generator==0.0.5 typeguard==4.6.1 urllib3==2.8.0 vector-quantize-pytorch==1.32.0 "
    "wadler-lindig==0.1.8 x-mlps-pytorch==0.6.9"
)
"""What surveyed packages need beyond that; installed without what these would pull in, such as another PyTorch."""

SURVEYED = (
    "attn-res==0.1.0 bitnet==0.2.5 block-recurrent-transformer-pytorch==0.4.4 coconut-pytorch==0.0.32 "
    "CoLT5-attention==0.11.2 compressive-transformer-pytorch==0.4.0 conformer==0.3.2 curated-transformers==2.0.1 "
    "darkformer-pytorch==1.0.0 differential-transformer==0.0.3 fast-weight-attention==0.3.1 "
    "feedback-transformer-pytorch==0.0.11 FLASH-pytorch==0.1.9 g-mlp-pytorch==0.1.5 "
    "gated-state-spaces-pytorch==0.1.0 gateloop-transformer==0.2.5 griffin-torch==0.0.3 h-transformer-1d==0.1.9 "
    "hourglass-transformer-pytorch==0.0.6 infini-transformer-pytorch==0.2.1 kydon-gpt==0.0.1 "
    "linear-attention-transformer==0.19.1 litgpt==0.5.13 llms-from-scratch==1.0.19 local-attention==1.11.2 "
    "long-short-transformer==0.0.5 longnet==0.5.7 mamba3-ssm==0.2.1 mambapy==1.2.0 Mega-pytorch==0.1.0 "
    "MEGABYTE-pytorch==0.3.6 memorizing-transformers-pytorch==0.4.1 memory-efficient-attention-pytorch==0.1.6 "
    "memory-transformer-xl==0.1.0 minGRU-pytorch==0.2.1 minimamba==1.0.1 mixture-of-attention==0.0.25 "
    "mixture-of-experts==0.2.3 moe-mamba==0.0.3 multihead-latent-attention==0.1.0 multistream-transformers==0.0.4 "
    "nano-gpt==0.1.0 native-sparse-attention-pytorch==0.2.3 opengdn==0.1.0 openlanguagemodel==2.2.1 "
    "PaLM-pytorch==0.2.2 PaLM-rlhf-pytorch==0.8.0 PEER-pytorch==0.2.2 perceiver-ar-pytorch==0.0.10 "
    "performer-pytorch==1.1.4 ponder-transformer==0.0.8 product-key-memory==0.3.0 pylmt==0.7.0 "
    "pytorch-mixtures==0.1.5 recurrent-memory-transformer-pytorch==0.7.0 reformer-pytorch==1.4.4 "
    "ring-attention-pytorch==0.5.20 RLT-pytorch==0.1.9 rotary-embedding-torch==0.9.1 routing-transformer==1.6.1 "
    "rwkv7-hf==0.9.0 s5-pytorch==0.2.1 simple-hierarchical-transformer==0.4.0 sinkhorn-transformer==0.11.4 "
    "soft-moe-pytorch==0.1.9 sru==2.6.0 st-moe-pytorch==0.1.8 stackformer==0.1.10 switch-transformers==0.0.4 "
    "taylor-series-linear-attention==0.2.0 titans-pytorch==0.5.5 token-shift-gpt==0.0.2 torchscale==0.3.0 "
    "torchtune==0.6.1 torchxlstm==0.0.3 transformer-lens==2.16.1 x-transformers==2.31.10 xlstm==2.0.6 "
    "yet-another-retnet==0.5.1 zetascale==2.8.8"
)


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

    def __init__(self, inner: nn.Module, call: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.inner, self.call = inner, call

    def forward(self, ids: Tensor) -> Any:
        return self.call(self.inner, ids)


def _first(output: Any) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


def without(name: str) -> None:
    """A stand-in for a package that is imported for something else than the language model."""
    from transformers.utils import import_utils

    import_utils.is_torchvision_available()  # remembers the answer
    sys.meta_path.insert(0, StandIns(name))


class StandIns(MetaPathFinder, Loader):
    """Finds a package and all its modules, which have whatever name is asked for."""

    def __init__(self, name: str) -> None:
        self.name = name

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> ModuleSpec | None:
        return ModuleSpec(fullname, self, is_package=True) if fullname.partition(".")[0] == self.name else None

    def create_module(self, spec: ModuleSpec) -> Any:
        return MagicMock(__path__=[])

    def exec_module(self, module: Any) -> None:
        pass


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
        dim=DIM,
        depth=DEPTH,
        heads=HEADS,
        attn_dim_head=HEAD,
        dynamic_pos_bias=True,
        attn_num_mem_kv=4,
        sandwich_norm=True,
    )
    return TransformerWrapper(num_tokens=VOCAB, max_seq_len=LENGTH, num_memory_tokens=4, attn_layers=layers)


@model("reformer-pytorch")
def reformer() -> nn.Module:
    from reformer_pytorch import ReformerLM

    return Padded(ReformerLM(**TINY, max_seq_len=LENGTH, heads=HEADS, bucket_size=8, n_hashes=2, causal=True), 16)


@model("reformer-pytorch", "use_full_attn")
def reformer_full() -> nn.Module:
    from reformer_pytorch import ReformerLM

    return Padded(
        ReformerLM(**TINY, max_seq_len=LENGTH, heads=HEADS, bucket_size=8, causal=True, use_full_attn=True), 16
    )


@model("performer-pytorch")
def performer() -> nn.Module:
    from performer_pytorch import PerformerLM

    return PerformerLM(**TINY, **MANY_HEADS, max_seq_len=LENGTH, causal=True)


@model("performer-pytorch", "generalized_attention, local heads")
def performer_generalized() -> nn.Module:
    from performer_pytorch import PerformerLM

    return PerformerLM(
        **TINY,
        **MANY_HEADS,
        max_seq_len=LENGTH,
        causal=True,
        generalized_attention=True,
        local_attn_heads=2,
        local_window_size=16,
    )


@model("linear-attention-transformer")
def linear_attention_transformer() -> nn.Module:
    from linear_attention_transformer import LinearAttentionTransformerLM

    return Padded(
        LinearAttentionTransformerLM(
            **TINY, max_seq_len=LENGTH, heads=HEADS, causal=True, n_local_attn_heads=2, local_attn_window_size=16
        ),
        16,
    )


@model("linear-attention-transformer", "blindspot_size=8")
def linear_attention_transformer_blind() -> nn.Module:
    from linear_attention_transformer import LinearAttentionTransformerLM

    return Padded(
        LinearAttentionTransformerLM(
            **TINY,
            max_seq_len=LENGTH,
            heads=HEADS,
            causal=True,
            blindspot_size=8,
            n_local_attn_heads=2,
            local_attn_window_size=16,
        ),
        16,
    )


@model("routing-transformer", note="its clusters are set by another text first")
def routing_transformer() -> nn.Module:
    from routing_transformer import RoutingTransformerLM

    net = RoutingTransformerLM(**TINY, max_seq_len=LENGTH, heads=HEADS, window_size=16, causal=True)
    net(torch.randint(VOCAB, (8, LENGTH)))
    return Padded(net, LENGTH)


@model("routing-transformer", "all heads local")
def routing_transformer_local() -> nn.Module:
    from routing_transformer import RoutingTransformerLM

    return Padded(
        RoutingTransformerLM(
            **TINY, max_seq_len=LENGTH, heads=HEADS, window_size=16, causal=True, n_local_attn_heads=HEADS
        ),
        LENGTH,
    )


@model("sinkhorn-transformer")
def sinkhorn() -> nn.Module:
    from sinkhorn_transformer import SinkhornTransformerLM

    return Padded(SinkhornTransformerLM(**TINY, max_seq_len=LENGTH, heads=HEADS, bucket_size=16, causal=True), LENGTH)


@model("local-attention")
def local_attention() -> nn.Module:
    from local_attention import LocalTransformer

    return LocalTransformer(
        **TINY, **MANY_HEADS, max_seq_len=LENGTH, local_attn_window_size=16, causal=True, use_xpos=True
    )


@model("rotary-embedding-torch", whole=False)
def rotary() -> nn.Module:
    from rotary_embedding_torch import RotaryEmbedding

    return Layers(lambda: Attention(RotaryEmbedding(dim=HEAD).rotate_queries_or_keys), positions=False)


@model("memory-transformer-xl")
def memory_transformer_xl() -> nn.Module:
    from memory_transformer_xl import MemoryTransformerXL

    return MemoryTransformerXL(**TINY, heads=HEADS, seq_len=LENGTH, mem_len=LENGTH, lmem_len=32)


@model("compressive-transformer-pytorch")
def compressive() -> nn.Module:
    from compressive_transformer_pytorch import CompressiveTransformer

    return CompressiveTransformer(**TINY, seq_len=LENGTH, mem_len=LENGTH, cmem_len=LENGTH // 4, heads=HEADS)


@model("feedback-transformer-pytorch")
def feedback() -> nn.Module:
    from feedback_transformer_pytorch import FeedbackTransformer

    return FeedbackTransformer(**TINY, **MANY_HEADS, seq_len=2, mem_len=32)


@model("recurrent-memory-transformer-pytorch")
def recurrent_memory() -> nn.Module:
    from recurrent_memory_transformer_pytorch import RecurrentMemoryTransformer

    return Called(
        RecurrentMemoryTransformer(
            DIM, **MANY_HEADS, num_tokens=VOCAB, depth=DEPTH, num_memory_tokens=4, seq_len=LENGTH, causal=True
        ),
        lambda inner, ids: inner(ids)[0],
    )


@model("recurrent-memory-transformer-pytorch", "in segments of 16")
def recurrent_memory_segments() -> nn.Module:
    from recurrent_memory_transformer_pytorch import RecurrentMemoryTransformer, RecurrentMemoryTransformerWrapper

    return Called(
        RecurrentMemoryTransformerWrapper(
            RecurrentMemoryTransformer(
                DIM, **MANY_HEADS, num_tokens=VOCAB, depth=DEPTH, num_memory_tokens=4, seq_len=16, causal=True
            )
        ),
        lambda inner, ids: inner(ids)[0],
    )


@model("block-recurrent-transformer-pytorch")
def block_recurrent() -> nn.Module:
    from block_recurrent_transformer_pytorch import BlockRecurrentTransformer

    return BlockRecurrentTransformer(
        **TINY, **MANY_HEADS, max_seq_len=LENGTH, block_width=16, recurrent_layers=(2,), num_state_vectors=16
    )


@model("Mega-pytorch")
def mega() -> nn.Module:
    from mega_pytorch import Mega

    return Mega(**TINY, ema_heads=8, attn_dim_qk=16, attn_dim_value=64, laplacian_attn_fn=True, causal=True)


@model("Mega-pytorch", "softmax")
def mega_softmax() -> nn.Module:
    from mega_pytorch import Mega

    return Mega(**TINY, ema_heads=8, attn_dim_qk=16, attn_dim_value=64, causal=True)


@model("gateloop-transformer")
def gateloop() -> nn.Module:
    from gateloop_transformer import Transformer

    return Transformer(DIM, **MANY_HEADS, num_tokens=VOCAB, depth=DEPTH)


@model("simple-hierarchical-transformer")
def simple_hierarchical() -> nn.Module:
    from simple_hierarchical_transformer import HierarchicalTransformer

    return HierarchicalTransformer(**TINY, **MANY_HEADS, seq_len=LENGTH, hierarchies=(1, 4), window_sizes=(16, None))


@model("h-transformer-1d")
def h_transformer() -> nn.Module:
    from h_transformer_1d import HTransformer1D

    return HTransformer1D(**TINY, **MANY_HEADS, max_seq_len=LENGTH, causal=True, block_size=16)


@model("g-mlp-pytorch")
def g_mlp() -> nn.Module:
    from g_mlp_pytorch import gMLP

    return Padded(gMLP(**TINY, seq_len=LENGTH, heads=2, causal=True), LENGTH)


@model("g-mlp-pytorch", "circulant_matrix, attn_dim")
def g_mlp_circulant() -> nn.Module:
    from g_mlp_pytorch import gMLP

    return Padded(gMLP(**TINY, seq_len=LENGTH, heads=2, causal=True, circulant_matrix=True, attn_dim=16), LENGTH)


@model("MEGABYTE-pytorch")
def megabyte() -> nn.Module:
    from MEGABYTE_pytorch import MEGABYTE

    return MEGABYTE(**MANY_HEADS, num_tokens=VOCAB, dim=(DIM, DIM), depth=(DEPTH, DEPTH), max_seq_len=(32, 4))


@model("memorizing-transformers-pytorch", note="with empty memories at every call")
def memorizing() -> nn.Module:
    from memorizing_transformers_pytorch import MemorizingTransformer

    def with_memories(inner: Any, ids: Tensor) -> Tensor:
        with inner.knn_memories_context(batch_size=ids.shape[0]) as memories:
            return inner(ids, knn_memories=memories)

    return Called(
        MemorizingTransformer(
            **TINY,
            **MANY_HEADS,
            memorizing_layers=2,
            num_retrieved_memories=4,
            max_knn_memories=1000,
            knn_memories_directory=f"{tempfile.gettempdir()}/knn.memories",
        ),
        with_memories,
    )


@model("yet-another-retnet")
def yet_another_retnet() -> nn.Module:
    from yet_another_retnet.retnet import RetNet

    return Called(
        RetNet(num_tokens=VOCAB, d_model=DIM, nhead=HEADS, num_layers=DEPTH, dim_feedforward=128),
        lambda inner, ids: inner.forward_parallel(ids),
    )


@model("yet-another-retnet", "forward_chunkwise")
def yet_another_retnet_chunks() -> nn.Module:
    from yet_another_retnet.retnet import RetNet

    def in_chunks(inner: Any, ids: Tensor) -> Tensor:
        states: list[Tensor] = []
        logits = []
        for start in range(0, ids.shape[1], 16):
            part, states = inner.forward_chunkwise(ids[:, start : start + 16], start, states)
            logits.append(part)
        return torch.cat(logits, dim=1)

    return Called(RetNet(num_tokens=VOCAB, d_model=DIM, nhead=HEADS, num_layers=DEPTH, dim_feedforward=128), in_chunks)


@model("rwkv7-hf")
def rwkv7() -> nn.Module:
    from rwkv7_hf import RWKV7Config, RWKV7ForCausalLM

    return RWKV7ForCausalLM(
        RWKV7Config(
            vocab_size=VOCAB,
            hidden_size=DIM,
            num_hidden_layers=DEPTH,
            head_dim=HEAD,
            num_heads=HEADS,
            decay_low_rank_dim=8,
            gate_low_rank_dim=8,
            a_low_rank_dim=8,
            v_low_rank_dim=8,
            initializer_range=0.2,
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

    return minLM(**TINY, enable_conv=True)


@model("minGRU-pytorch", "use_lstm")
def min_lstm() -> nn.Module:
    from minGRU_pytorch.minLM import minLM

    return minLM(**TINY, use_lstm=True)


@model("st-moe-pytorch", whole=False)
def st_moe() -> nn.Module:
    from st_moe_pytorch import MoE

    return Layers(lambda: Mixed(MoE(dim=DIM, num_experts=4)))


@model("st-moe-pytorch", "capacity for all", whole=False)
def st_moe_capacity() -> nn.Module:
    from st_moe_pytorch import MoE

    return Layers(lambda: Mixed(MoE(dim=DIM, num_experts=4, capacity_factor_train=8.0, capacity_factor_eval=8.0)))


@model("mixture-of-experts", whole=False)
def mixture_of_experts() -> nn.Module:
    from mixture_of_experts import MoE

    return Layers(lambda: Mixed(MoE(dim=DIM, num_experts=4)))


@model("mixture-of-experts", "second_policy_eval=all", whole=False)
def mixture_of_experts_all() -> nn.Module:
    from mixture_of_experts import MoE

    return Layers(lambda: Mixed(MoE(dim=DIM, num_experts=4, second_policy_eval="all")))


@model("mixture-of-experts", "second_policy_eval=all, capacity for all", whole=False)
def mixture_of_experts_capacity() -> nn.Module:
    from mixture_of_experts import MoE

    return Layers(
        lambda: Mixed(
            MoE(
                dim=DIM,
                num_experts=4,
                second_policy_train="all",
                second_policy_eval="all",
                capacity_factor_train=8.0,
                capacity_factor_eval=8.0,
            )
        )
    )


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

    return Layers(lambda: Mixed(PKM(**MANY_HEADS, dim=DIM, num_keys=16, topk=8)))


@model("PaLM-rlhf-pytorch")
def palm_rlhf() -> nn.Module:
    from palm_rlhf_pytorch import PaLM

    return PaLM(**TINY, **MANY_HEADS)


@model("PaLM-pytorch")
def palm() -> nn.Module:
    from palm_pytorch import PaLM

    return PaLM(**TINY, **MANY_HEADS)


@model("titans-pytorch")
def titans() -> nn.Module:
    from titans_pytorch import MemoryAsContextTransformer

    return MemoryAsContextTransformer(
        **TINY,
        **MANY_HEADS,
        segment_len=16,
        num_persist_mem_tokens=4,
        num_longterm_mem_tokens=4,
        neural_memory_layers=(2,),
    )


@model("titans-pytorch", "NeuralMemory", whole=False)
def titans_memory() -> nn.Module:
    from titans_pytorch import NeuralMemory

    return Layers(lambda: NeuralMemory(dim=DIM, chunk_size=8))


@model("native-sparse-attention-pytorch")
def native_sparse() -> nn.Module:
    from native_sparse_attention_pytorch.transformer import Transformer

    return Transformer(
        VOCAB,
        DIM,
        DEPTH,
        **MANY_HEADS,
        kv_heads=2,
        use_sparse_attn=True,
        sparse_attn_kwargs={
            "sliding_window_size": 8,
            "compress_block_size": 8,
            "compress_block_sliding_stride": 4,
            "selection_block_size": 8,
            "num_selected_blocks": 2,
        },
    )


@model("litgpt", "Llama")
def litgpt_llama() -> nn.Module:
    from litgpt import GPT, Config

    return GPT(
        Config.from_name(
            "Llama-3.2-1B",
            block_size=LENGTH,
            n_layer=DEPTH,
            n_embd=DIM,
            n_head=HEADS,
            n_query_groups=2,
            head_size=HEAD,
            padded_vocab_size=VOCAB,
            vocab_size=VOCAB,
            intermediate_size=128,
        )
    )


@model("litgpt", "Gemma 2, sliding windows of 16")
def litgpt_gemma() -> nn.Module:
    from litgpt import GPT, Config

    return GPT(
        Config.from_name(
            "Gemma-2-2b",
            block_size=LENGTH,
            n_layer=DEPTH,
            n_embd=DIM,
            n_head=HEADS,
            n_query_groups=2,
            head_size=HEAD,
            padded_vocab_size=VOCAB,
            vocab_size=VOCAB,
            intermediate_size=128,
            sliding_window_size=16,
            sliding_window_indices=[1, 0],
        )
    )


@model("litgpt", "Mixtral")
def litgpt_mixtral() -> nn.Module:
    from litgpt import GPT, Config

    return GPT(
        Config.from_name(
            "Mixtral-8x7B-v0.1",
            block_size=LENGTH,
            n_layer=DEPTH,
            n_embd=DIM,
            n_head=HEADS,
            n_query_groups=2,
            padded_vocab_size=VOCAB,
            vocab_size=VOCAB,
            intermediate_size=128,
            n_expert=4,
        )
    )


@model("torchtune", "llama3")
def torchtune_llama() -> nn.Module:
    from torchtune.models.llama3 import llama3

    return llama3(
        VOCAB,
        num_layers=DEPTH,
        num_heads=HEADS,
        num_kv_heads=2,
        embed_dim=DIM,
        max_seq_len=LENGTH,
        intermediate_dim=128,
    )


@model("torchtune", "gemma2")
def torchtune_gemma2() -> nn.Module:
    from torchtune.models.gemma2 import gemma2

    return gemma2(
        VOCAB,
        num_layers=DEPTH,
        num_heads=HEADS,
        head_dim=HEAD,
        num_kv_heads=2,
        embed_dim=DIM,
        intermediate_dim=128,
        max_seq_len=LENGTH,
        sliding_window_size=16,
    )


@model("torchtune", "qwen2")
def torchtune_qwen2() -> nn.Module:
    from torchtune.models.qwen2 import qwen2

    return qwen2(
        VOCAB,
        num_layers=DEPTH,
        num_heads=HEADS,
        num_kv_heads=2,
        embed_dim=DIM,
        intermediate_dim=128,
        max_seq_len=LENGTH,
    )


@model("torchtune", "phi3")
def torchtune_phi3() -> nn.Module:
    from torchtune.models.phi3 import phi3

    return phi3(
        VOCAB,
        num_layers=DEPTH,
        num_heads=HEADS,
        num_kv_heads=HEADS,
        embed_dim=DIM,
        intermediate_dim=128,
        max_seq_len=LENGTH,
    )


@model("conformer", "conv_causal", whole=False, note="the attention of the package has no causal setting")
def conformer() -> nn.Module:
    from conformer import ConformerConvModule

    return Layers(lambda: ConformerConvModule(DIM, causal=True, expansion_factor=2, kernel_size=7))


@model("perceiver-ar-pytorch", note="the prefix, of which there are no logits, is 16 tokens 0")
def perceiver_ar() -> nn.Module:
    from perceiver_ar_pytorch import PerceiverAR

    return Called(
        PerceiverAR(**TINY, max_seq_len=LENGTH, cross_attn_seq_len=16, dim_head=32, heads=HEADS),
        lambda inner, ids: inner(nn.functional.pad(ids, (16, 0))),
    )


@model("transformer-lens", note="version 4 has no model of its own; wandb, imported for logging, is a stand-in")
def transformer_lens() -> nn.Module:
    without("wandb")
    from transformer_lens import HookedTransformer, HookedTransformerConfig

    return HookedTransformer(
        HookedTransformerConfig(
            n_layers=DEPTH,
            d_model=DIM,
            n_ctx=LENGTH,
            d_head=HEAD,
            n_heads=HEADS,
            d_vocab=VOCAB,
            act_fn="gelu",
            positional_embedding_type="rotary",
            device="cpu",
        )
    )


@model(
    "taylor-series-linear-attention",
    whole=False,
    note="without pytorch-fast-transformers, which must be compiled, its causal attention ends the process",
)
def taylor_series() -> nn.Module:
    from taylor_series_linear_attention import TaylorSeriesLinearAttn

    return Layers(lambda: TaylorSeriesLinearAttn(dim=DIM, dim_head=8, heads=HEADS, causal=True, rotary_emb=True))


@model("infini-transformer-pytorch")
def infini() -> nn.Module:
    from infini_transformer_pytorch import InfiniTransformer

    return InfiniTransformer(**TINY, **MANY_HEADS)


@model("CoLT5-attention", "ConditionalRoutedAutoregressiveAttention", whole=False)
def colt5_attention() -> nn.Module:
    from colt5_attention import ConditionalRoutedAutoregressiveAttention

    return Padded(
        Layers(
            lambda: ConditionalRoutedAutoregressiveAttention(
                DIM,
                num_heavy_tokens_q=8,
                num_heavy_tokens_kv=8,
                light_dim_head=HEAD,
                light_heads=HEADS,
                light_window_size=16,
                heavy_window_size=16,
                heavy_dim_head=HEAD,
                heavy_heads=HEADS,
            )
        ),
        16,
    )


@model("CoLT5-attention", "ConditionalRoutedAutoregressiveAttention, all queries", whole=False)
def colt5_attention_all() -> nn.Module:
    from colt5_attention import ConditionalRoutedAutoregressiveAttention

    return Padded(
        Layers(
            lambda: ConditionalRoutedAutoregressiveAttention(
                DIM,
                num_heavy_tokens_q=16,
                num_heavy_tokens_kv=8,
                light_dim_head=HEAD,
                light_heads=HEADS,
                light_window_size=16,
                heavy_window_size=16,
                heavy_dim_head=HEAD,
                heavy_heads=HEADS,
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
                DIM,
                **MANY_HEADS,
                num_routed_queries=8,
                num_routed_key_values=8,
                local_attn_window_size=16,
                num_experts=2,
                flash_attn=False,
            )
        ),
        16,
    )


@model("mixture-of-attention", "MixtureOfAutoregressiveAttention, one expert", whole=False)
def mixture_of_attention_one() -> nn.Module:
    from mixture_of_attention import MixtureOfAutoregressiveAttention

    return Padded(
        Layers(
            lambda: MixtureOfAutoregressiveAttention(
                DIM,
                num_routed_queries=8,
                num_routed_key_values=8,
                local_attn_window_size=16,
                num_experts=1,
                **MANY_HEADS,
                flash_attn=False,
            )
        ),
        16,
    )


@model("token-shift-gpt")
def token_shift() -> nn.Module:
    from token_shift_gpt import TokenShiftGPT

    return Padded(TokenShiftGPT(num_tokens=VOCAB, dim=DIM, max_seq_len=LENGTH, depth=6), LENGTH)


@model("hourglass-transformer-pytorch")
def hourglass() -> nn.Module:
    from hourglass_transformer_pytorch import HourglassTransformerLM

    return Padded(
        HourglassTransformerLM(
            **MANY_HEADS, num_tokens=VOCAB, dim=DIM, max_seq_len=LENGTH, shorten_factor=4, depth=(2, 1, 2)
        ),
        4,
    )


@model("hourglass-transformer-pytorch", "updown_sample_type=linear")
def hourglass_linear() -> nn.Module:
    from hourglass_transformer_pytorch import HourglassTransformerLM

    return Padded(
        HourglassTransformerLM(
            **MANY_HEADS,
            num_tokens=VOCAB,
            dim=DIM,
            max_seq_len=LENGTH,
            shorten_factor=4,
            depth=(2, 1, 2),
            updown_sample_type="linear",
        ),
        4,
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
            mlstm_block=mlstm,
            slstm_block=slstm,
            context_length=LENGTH,
            num_blocks=DEPTH,
            embedding_dim=DIM,
            slstm_at=[1],
            vocab_size=VOCAB,
        )
    )


@model("fast-weight-attention", whole=False)
def fast_weight_attention() -> nn.Module:
    from fast_weight_attention import FastWeightAttention

    return Layers(lambda: FastWeightAttention(DIM, **MANY_HEADS, chunk_size=8))


@model("gated-state-spaces-pytorch")
def gated_state_spaces() -> nn.Module:
    from gated_state_spaces_pytorch import GatedStateSpacesLM

    return GatedStateSpacesLM(**TINY, dss_kernel_N=32, dss_kernel_H=32)


@model("FLASH-pytorch")
def flash() -> nn.Module:
    from flash_pytorch import FLASHTransformer

    return FLASHTransformer(**TINY, causal=True, group_size=16, query_key_dim=32, laplace_attn_fn=True)


@model("s5-pytorch", whole=False)
def s5() -> nn.Module:
    from s5 import S5

    return Layers(lambda: S5(DIM, 32))


@model("long-short-transformer")
def long_short() -> nn.Module:
    from long_short_transformer import LongShortTransformer

    return LongShortTransformer(
        **TINY, **MANY_HEADS, max_seq_len=LENGTH, window_size=16, segment_size=8, r=1, causal=True
    )


@model("ponder-transformer", note="of its two outputs in evaluation the first, the logits")
def ponder() -> nn.Module:
    from ponder_transformer import PonderTransformer

    return PonderTransformer(**MANY_HEADS, num_tokens=VOCAB, dim=DIM, max_seq_len=LENGTH, causal=True)


@model("multistream-transformers")
def multistream() -> nn.Module:
    from multistream_transformers import MultistreamTransformer

    return MultistreamTransformer(**TINY, **MANY_HEADS, max_seq_len=LENGTH, causal=True, num_streams=2)


@model("torchxlstm", whole=False)
def torchxlstm() -> nn.Module:
    from torchxlstm import xLSTM

    return Layers(lambda: xLSTM(DIM, HEAD, HEADS, layers=["m", "s"], batch_first=True), count=1)


@model("torchxlstm", "sLSTM only", whole=False)
def torchxlstm_slstm() -> nn.Module:
    from torchxlstm import xLSTM

    return Layers(lambda: xLSTM(DIM, HEAD, HEADS, layers=["s", "s"], batch_first=True), count=1)


@model("opengdn", whole=False)
def opengdn() -> nn.Module:
    from opengdn import GatedDeltaMixer

    return Layers(lambda: GatedDeltaMixer(DIM, HEADS, backend="chunkwise", chunk_size=16))


@model("RLT-pytorch")
def rlt() -> nn.Module:
    from RLT import RLT

    return RLT(DIM, **MANY_HEADS, enc_depth=DEPTH, dec_depth=DEPTH, num_tokens=VOCAB, recurrent_block_size=4)


@model("llms-from-scratch", "ch04 GPTModel")
def llms_from_scratch() -> nn.Module:
    from llms_from_scratch.ch04 import GPTModel

    return GPTModel(
        {
            "vocab_size": VOCAB,
            "context_length": LENGTH,
            "emb_dim": DIM,
            "n_heads": HEADS,
            "n_layers": DEPTH,
            "drop_rate": 0.1,
            "qkv_bias": False,
        }
    )


@model("llms-from-scratch", "Llama3Model")
def llms_from_scratch_llama() -> nn.Module:
    from llms_from_scratch.llama3 import Llama3Model

    return Llama3Model(
        {
            "vocab_size": VOCAB,
            "context_length": LENGTH,
            "emb_dim": DIM,
            "n_heads": HEADS,
            "n_layers": DEPTH,
            "hidden_dim": 128,
            "n_kv_groups": 2,
            "rope_base": 10000.0,
            "dtype": torch.float32,
            "rope_freq": None,
        }
    )


@model("llms-from-scratch", "Qwen3Model")
def llms_from_scratch_qwen() -> nn.Module:
    from llms_from_scratch.qwen3 import Qwen3Model

    return Qwen3Model(
        {
            "vocab_size": VOCAB,
            "context_length": LENGTH,
            "emb_dim": DIM,
            "n_heads": HEADS,
            "n_layers": DEPTH,
            "hidden_dim": 128,
            "head_dim": HEAD,
            "qk_norm": True,
            "n_kv_groups": 2,
            "rope_base": 10000.0,
            "dtype": torch.float32,
        }
    )


@model("pylmt", "GPT")
def pylmt_gpt() -> nn.Module:
    from lmt import GPT, ModelConfig

    return GPT(ModelConfig(context_length=LENGTH, vocab_size=VOCAB, num_layers=DEPTH, num_heads=HEADS, embed_dim=DIM))


@model("pylmt", "LLaMA")
def pylmt_llama() -> nn.Module:
    from lmt import LLaMA, ModelConfig

    return LLaMA(
        ModelConfig(
            context_length=LENGTH, vocab_size=VOCAB, num_layers=DEPTH, num_heads=HEADS, embed_dim=DIM, num_kv_heads=2
        )
    )


@model("pylmt", "Mamba")
def pylmt_mamba() -> nn.Module:
    from lmt import Mamba, ModelConfig

    return Mamba(ModelConfig(context_length=LENGTH, vocab_size=VOCAB, num_layers=DEPTH, num_heads=HEADS, embed_dim=DIM))


@model("kydon-gpt")
def kydon() -> nn.Module:
    from kydon_gpt.GPTModel import GPTModel

    return GPTModel(
        {
            "vocab_size": VOCAB,
            "context_length": LENGTH,
            "emb_dim": DIM,
            "n_heads": HEADS,
            "n_layers": DEPTH,
            "drop_rate": 0.1,
            "qkv_bias": False,
        }
    )


@model("nano-gpt", note="its tokenizer, which the model only keeps, is left out")
def nano_gpt() -> nn.Module:
    from nano_gpt.model import GPT, GPTConfig

    return GPT(GPTConfig(block_size=LENGTH, vocab_size=VOCAB, n_layer=DEPTH, n_head=HEADS, n_embd=DIM), None)


@model("curated-transformers", "GPTNeoXCausalLM", note="its mask, which it requires, is all true")
def curated_neox() -> nn.Module:
    from curated_transformers.layers import AttentionMask
    from curated_transformers.models import GPTNeoXCausalLM, GPTNeoXConfig

    return Called(
        GPTNeoXCausalLM(
            GPTNeoXConfig(
                dtype=torch.float32,
                hidden_width=DIM,
                intermediate_width=128,
                n_attention_heads=HEADS,
                n_hidden_layers=DEPTH,
                n_pieces=VOCAB,
            )
        ),
        lambda inner, ids: inner(ids, AttentionMask(torch.ones_like(ids, dtype=torch.bool))).logits,
    )


@model("curated-transformers", "LlamaCausalLM", note="its mask, which it requires, is all true")
def curated_llama() -> nn.Module:
    from curated_transformers.layers import AttentionMask
    from curated_transformers.models import LlamaCausalLM, LlamaConfig

    return Called(
        LlamaCausalLM(
            LlamaConfig(
                dtype=torch.float32,
                hidden_width=DIM,
                intermediate_width=128,
                n_query_heads=HEADS,
                n_key_value_heads=2,
                n_hidden_layers=DEPTH,
                n_pieces=VOCAB,
                rotary_embedding_fraction=1.0,
            )
        ),
        lambda inner, ids: inner(ids, AttentionMask(torch.ones_like(ids, dtype=torch.bool))).logits,
    )


@model("pytorch-mixtures", "ExpertChoiceMoE", whole=False)
def pytorch_mixtures_choice() -> nn.Module:
    from pytorch_mixtures import ExpertChoiceMoE, MoEConfig

    return Layers(lambda: Mixed(ExpertChoiceMoE(MoEConfig(DIM, 128, 4, "ff", "gelu", "ec", 1.0, None, torch.float32))))


@model("pytorch-mixtures", "TopkMoE", whole=False)
def pytorch_mixtures_topk() -> nn.Module:
    from pytorch_mixtures import MoEConfig, TopkMoE

    return Layers(lambda: Mixed(TopkMoE(MoEConfig(DIM, 128, 4, "ff", "gelu", "topk", None, 2, torch.float32))))


@model("memory-efficient-attention-pytorch")
def memory_efficient() -> nn.Module:
    from memory_efficient_attention_pytorch.transformer import Transformer

    return Transformer(
        **TINY,
        **MANY_HEADS,
        max_seq_len=LENGTH,
        causal=True,
        use_flash_attn=False,
        memory_efficient=True,
        q_bucket_size=8,
        k_bucket_size=16,
    )


@model("memory-efficient-attention-pytorch", "use_flash_attn")
def memory_efficient_flash() -> nn.Module:
    from memory_efficient_attention_pytorch.transformer import Transformer

    return Transformer(**TINY, **MANY_HEADS, max_seq_len=LENGTH, causal=True, q_bucket_size=8, k_bucket_size=16)


@model("ring-attention-pytorch")
def ring_attention() -> nn.Module:
    from ring_attention_pytorch import RingTransformer

    return RingTransformer(**TINY, **MANY_HEADS, causal=True, bucket_size=16, num_grouped_query_heads=2)


@model("darkformer-pytorch")
def darkformer() -> nn.Module:
    from darkformer_pytorch import DarkformerLM

    return DarkformerLM(VOCAB, DIM, DEPTH, heads=HEADS, max_seq_len=LENGTH, causal_chunk_size=16)


@model("coconut-pytorch")
def coconut() -> nn.Module:
    from coconut_pytorch import Transformer

    return Transformer(**TINY, **MANY_HEADS)


@model("multihead-latent-attention", whole=False)
def mla() -> nn.Module:
    from mla import MLA, MLAConfig

    return Layers(
        lambda: MLA(MLAConfig(DIM, HEADS, kv_compressed_dim=32, q_compressed_dim=32, rope_dim=8, seq_len=LENGTH))
    )


@model("torchscale", "RetNetDecoder", note="timm, imported for DropPath, is a stand-in")
def torchscale_retnet() -> nn.Module:
    without("timm")
    from torchscale.architecture.config import RetNetConfig
    from torchscale.architecture.retnet import RetNetDecoder

    config = RetNetConfig(
        vocab_size=VOCAB,
        decoder_embed_dim=DIM,
        decoder_value_embed_dim=DIM,
        decoder_retention_heads=HEADS,
        decoder_ffn_embed_dim=128,
        decoder_layers=DEPTH,
    )
    return RetNetDecoder(config, embed_tokens=nn.Embedding(VOCAB, DIM))


@model("torchscale", "RetNetDecoder, chunks of 16", note="timm, imported for DropPath, is a stand-in")
def torchscale_retnet_chunks() -> nn.Module:
    without("timm")
    from torchscale.architecture.config import RetNetConfig
    from torchscale.architecture.retnet import RetNetDecoder

    config = RetNetConfig(
        vocab_size=VOCAB,
        decoder_embed_dim=DIM,
        decoder_value_embed_dim=DIM,
        decoder_retention_heads=HEADS,
        decoder_ffn_embed_dim=128,
        decoder_layers=DEPTH,
        chunkwise_recurrent=True,
        recurrent_chunk_size=16,
    )
    return RetNetDecoder(config, embed_tokens=nn.Embedding(VOCAB, DIM))


@model("torchscale", "Decoder", note="timm, imported for DropPath, is a stand-in")
def torchscale_decoder() -> nn.Module:
    without("timm")
    from torchscale.architecture.config import DecoderConfig
    from torchscale.architecture.decoder import Decoder

    config = DecoderConfig(
        vocab_size=VOCAB,
        decoder_embed_dim=DIM,
        decoder_attention_heads=HEADS,
        decoder_ffn_embed_dim=128,
        decoder_layers=DEPTH,
        xpos_rel_pos=True,
    )
    return Decoder(config, embed_tokens=nn.Embedding(VOCAB, DIM))


@model("stackformer", "GPT2")
def stackformer_gpt2() -> nn.Module:
    from stackformer import GPT2

    return GPT2(VOCAB, DEPTH, DIM, HEADS, LENGTH)


@model("stackformer", "GPT2, dropout=0")
def stackformer_gpt2_still() -> nn.Module:
    from stackformer import GPT2

    return GPT2(VOCAB, DEPTH, DIM, HEADS, LENGTH, dropout=0.0)


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
        TransformerConfig(
            d_model=DIM, n_layers=4, n_heads=HEADS, n_kv_heads=2, vocab_size=VOCAB, max_seq_len=LENGTH, n_blocks=2
        )
    )


@model("mamba3-ssm")
def mamba3() -> nn.Module:
    from mamba3_ssm import MambaConfig, MambaLMHeadModel

    return MambaLMHeadModel(
        MambaConfig(d_model=DIM, n_layer=DEPTH, vocab_size=VOCAB, ssm_cfg={"d_state": 16, "headdim": 16})
    )


@model("bitnet", note="torchvision, imported for images, is a stand-in")
def bitnet() -> nn.Module:
    without("torchvision")
    from bitnet import BitNetTransformer

    return BitNetTransformer(**TINY, heads=HEADS)


@model(
    "griffin-torch", note="its outputs are dim wide, so dim is VOCAB; torchvision, imported for images, is a stand-in"
)
def griffin() -> nn.Module:
    without("torchvision")
    from griffin_torch import Griffin

    return Griffin(dim=VOCAB, depth=DEPTH, num_tokens=VOCAB, seq_len=LENGTH, mlp_mult=2)


@model("switch-transformers", note="torchvision, imported for images, is a stand-in")
def switch_transformers() -> nn.Module:
    without("torchvision")
    from switch_transformers import SwitchTransformer

    return SwitchTransformer(**TINY, **MANY_HEADS)


@model(
    "longnet",
    note="with a dilation its attention returns fewer positions than it gets; torchvision, imported for images, is a "
    "stand-in",
)
def longnet() -> nn.Module:
    without("torchvision")
    from long_net import LongNetTransformer

    return Padded(LongNetTransformer(**TINY, **MANY_HEADS, ff_mult=4, dilation_rate=1, segment_size=64), 64)


@model("differential-transformer", note="torchvision, imported for images, is a stand-in")
def differential_transformer() -> nn.Module:
    without("torchvision")
    from differential_transformer import DifferentialTransformer

    return DifferentialTransformer(**TINY, heads=HEADS)


@model("moe-mamba", note="torchvision, imported for images, is a stand-in")
def moe_mamba() -> nn.Module:
    without("torchvision")
    from moe_mamba import MoEMamba

    return MoEMamba(**TINY, d_state=16, causal=True, dim_head=HEAD)


@model("zetascale", "Decoder", note="torchvision, imported for images, is a stand-in")
def zeta() -> nn.Module:
    without("torchvision")
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


REASONS: dict[str, tuple[str, str]] = {
    "reformer-pytorch": (
        "by design",
        "Positions are sorted into chunks by hash, so how many later tokens got the same hash decides which "
        "earlier keys share a chunk with a query; the causal mask inside the chunks does not undo that. With full "
        "attention in its place (the next row) nothing is found.",
    ),
    "performer-pytorch": (
        "defect",
        "softmax_kernel subtracts from the features of the keys their maximum over all positions and adds its "
        "epsilon only then, so the weight of the epsilon depends on later keys. The generalized kernel has no "
        "such maximum, and with it nothing is found.",
    ),
    "routing-transformer": (
        "by design",
        "Each cluster takes the queries and keys of the whole text that are nearest to it, as many as a window "
        "holds, so later tokens push earlier ones out; what is masked afterwards is only the order within a "
        "cluster. With all heads local nothing is found.",
    ),
    "Mega-pytorch": (
        "by design",
        "With the Laplace attention function the scores are divided by the length of the text. With softmax "
        "nothing is found.",
    ),
    "h-transformer-1d": (
        "defect",
        "A text of no more than one block gets no level of the hierarchy at all: the mask is cut to zero levels, "
        "and the attention's output is a sum over nothing, 0. Longer texts agree with each other.",
    ),
    "st-moe-pytorch": (
        "by design",
        "An expert has a capacity, and the first choices of all tokens of a text are served before the second "
        "choices of any, so later tokens take places from earlier ones; the capacity also grows with the length. "
        "With capacity for all tokens nothing is found.",
    ),
    "mixture-of-experts": (
        "by design",
        "An expert has a capacity, and the first choices of all tokens of a text are served before the second "
        "choices of any, so later tokens take places from earlier ones. In eval mode, too, it draws at random "
        "whether the second expert is asked.",
    ),
    "mixture-of-experts second_policy_eval=all": (
        "by design",
        "As above, without the random draw. With capacity for all tokens nothing is found.",
    ),
    "soft-moe-pytorch": (
        "by design",
        "The slots of the experts are averages over all tokens of the text (a softmax over the sequence). The "
        "method is made for encoders.",
    ),
    "CoLT5-attention ConditionalRoutedAutoregressiveAttention": (
        "by design",
        "Which tokens of a window become queries of the heavy branch is decided by comparing all tokens of that "
        "window, later ones included. If all of them are queries (the next row) later "
        "tokens do not matter.",
    ),
    "CoLT5-attention ConditionalRoutedAutoregressiveAttention, all queries": (
        "defect",
        "A smaller one: the router's scores are exactly 1 for more tokens than it takes, and which of these equals "
        "top-k takes depends on the length of the text. Later tokens do not matter.",
    ),
    "mixture-of-attention MixtureOfAutoregressiveAttention": (
        "defect",
        "With more than one expert, the router of colt5_attention repeats the tokens of every row once for each "
        "expert but takes the chosen ones by the row's number before that: rows and windows get tokens of other rows "
        "and windows. With one expert (the next row) other rows do not matter.",
    ),
    "mixture-of-attention MixtureOfAutoregressiveAttention, one expert": (
        "by design",
        "Which tokens of a window become routed queries is decided by comparing all tokens of that window, later ones "
        "included, as in CoLT5-attention.",
    ),
    "ponder-transformer": (
        "by design",
        "In eval mode the whole text halts after as many steps as the last position draws, so that position "
        "decides about the logits of all earlier ones; only those of the last are meant to be used. It draws "
        "random numbers.",
    ),
    "torchxlstm": (
        "defect",
        "mLSTMBlock normalises by the product of the transposed state with the query, both [batch, width]: a sum "
        "over the rows of the batch. With sLSTM blocks only nothing is found.",
    ),
    "pytorch-mixtures ExpertChoiceMoE": (
        "by design",
        "Experts choose their tokens, among those of the whole batch, and weigh them by a softmax over the chosen "
        "ones.",
    ),
    "switch-transformers": (
        "defect",
        "The gate divides by a sum over the first axis, which is the batch, not the tokens; and it marks the "
        "chosen experts along the time axis, so that positions with the numbers of the experts that any token of "
        "the text chose are switched on.",
    ),
    "griffin-torch": (
        "defect",
        "The temporal convolution has the positions as its channels, so every position sees all others; the "
        "recurrent unit is commented out. Layers of it are made anew, with random weights, at every call.",
    ),
    "longnet": (
        "defect",
        "The attention of LongNetTransformer is built without causal=True and has no mask, although the package "
        "has a wrapper that trains and samples it as a language model.",
    ),
    "differential-transformer": (
        "defect",
        "The attention has no causal mask, although the model ends in logits of the vocabulary. The output layer "
        "is made anew, with random weights, at every call.",
    ),
}
"""Of findings: `defect`, `by design` or `setting`, and what causes it, as the package's source shows."""


# By plain calls.


class Plain:
    """Logits of a model built anew for every call, and how far they move if something changes that must not matter."""

    def __init__(self, build: Callable[[], Callable[..., Any]], training: bool = False) -> None:
        self.build, self.training = build, training
        self.dtype = torch.float64
        generator = torch.Generator().manual_seed(1)
        self.ids = torch.randint(1, VOCAB, (ROWS, TOKENS), generator=generator)
        self.others = 1 + (self.ids + torch.randint(VOCAB - 2, self.ids.shape, generator=generator)) % (VOCAB - 1)
        try:
            self.base = self.logits(self.ids)
        except Exception:  # parts of it are made for float32
            self.dtype = torch.float32
            self.base = self.logits(self.ids)
        self.scale = self.base.std().item()
        self.draws = not torch.equal(self.logits(self.ids, seed=2), self.base)

    @torch.no_grad()
    def logits(self, ids: Tensor, seed: int = 1) -> Tensor:
        torch.manual_seed(0)
        net = self.build()
        if isinstance(net, nn.Module):
            if self.dtype is torch.float64:
                net._apply(_doubled)
            net.train(self.training)
            for part in net.modules():
                if isinstance(part, nn.Dropout):
                    part.eval()
        torch.manual_seed(seed)
        found = logits_in(net(ids.clone()))
        return next(logits for logits in found if logits.shape[:2] == ids.shape and logits.shape[-1] == VOCAB)

    def again(self) -> float:
        """The same text twice."""
        return self._moved(self.logits(self.ids), self.base)

    def future(self) -> float:
        """The text from a cut on is another one; of a short text, too."""
        short = self.ids[:, :SHORT]
        with contextlib.suppress(Exception):  # not all take it
            base = self.logits(short)
            moved = [self._changed_from(cut, short, base) for cut in range(1, SHORT)]
            return max(moved + [self._changed_from(cut, self.ids, self.base) for cut in CUTS])
        return max(self._changed_from(cut, self.ids, self.base) for cut in CUTS)

    def _changed_from(self, cut: int, ids: Tensor, base: Tensor) -> float:
        changed = torch.cat([ids[:, :cut], self.others[:, cut : ids.shape[1]]], dim=1)
        return self._moved(self.logits(changed)[:, :cut], base[:, :cut])

    def batch(self) -> float:
        """The other rows of the batch are other texts, for every row."""
        moved = []
        for row in range(ROWS):
            changed = self.others.clone()
            changed[row] = self.ids[row]
            moved.append(self._moved(self.logits(changed)[row], self.base[row]))
        return max(moved)

    def alone(self) -> float:
        """Every row in a batch of its own."""
        rows = [self.ids[row : row + 1] for row in range(ROWS)]
        return max(self._moved(self.logits(ids)[0], self.base[row]) for row, ids in enumerate(rows))

    def length(self) -> float:
        """The text ends at a cut."""
        moved = []
        for cut in CUTS:
            with contextlib.suppress(Exception):  # not every length is taken
                moved.append(self._moved(self.logits(self.ids[:, :cut]), self.base[:, :cut]))
        return max(moved)

    def _moved(self, ours: Tensor, theirs: Tensor) -> float:
        return ((ours - theirs).abs().max() / self.scale).item()


def _doubled(tensor: Tensor) -> Tensor:
    return (
        tensor.to(torch.complex128)
        if tensor.is_complex()
        else tensor.double()
        if tensor.is_floating_point()
        else tensor
    )


def by_plain_calls(build: Callable[[], Callable[..., Any]]) -> dict[str, Any]:
    """What plain calls find, in standard deviations of the logits, in eval and in training mode."""
    plain = Plain(build)
    found: dict[str, Any] = {"dtype": str(plain.dtype)[6:], "draws_random_numbers": plain.draws}
    found["the same text twice"] = plain.again()
    found["later tokens replaced"] = plain.future()
    found["other rows replaced"] = plain.batch()
    if not plain.draws:  # for another shape other numbers are drawn
        found["row alone"] = plain.alone()
        found["text cut"] = plain.length()
    with contextlib.suppress(Exception):  # some do not run in training mode without targets
        training = Plain(build, training=True)
        found["later tokens replaced (training)"] = training.future()
        found["other rows replaced (training)"] = training.batch()
    return found


CONFIRMS = {
    "future": ("later tokens replaced",),
    "future (louder)": ("later tokens replaced",),
    "batch": ("other rows replaced",),
    "batch (louder)": ("other rows replaced",),
    "row alone": ("row alone", "other rows replaced"),
    "length": ("text cut", "later tokens replaced"),
    "gradient": ("later tokens replaced", "other rows replaced"),
    "future (training)": ("later tokens replaced (training)",),
    "batch (training)": ("other rows replaced (training)",),
}
"""The plain calls that show what a check shows."""


# One model.


def checked(one: Model) -> dict[str, Any]:
    """The record of one model."""
    entry: dict[str, Any] = {
        "package": one.package,
        "version": environment.version(one.package),
        "whole_language_model": one.whole,
        "made": one.made(),
        "note": one.note,
    }
    if entry["version"] is None:
        return entry | {"verdict": NOT_INSTALLED, "reason": "the package is not installed"}
    try:
        torch.manual_seed(0)
        net = one.build()
    except (Exception, SystemExit) as error:
        return entry | {"verdict": NOT_CHECKED, "reason": f"it could not be built: {one_line(error)}"}
    if isinstance(net, nn.Module):
        entry["class"] = type(net.inner if isinstance(net, Padded | Called) else net).__name__
        entry["parameters"] = sum(weight.numel() for weight in net.parameters())
    try:
        entry["plain"] = by_plain_calls(one.build)
    except Exception as error:
        return entry | {"verdict": NOT_CHECKED, "reason": f"it does not run: {one_line(error)}"}
    entry |= _by_check(net)
    return entry | _verdict(one.name, entry)


def _by_check(net: Callable[..., Any]) -> dict[str, Any]:
    """The report of the check, and whether it left the model as it was."""
    ids = torch.randint(1, VOCAB, (ROWS, TOKENS), generator=torch.Generator().manual_seed(3))
    weights = {name: value.clone() for name, value in net.state_dict().items()} if isinstance(net, nn.Module) else {}
    first, second = _logits(net, ids), _logits(net, ids)
    found: dict[str, Any]
    try:
        report = check(net, VOCAB).as_dict()
        found = {key: report[key] for key in ("rows", "length", "dtype", "rounding")}
        found["checks"] = [
            {key: value for key, value in row.items() if value not in (None, "") and key != "unit"}
            for row in report["checks"]
        ]
    except InputError as error:
        found = {"not_checked": " ".join(str(error).split())}
    except Exception as error:  # of ours
        found = {"not_checked": f"the check itself broke off: {one_line(error)}"}
    third = _logits(net, ids)
    after = net.state_dict() if isinstance(net, nn.Module) else {}
    same_weights = all(torch.equal(value, after[name]) for name, value in weights.items())
    found["weights_before_equal_after"] = same_weights
    found["outputs_before_equal_after"] = torch.equal(second, third)
    if not torch.equal(second, third):
        found["outputs_changed_by"] = (second - third).abs().max().item()
        found["outputs_of_two_calls_differ_by"] = (first - second).abs().max().item()
    return found


@torch.no_grad()
def _logits(net: Callable[..., Any], ids: Tensor) -> Tensor:
    """In eval mode, from the same seed."""
    if isinstance(net, nn.Module):
        net.eval()
    torch.manual_seed(4)
    found = logits_in(net(ids.clone()))
    return next(logits for logits in found if logits.shape[:2] == ids.shape and logits.shape[-1] == VOCAB)


NOT_CHECKED, NOT_INSTALLED, NOT_CONFIRMED = "could not be checked", "not installed", "not confirmed"
LEAK, DIFFERS, NOTHING = "LEAK", "DIFFERS", "nothing found"


def _verdict(name: str, entry: dict[str, Any]) -> dict[str, Any]:
    """What the check and the plain calls say together."""
    plain = entry["plain"]
    least = LEAST[plain["dtype"]]
    rows = [row for row in entry.get("checks", []) if row["verdict"] in ("leak", "differs")]
    confirmed = {}
    for row in rows:
        change = max((plain.get(key, 0.0) for key in CONFIRMS.get(row["check"], ())), default=0.0)
        if change > least:
            confirmed[row["check"]] = change
    leaks = {key: value for key, value in plain.items() if key[:5] in ("later", "other") and value > least}
    said: dict[str, Any] = {"found_by": [row["check"] for row in rows], "confirmed": confirmed}
    said["not_confirmed"] = [row["check"] for row in rows if row["check"] not in confirmed]
    origin = next((row["location"] for row in rows if row.get("location")), None)
    if origin:
        said["module"] = f"{origin['module'] or 'the model itself'} ({origin['kind']})"
    if "not_checked" in entry:
        said |= {"verdict": LEAK if leaks else NOT_CHECKED, "reason": entry["not_checked"]}
        if leaks:
            said["missed_by_the_check"] = True
    elif confirmed:
        said["verdict"] = LEAK if any(row["verdict"] == "leak" for row in rows) else DIFFERS
    else:
        said["verdict"] = NOT_CONFIRMED if rows else LEAK if leaks else NOTHING
        if leaks and not rows:
            said["missed_by_the_check"] = True
    if said["verdict"] in (LEAK, DIFFERS):
        kind, cause = REASONS.get(name, ("not explained", ""))
        said |= {"kind": kind, "cause": cause, "largest_confirmed": max([*confirmed.values(), *leaks.values()])}
    return said


# All models.


def main() -> None:
    """Check, print, record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requirements", action="store_true", help="print what to install, and stop")
    parser.add_argument("--out", type=Path, help="folder of packages.json and packages.md")
    parser.add_argument(
        "--only", nargs="+", metavar="NAME", help="packages or rows to check again, merged into the record"
    )
    parser.add_argument("--timeout", type=float, default=120, help="seconds for one model")
    arguments = parser.parse_args()
    if arguments.requirements:
        print(requirements())
        return
    if arguments.out is None:
        parser.error("--out is needed")
    chosen = [one for one in MODELS.values() if not arguments.only or {one.name, one.package} & set(arguments.only)]
    if not chosen:
        parser.error(f"no such package or row; there are {', '.join(MODELS)}")
    torch.set_num_threads(1)
    file = arguments.out / "packages.json"
    models = json.loads(file.read_text(encoding="utf-8"))["models"] if arguments.only and file.exists() else {}
    for number, one in enumerate(chosen):
        models[one.name] = entry = _apart(one, arguments.timeout)
        print(f"[{number + 1}/{len(chosen)}] {one.name}: {_said(entry)} ({entry['seconds']} s)", flush=True)
    models = {name: models[name] for name in MODELS if name in models}
    record = {
        "what": "leak checks of causal language models of packages on PyPI, tiny and with random weights",
        "sizes": {"VOCAB": VOCAB, "DIM": DIM, "DEPTH": DEPTH, "HEADS": HEADS, "HEAD": HEAD, "LENGTH": LENGTH},
        "counts": _counts(models),
        "mu_sota": __version__,
        "machine": environment.describe(),
        "models": models,
    }
    write_json(file, record)
    with replacing(arguments.out / "packages.md") as temporary:
        temporary.write_text(_page(record), encoding="utf-8")
    print(json.dumps(record["counts"]))


def requirements() -> str:
    """The lines that install what the survey needs."""
    alone = "pip install --no-deps --no-build-isolation"
    return f"pip install {BASE}\n{alone} {NEEDED}\n{alone} {SURVEYED}"


def _apart(one: Model, timeout: float) -> dict[str, Any]:
    """`checked` in a process of its own."""
    start_method = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
    context: Any = multiprocessing.get_context(start_method)
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_send, args=(theirs, one.name))
    start = time.monotonic()
    process.start()
    theirs.close()
    entry: dict[str, Any]
    try:
        late = {"verdict": NOT_CHECKED, "reason": f"not done after {timeout:.0f} seconds"}
        entry = ours.recv() if ours.poll(timeout) else late
    except EOFError:
        process.join()
        entry = {"verdict": NOT_CHECKED, "reason": f"the process ended with code {process.exitcode}"}
    process.kill()
    process.join()
    made = {"package": one.package, "version": environment.version(one.package), "made": one.made(), "note": one.note}
    return made | entry | {"seconds": round(time.monotonic() - start, 1)}


def _send(pipe: Connection, name: str) -> None:
    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):  # some print a lot
        entry = checked(MODELS[name])
    pipe.send(entry)
    pipe.close()


def _said(entry: dict[str, Any]) -> str:
    parts = [entry["verdict"], ", ".join(entry.get("found_by", [])), entry.get("reason", "")]
    if "largest_confirmed" in entry:
        parts.append(f"by plain calls {entry['largest_confirmed']:.2g}")
    if not entry.get("outputs_before_equal_after", True):
        parts.append("OUTPUTS CHANGED BY THE CHECK")
    return "; ".join(part for part in parts if part)


def _counts(models: dict[str, dict[str, Any]]) -> dict[str, Any]:
    verdicts = [entry["verdict"] for entry in models.values()]
    return {
        "rows": len(models),
        "packages": len({entry["package"] for entry in models.values()}),
        **{verdict: verdicts.count(verdict) for verdict in dict.fromkeys(verdicts)},
        "rows with a finding that plain calls do not confirm": sum(
            bool(one.get("not_confirmed")) for one in models.values()
        ),
        "leaks missed by the check": sum(bool(entry.get("missed_by_the_check")) for entry in models.values()),
        "outputs changed by the check": sum(not one.get("outputs_before_equal_after", True) for one in models.values()),
    }


# The page.


def _page(record: dict[str, Any]) -> str:
    models, versions = record["models"], record["machine"]["versions"]
    commit, packages = (record["machine"]["commit"] or "unknown")[:7], record["counts"]["packages"]
    head = f"""# Causal language models of packages on PyPI, checked

Models of {packages} public packages, built tiny and with random weights by their own constructors, and put through
[leakcheck](../../leakcheck.md). Layers that come without a language model were put into a minimal one (embedding,
{DEPTH} normed residual layers, head; experts after plain causal attention); the table says so. A finding stands only
where plain calls, which share nothing with the check, confirm it: two texts, a model built anew for each, the same
seed, and the largest change of the logits where there must be none, in standard deviations of the logits.

    python benchmarks/leakcheck_packages.py --requirements    # the packages and versions to install
    OMP_NUM_THREADS=1 python benchmarks/leakcheck_packages.py --out docs/results/leakcheck

Checked with mu-sota {record["mu_sota"]} at commit `{commit}`, PyTorch {versions["torch"]}, on one CPU core.
All figures, constructor calls and locations are in `packages.json`; in the calls VOCAB = {VOCAB}, DIM = {DIM},
DEPTH = {DEPTH}, HEADS = {HEADS}, HEAD = {HEAD}, LENGTH = {LENGTH}. "By design" means that the method itself looks
ahead (what a token gets depends on what later tokens or other rows get), "defect" that the code does what the method
does not ask for. Where a model draws random numbers in eval mode, both passes draw the same, and lengths are not
compared.
"""
    counts = "\n".join(
        ["| | rows |", "|---|---:|", *(f"| {key} | {value} |" for key, value in record["counts"].items())]
    )
    table = [
        "| package | version | model | verdict | found by | by plain calls | module |",
        "|---|---|---|---|---|---:|---|",
    ]
    for name, entry in models.items():
        kind = "" if MODELS[name].whole else " (layer, in our LM)"
        change = f"{entry['largest_confirmed']:.2g}" if "largest_confirmed" in entry else ""
        module = f"`{entry['module']}`" if "module" in entry else ""
        verdict = (
            entry["verdict"] if entry["verdict"] not in (LEAK, DIFFERS, NOT_CONFIRMED) else f"**{entry['verdict']}**"
        )
        if "largest_confirmed" in entry:
            verdict += f", {entry['kind']}"
        cells = [
            entry["package"],
            entry["version"] or "–",
            f"{name.removeprefix(entry['package']).strip() or entry.get('class', '')}{kind}",
            verdict,
            ", ".join(entry.get("found_by", [])),
            change,
            module,
        ]
        table.append(f"| {' | '.join(cells)} |")
    findings = [
        _wrapped(
            f"**{name}** {entry['version']} ({entry['kind']}). {entry['cause']} By plain calls: "
            + ", ".join(f"{key} {value:.2g}" for key, value in _told(entry).items())
            + "."
        )
        for name, entry in models.items()
        if "largest_confirmed" in entry
    ]
    drawing = [name for name, one in models.items() if one.get("plain", {}).get("draws_random_numbers")]
    missing = [
        f"- {name}: {'; '.join(part for part in (one['reason'], one['note']) if part)}"
        for name, one in models.items()
        if one["verdict"] in (NOT_CHECKED, NOT_INSTALLED)
    ]
    parts = [head, "## Counts", counts, "## All rows", "\n".join(table), "## Findings", *findings]
    parts += ["## Draw random numbers in eval mode", _wrapped(f"{', '.join(drawing)}.")] if drawing else []
    parts += ["## Could not be checked", "\n".join(missing)] if missing else []
    return "\n\n".join(part.strip() for part in parts) + "\n"


def _wrapped(text: str) -> str:
    return textwrap.fill(text, 120, break_long_words=False, break_on_hyphens=False)


def _told(entry: dict[str, Any]) -> dict[str, float]:
    least = LEAST[entry["plain"]["dtype"]]
    return {key: value for key, value in entry["plain"].items() if isinstance(value, float) and value > least}


if __name__ == "__main__":
    main()
