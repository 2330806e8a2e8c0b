"""Models and training steps on a device, and how they are timed.

Legend: B batch, T time.
"""

import contextlib
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any
from unittest import mock

import torch
from side_by_side import gpt2, llama, mu, warnings_of
from torch import nn

from mu_sota import MuForCausalLM
from mu_sota.comparison.baselines import Gpt2Style, LlamaStyle
from mu_sota.model import attention, layers, loss
from mu_sota.model.backend import plain_pytorch
from mu_sota.model.presets import FORM

from .context import Context

TINY: dict[str, Any] = {"vocab_size": 300, "num_hidden_layers": 2, "max_position_embeddings": 64}
_ROUNDS = 5


def sizes(context: Context) -> tuple[int, int]:
    """Batch and length of the recipe."""
    return (2, 32) if context.tiny else (32, 512)


def new_model(context: Context, name: str = "mu", **overrides: Any) -> Any:
    """`mu`, `gpt2` or `llama` of about 27 million parameters on the device; the last two as `transformers` has them.
    `new form` is mu in the form of the other presets.

    As `gpt2, our loss` and `llama, our loss` they have the chunked loss of `mu`, as in `mu-sota compare`.
    """
    family, _, loss_of_ours = name.partition(", ")
    if family in ("mu", "new form"):
        form = FORM if family == "new form" else {}
        model: Any = mu(**form | (TINY if context.tiny else {}) | overrides)
    else:
        model = {"gpt2": gpt2, "llama": llama}[family](tiny=context.tiny)
    if loss_of_ours:
        model = {"gpt2": Gpt2Style, "llama": LlamaStyle}[family](model.config)
    return model.to(context.device)


def compile_options(context: Context, **options: Any) -> dict[str, Any]:
    """Options of `torch.compile`; at tiny sizes, a compiler that takes no time."""
    return {"dynamic": False, **({"backend": "aot_eager"} if context.tiny else options)}


def layers_of(model: Any) -> nn.ModuleList:
    """The repeated layers of a model."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=lambda layers: sum(weight.numel() for weight in layers.parameters()))


def training_step(
    context: Context, model: Any, batch: int, length: int, graphed: bool = False
) -> Callable[[], torch.Tensor]:
    """A step as `mu-sota train` makes it: autocast, forward, backward, clipping, fused AdamW; it waits for nothing.

    Graphed, forward and backward are one CUDA graph: a single launch. A CPU knows none, and runs them as they are.
    """
    model.train()
    device = context.device.type
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.01, fused=True)
    scaler = torch.amp.GradScaler(device, enabled=context.half == torch.float16)
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(4, model.config.vocab_size, (batch, length), generator=generator).to(context.device)
    inputs: dict[str, Any] = {"input_ids": ids}
    if isinstance(model, Gpt2Style | LlamaStyle):
        inputs["shift_labels"] = ids
    elif isinstance(model, MuForCausalLM):
        inputs["labels"] = ids
    else:  # which would fill a cache in training, too
        inputs |= {"labels": ids, "use_cache": False}

    def forward_and_backward() -> torch.Tensor:
        # Within a graph, the weights that autocast keeps in half precision would be those of the first replay.
        with torch.autocast(device, context.half, cache_enabled=not graphed):
            value: torch.Tensor = model(**inputs).loss
        scaler.scale(value).backward()
        return value

    replay = captured(forward_and_backward, model) if graphed and device == "cuda" else forward_and_backward

    def step() -> torch.Tensor:
        value = replay()
        scaler.unscale_(optimizer)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        scaler.step(optimizer)
        scaler.update()
        if not graphed:  # whose replay writes the gradients where they are
            optimizer.zero_grad()
        return value.detach()

    return step


def captured(function: Callable[[], torch.Tensor], model: nn.Module) -> Callable[[], torch.Tensor]:
    """Forward and backward as a CUDA graph, after the runs that it needs to warm up; gradients keep their places."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            function()
            model.zero_grad()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        value = function()

    def replay() -> torch.Tensor:
        graph.replay()
        return value

    return replay


def _timed(context: Context, function: Callable[[], Any], calls: int) -> float:
    """Seconds of a call, the mean of several, the device waited for at both ends."""
    context.synchronize()
    start = time.perf_counter()
    for _ in range(calls):
        function()
    context.synchronize()
    return (time.perf_counter() - start) / calls


def _calls(context: Context, budget: float, seconds: float) -> int:
    """Calls in a round, so that all rounds take about `budget` seconds."""
    return 1 if context.tiny else max(1, min(20, round(budget / _ROUNDS / max(seconds, 1e-6))))


def seconds_of(context: Context, function: Callable[[], Any], budget: float = 3.0) -> dict[str, Any]:
    """Seconds of the first call, and of a later one: the median over rounds of several calls."""
    first, second = (_timed(context, function, 1) for _ in range(2))
    rounds = [_timed(context, function, _calls(context, budget, second)) for _ in range(_ROUNDS)]
    return {"first": first, "median": statistics.median(rounds), "rounds": rounds}


def in_turn(context: Context, functions: dict[str, Callable[[], Any]], budget: float = 10.0) -> dict[str, list[float]]:
    """Seconds of a call in each of several rounds, the functions taking turns; each was called before."""
    calls = {
        name: _calls(context, budget / len(functions), seconds_of(context, function, 0)["median"])
        for name, function in functions.items()
    }
    taken: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(_ROUNDS):
        for name, function in functions.items():
            taken[name].append(_timed(context, function, calls[name]))
    return taken


def peak_memory_of(context: Context, function: Callable[[], Any]) -> int | None:
    """Most bytes that the GPU's memory held during a call."""
    if context.device.type != "cuda":
        function()
        return None
    torch.cuda.reset_peak_memory_stats()
    function()
    return torch.cuda.max_memory_allocated()


def profile(context: Context, step: Callable[[], Any]) -> dict[str, Any]:
    """Share of the time in which a kernel runs, the longest kernels, and how many a step launches."""
    from torch.profiler import ProfilerActivity

    on_gpu = context.device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]
    context.synchronize()
    steps = 3
    with torch.profiler.profile(activities=activities) as profiler:
        start = time.perf_counter()
        for _ in range(steps):
            step()
        context.synchronize()
        wall = time.perf_counter() - start
    kernels: dict[str, list[float]] = {}
    for event in profiler.events() or []:
        is_kernel = "CUDA" in str(event.device_type) if on_gpu else event.cpu_parent is None
        if is_kernel and not getattr(event, "is_user_annotation", False):
            kernels.setdefault(event.name, []).append(event.time_range.elapsed_us() / 1e3)
    longest = sorted(kernels.items(), key=lambda item: -sum(item[1]))[:15]
    return {
        "share_of_time_in_kernels": sum(map(sum, kernels.values())) / 1e3 / wall,
        "kernels_a_step": sum(map(len, kernels.values())) / steps,
        "ms_a_step": {name[:90]: sum(times) / steps for name, times in longest},
    }


def waits_of(context: Context, step: Callable[[], Any]) -> list[str]:
    """Where a step waits for the GPU, as PyTorch notices it."""
    if context.device.type != "cuda":
        return []
    torch.cuda.set_sync_debug_mode("warn")
    try:
        return [warning for warning in warnings_of(step) if "synchroniz" in warning]
    finally:
        torch.cuda.set_sync_debug_mode("default")


def _no(*_: Any) -> bool:
    return False  # a function, and no mock, at which a compiled graph would break


# What makes up the fast path, each switched off.
WITHOUT: dict[str, Callable[[], AbstractContextManager[Any]]] = {
    "attention kernel": lambda: mock.patch.object(layers, "use_attention_kernel", _no),
    "cross-entropy kernel": lambda: mock.patch.object(loss, "use_kernel_for_rows_of_logits", _no),
    "one product for all blocks": lambda: mock.patch.object(layers, "use_one_product_for_all_blocks", _no),
    "flash attention": lambda: mock.patch.object(attention, "_has_flash_attention", _no),
}


@contextlib.contextmanager
def pytorch_alone() -> Iterator[None]:
    """PyTorch's operations throughout, the blocks' projections one by one: the model as it ran before."""
    with plain_pytorch(), WITHOUT["one product for all blocks"]():
        yield


HOW: dict[str, Callable[[], AbstractContextManager[Any]]] = {"kernels": nullcontext, "PyTorch alone": pytorch_alone}
