"""One new token of cached texts in a kernel call, against the full pass."""

import gc
import pickle
import weakref
from collections.abc import Callable
from copy import deepcopy
from functools import partial
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st
from kernel_checks import (
    SEEDS,
    assert_near,
    in_steps,
    needs_kernels,
    randoms,
)
from reference import NEW_FORM, lively_model, small_config, small_model
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_hook
from torch.utils.hooks import RemovableHandle

from mu_sota import MuForCausalLM
from mu_sota.model import backend, kernels
from mu_sota.model import decoding as decoding_module
from mu_sota.model.decoding import DecodingWeights
from mu_sota.model.layers import FeedForward

FORMS = pytest.mark.parametrize("form", [{}, NEW_FORM], ids=["as specified", "new form"])


@needs_kernels
@FORMS
@pytest.mark.parametrize(("matrix_size", "heads"), [(8, 4), (8, 8), (8, 64), (12, 16), (16, 16)])
def test_a_text_in_steps_equals_the_full_pass(
    matrix_size: int, heads: int, form: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel for one new token, against a pass over all the text in float64; and it is what ran."""
    model = lively_model(matrix_size=matrix_size, num_attention_heads=heads, max_position_embeddings=100, **form)
    ids = torch.randint(model.config.vocab_size, (3, 100))
    expected = model(ids).logits
    steps = []

    def counted(*arguments: Any) -> Tensor:
        steps.append(1)
        return kernels.decode_step(*arguments)

    monkeypatch.setattr(decoding_module, "decode_step", counted)
    made = in_steps(model.float(), ids, prompt=3)
    assert len(steps) == 97
    torch.testing.assert_close(made.double(), expected, rtol=1e-4, atol=1e-4)


@needs_kernels
@FORMS
def test_texts_of_a_step_have_positions_of_their_own(form: dict[str, Any]) -> None:
    """Given as `position_ids`, as when texts begin elsewhere than at the first position."""
    model = lively_model(**form)
    ids, positions = torch.randint(37, (2, 9)), torch.arange(9) * torch.tensor([[1], [2]])
    expected = model(ids, position_ids=positions).logits[:, -1:]
    model.float()
    with torch.no_grad():
        cache = model(ids[:, :-1], position_ids=positions[:, :-1], use_cache=True).past_key_values
        made = model(ids[:, -1:], position_ids=positions[:, -1:], past_key_values=cache).logits
    torch.testing.assert_close(made.double(), expected, rtol=1e-4, atol=1e-4)


@needs_kernels
@settings(max_examples=20)
@given(outputs=st.integers(1, 3000), inputs=st.integers(1, 100), seed=SEEDS)
@example(outputs=1024, inputs=64, seed=0)
@example(outputs=2051, inputs=16, seed=0)
def test_a_linear_map_of_one_state(outputs: int, inputs: int, seed: int) -> None:
    """Of any size, in shares of 1,024 outputs."""
    with torch.no_grad():
        state, weight, bias = randoms(seed, (1, 1, inputs), (outputs, inputs), (outputs,))
        exact = F.linear(state.double(), weight.double(), bias.double())
        assert_near(kernels.linear_of_one(state, weight, bias), exact, 1e-5)


@needs_kernels
def test_scores_far_apart_in_a_step() -> None:
    """Softmax of scores in the hundreds: nearly all weight on one key, and an entropy that is a number."""
    model = lively_model(max_position_embeddings=40)
    for layer in model.model.layers:
        layer.cross_attention.qkv.weight.data *= 6
        layer.block_attention.qkv.weight.data *= 6
    ids = torch.randint(model.config.vocab_size, (2, 40))
    expected = model(ids).logits
    torch.testing.assert_close(in_steps(model.float(), ids, prompt=5).double(), expected, rtol=1e-3, atol=1e-3)


def replaced(module: nn.Module, path: str, value: Any) -> None:
    """Set what stands at `path`."""
    *parents, name = path.split(".")
    setattr(module.get_submodule(".".join(parents)), name, value)


def clipped(layer: nn.Module) -> nn.Module:
    """A module of another class around a layer."""
    return nn.Sequential(layer, nn.Hardtanh(-0.1, 0.1))


def plain_weight(linear: nn.Linear) -> None:
    """Another weight, which is an attribute and no parameter, as some methods of quantisation leave it."""
    del linear.weight
    linear.weight = torch.eye(64)


def narrowed(feed_forward: FeedForward) -> None:
    """Fewer values inside the network, the parameters still the same objects."""
    feed_forward.up.weight.data = feed_forward.up.weight.data[:16].clone()
    feed_forward.up.bias.data = feed_forward.up.bias.data[:16].clone()
    feed_forward.down.weight.data = feed_forward.down.weight.data[:, :16].clone()


def rolled(model: MuForCausalLM, where: str) -> Any:
    return model.get_submodule(where).register_forward_hook(lambda module, args, output: output.roll(1, -1))


CHANGES: dict[str, Callable[[MuForCausalLM], Any]] = {
    **{
        f"hook on {where}": partial(rolled, where=where)
        for where in (
            *("model.layers.1.cross_attention.qkv", "model.layers.1.sensitivity", "model.layers.1.attention_norm"),
            *("model.layers.1.feed_forward.down", "model.layers.1", "model.token_embedding", "model.norm", "lm_head"),
        )
    },
    "hook before a layer": lambda model: model.model.layers[1].register_forward_pre_hook(
        lambda module, args: (args[0].roll(1, -1), *args[1:])
    ),
    "method": lambda model: replaced(model, "model.layers.1.feed_forward.forward", torch.zeros_like),
    "weight": lambda model: replaced(model, "model.norm.weight", nn.Parameter(torch.linspace(0, 1, 64))),
    "weight's memory": lambda model: setattr(model.model.norm.weight, "data", torch.linspace(0, 1, 64)),
    "weight's layout": lambda model: setattr(
        model.model.layers[0].cross_attention.out.weight, "data", torch.randn(64, 64).T
    ),
    "weight's numbers": lambda model: model.model.layers[1].feed_forward.up.weight.data.mul_(0.5),
    "module of the same class": lambda model: replaced(model, "model.layers.1.cross_attention.out", nn.Linear(64, 64)),
    "module of another class": lambda model: replaced(model, "lm_head", clipped(model.lm_head)),
    "module without bias": lambda model: replaced(
        model, "model.layers.1.cross_attention.out", nn.Linear(64, 64, bias=False)
    ),
    "module in a layer": lambda model: replaced(model, "model.layers.1.block_attention.out", nn.Identity()),
    "width of one layer": lambda model: replaced(
        model, "model.layers.1.feed_forward", FeedForward(small_config(intermediate_size=16))
    ),
    "order of layers": lambda model: replaced(model, "model.layers", nn.ModuleList(reversed(model.model.layers))),
    "weight that is no parameter": lambda model: plain_weight(model.model.layers[1].cross_attention.out),
    "weight of fewer rows": lambda model: narrowed(model.model.layers[1].feed_forward),
    "heads of one layer": lambda model: replaced(model, "model.layers.1.cross_attention.num_heads", 16),
    "hook on all modules": lambda model: register_module_forward_hook(
        lambda module, args, output: output.roll(1, -1) if isinstance(module, nn.LayerNorm) else None
    ),
    "table of tokens": lambda model: replaced(model, "model.token_embedding", nn.Embedding(37, 64)),
}


CHANGES_OF_NEW_FORM: dict[str, Callable[[MuForCausalLM], Any]] = {
    **{
        f"hook on {where}": partial(rolled, where=where)
        for where in (
            *("model.lookups", "model.lookups.pairs", "model.lookups.induction.1", "model.layers.1.block_norm"),
            *("model.sources", "model.sources.tables.P", "model.sources.tables.G"),
        )
    },
    "table of pairs": lambda model: replaced(model, "model.lookups.pairs", nn.Embedding(29, 64)),
    "one induction table less": lambda model: model.model.lookups.induction.pop(1),
    "no table": lambda model: replaced(model, "model.lookups", None),
    "table of a source": lambda model: replaced(model, "model.sources.tables.C2", nn.Embedding(37, 4)),
    "no sources": lambda model: replaced(model, "model.sources", None),
}


@needs_kernels
@pytest.mark.parametrize("change", [*CHANGES, *CHANGES_OF_NEW_FORM])
def test_a_step_sees_every_change_of_the_model(change: str) -> None:
    """Weights are gathered once; what changes afterwards, between two tokens of a text, takes effect at once."""
    form = NEW_FORM if change in CHANGES_OF_NEW_FORM else {}
    model = lively_model(max_position_embeddings=12, **form).float().requires_grad_(False)
    ids = torch.randint(6, (1, 12))  # few, so that tokens recur
    before = in_steps(model, ids, prompt=4)
    handle = (CHANGES | CHANGES_OF_NEW_FORM)[change](model)
    changed, full = in_steps(model, ids, prompt=4), model(ids).logits
    torch.testing.assert_close(changed, full, rtol=1e-3, atol=1e-3)
    assert (changed - before).abs().max() > 1e-2
    if isinstance(handle, RemovableHandle):
        handle.remove()
        assert torch.equal(in_steps(model, ids, prompt=4), before)


@needs_kernels
def test_a_layer_in_training_drops_in_a_step() -> None:
    """Dropout at work in one layer, as for samples of uncertainty, also from the cache."""
    model = lively_model(dropout=0.5).float()
    ids = torch.randint(37, (1, 9))
    before = in_steps(deepcopy(model), ids, prompt=4)
    model.model.layers[1].train()
    one, two = (in_steps(model, ids, prompt=4)[:, -1] for _ in range(2))
    assert not torch.equal(one, two)
    model.eval()
    state = torch.get_rng_state()
    assert torch.equal(in_steps(model, ids, prompt=4), before)
    assert torch.equal(torch.get_rng_state(), state)


@needs_kernels
def test_a_copy_of_a_model_steps_with_its_own_weights() -> None:
    """What was gathered for a model is not handed on, and keeps neither it nor a pickle of it from working."""
    model = lively_model().float()
    ids = torch.randint(37, (1, 9))
    before = in_steps(model, ids, prompt=4)
    copy = deepcopy(model)
    assert torch.equal(in_steps(copy, ids, prompt=4), before)
    copy.model.norm.weight.data.mul_(2)
    assert not torch.equal(in_steps(copy, ids, prompt=4), before)
    assert torch.equal(in_steps(model, ids, prompt=4), before)
    assert torch.equal(in_steps(pickle.loads(pickle.dumps(model)), ids, prompt=4), before)  # noqa: S301
    copy.model.norm.register_forward_hook(lambda module, args, output, model=copy: None)  # a cycle, as hooks make them
    in_steps(copy, ids, prompt=4)
    gone = weakref.ref(copy.model)
    del copy
    gc.collect()
    assert gone() is None


@needs_kernels
@FORMS
def test_the_kernel_source_names_every_weight_of_the_model_once(form: dict[str, Any]) -> None:
    model = small_model(**form).model
    weights = DecodingWeights(model).weights
    assert sorted(map(id, weights)) == sorted(map(id, model.parameters()))


@needs_kernels
@FORMS
def test_a_step_that_fails_leaves_the_cache_as_it_was(form: dict[str, Any]) -> None:
    """An id or a position beyond the tables is refused, as in the pass over a prompt."""
    model = lively_model(max_position_embeddings=12, **form).float()
    ids = torch.randint(37, (1, 6))
    with torch.no_grad():
        cache = model(ids[:, :5], use_cache=True).past_key_values
        for wrong in (37, -1):
            with pytest.raises(IndexError):
                model(torch.tensor([[wrong]]), past_key_values=cache)
        if not form:
            with pytest.raises(IndexError):
                model(ids[:, 5:], past_key_values=cache, position_ids=torch.tensor([[12]]))
        assert {slot.get_seq_length() for slot in cache.layers} == {5}
        assert torch.equal(model(ids[:, 5:], past_key_values=cache).logits, in_steps(model, ids, prompt=5)[:, 5:])


@needs_kernels
@pytest.mark.parametrize("wrong", ["ids", "positions", "weight"])
def test_arguments_of_another_kind_leave_the_cache_as_it_was(wrong: str) -> None:
    """They are refused before a place in the cache is taken."""
    model = lively_model().float()
    ids = torch.randint(37, (1, 6))
    with torch.no_grad():
        cache = model(ids[:, :5], use_cache=True).past_key_values
        given: dict[str, Any] = {"input_ids": ids[:, 5:], "past_key_values": cache}
        if wrong == "ids":
            given["input_ids"] = given["input_ids"].float()
        elif wrong == "positions":
            given["position_ids"] = torch.tensor([[5.0]])
        else:
            model.model.layers[1].feed_forward.up.to("meta")
        with pytest.raises((RuntimeError, TypeError)):
            model(**given)
    assert {slot.get_seq_length() for slot in cache.layers} == {5}


@needs_kernels
def test_a_cache_that_an_error_left_uneven_is_not_for_the_kernel() -> None:
    """Later layers have fewer tokens, and less room, than the first: the kernel would write beyond it."""
    model = lively_model(max_position_embeddings=300).float()
    ids = torch.randint(37, (1, 291))

    def fail(module: nn.Module, args: Any) -> None:
        raise KeyboardInterrupt

    with torch.no_grad():
        cache = model(ids[:, :1], use_cache=True).past_key_values
        handle = model.model.layers[1].register_forward_pre_hook(fail)
        with pytest.raises(KeyboardInterrupt):
            model(ids[:, 1:290], past_key_values=cache)
        handle.remove()
        assert [slot.get_seq_length() for slot in cache.layers] == [290, 290, 1, 1]
        with backend.plain_pytorch():
            expected = model(ids[:, 290:], past_key_values=deepcopy(cache)).logits
        made = model(ids[:, 290:], past_key_values=cache).logits
    torch.testing.assert_close(made, expected, rtol=1e-4, atol=1e-4)
    assert [slot.get_seq_length() for slot in cache.layers] == [291, 291, 2, 2]


@needs_kernels
def test_a_cache_of_another_kind_is_not_for_the_kernel() -> None:
    """Of fewer texts, which PyTorch refuses; of another precision, which it takes."""
    model = lively_model().float()
    ids = torch.randint(37, (1, 6))
    with torch.no_grad():
        cache = model(ids[:, :5], use_cache=True).past_key_values
        with pytest.raises(RuntimeError, match="must match"):
            model(torch.zeros(2, 1, dtype=torch.long), past_key_values=cache)
        assert {slot.get_seq_length() for slot in cache.layers} == {5}
        with torch.autocast("cpu", torch.bfloat16):
            mixed = model(ids[:, 5:], past_key_values=cache).logits
    torch.testing.assert_close(mixed.float(), model(ids).logits[:, 5:], rtol=0.3, atol=0.3)


@needs_kernels
def test_a_head_of_another_width_is_refused() -> None:
    """As by PyTorch, instead of reading the states by another measure."""
    model = lively_model().float()
    model.lm_head = nn.Linear(32, 37)
    with torch.no_grad(), pytest.raises(RuntimeError, match="cannot be multiplied"):
        model(torch.zeros(1, 1, dtype=torch.long), use_cache=True)


@needs_kernels
def test_weights_of_another_kind_are_refused() -> None:
    """A kernel reads memory as float32: other weights would be read as noise."""
    model = lively_model().float()
    model.model.layers[0].block_attention.qkv.double()
    with pytest.raises(TypeError, match=r"float64 on cpu.*model\.float\(\)"):
        model(torch.randint(37, (1, 5)))
    model.float()
    with torch.no_grad():
        cache = model(torch.randint(37, (1, 5)), use_cache=True).past_key_values
        model.model.layers[0].block_attention.qkv.double()
        with pytest.raises(TypeError, match=r"float64 on cpu.*model\.float\(\)"):
            model(torch.zeros(1, 1, dtype=torch.long), past_key_values=cache)
