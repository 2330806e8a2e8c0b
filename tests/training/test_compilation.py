"""Layers that are compiled: when, for what, and what happens where they cannot be."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import pytest
import torch
from packaging.version import Version
from torch import Tensor

from mu_sota import MuConfig, MuForCausalLM
from mu_sota.model import layers
from mu_sota.model.backend import plain_pytorch
from mu_sota.training.compilation import compile_layers, uncompiled

CONFIG = MuConfig(vocab_size=50, num_hidden_layers=3, max_position_embeddings=32)
pytestmark = [  # torch.compile's own parts warn, differently in every release
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning"),
]
BACKENDS: dict[str, Callable[[], AbstractContextManager[None]]] = {"kernels": nullcontext, "PyTorch": plain_pytorch}


@pytest.fixture(autouse=True)
def _forget_compiled_code() -> None:
    torch.compiler.reset()


def new_model() -> MuForCausalLM:
    torch.manual_seed(0)
    return MuForCausalLM(CONFIG)


@pytest.mark.parametrize("how", BACKENDS)
@pytest.mark.parametrize("as_on_a_gpu", [False, True], ids=["blocks one by one", "all blocks at once"])
@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_a_layer_is_one_graph(how: str, as_on_a_gpu: bool, training: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """No graph break forward, nor backward; one graph for all layers; and the results of the uncompiled model."""
    if how == "kernels" and Version(torch.__version__) < Version("2.8"):
        pytest.skip("asking whether a module was changed breaks the graph of PyTorch 2.7; on a GPU nothing asks")
    monkeypatch.setattr(layers, "use_one_product_for_all_blocks", lambda _: as_on_a_gpu)
    model = new_model().train(training)
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
    ids = torch.randint(50, (2, 32), generator=torch.Generator().manual_seed(0))
    graphs: list[Any] = []

    def backend(graph: torch.fx.GraphModule, inputs: list[Tensor]) -> Any:
        graphs.append(graph)
        return torch._dynamo.lookup_backend("aot_eager")(graph, inputs)

    def results() -> list[Tensor]:
        with torch.set_grad_enabled(training):
            loss = model(ids, labels=ids).loss
        return [loss, *(torch.autograd.grad(loss, [*model.parameters()]) if training else [])]

    with BACKENDS[how]():
        expected = results()
        for layer in model.model.layers:
            layer.compile(fullgraph=True, backend=backend)
        found = results()
    assert len(graphs) == 1
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_the_trial_leaves_no_trace() -> None:
    """Weights, gradients and random numbers are as before; the layers are compiled, and other shapes go around that."""
    model = new_model()
    weights = {name: weight.clone() for name, weight in model.state_dict().items()}
    before = torch.get_rng_state()
    assert compile_layers(model, 2, 16, "fp32") == ""
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(weight, weights[name]) for name, weight in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())
    with torch.compiler.set_stance("fail_on_recompile"):
        ids = torch.zeros(2, 16, dtype=torch.long)
        model(ids, labels=ids).loss.backward()
        with uncompiled():
            model(ids[:1], labels=ids[:1]).loss.backward()
            model.eval()
            model.generate(ids[:1, :3], max_new_tokens=3, do_sample=False)


def test_where_compiling_fails_the_layers_run_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """And the reason is one line."""

    def broken(self: Any, **_: Any) -> None:
        def fail(*_: Any, **__: Any) -> None:
            raise RuntimeError("no Triton\nanywhere")

        self._compiled_call_impl = fail

    model = new_model()
    monkeypatch.setattr(layers.MuLayer, "compile", broken)
    assert compile_layers(model, 2, 16, "fp32") == "no Triton anywhere"
    ids = torch.zeros(2, 16, dtype=torch.long)
    assert model(ids, labels=ids).loss.isfinite()


def test_too_little_memory_is_not_a_failure_to_compile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Then the run goes on with fewer sequences at once."""

    def full(self: Any, *_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    model = new_model()
    monkeypatch.setattr(MuForCausalLM, "forward", full)
    with pytest.raises(torch.OutOfMemoryError):
        compile_layers(model, 2, 16, "fp32")
