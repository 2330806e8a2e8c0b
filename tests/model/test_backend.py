"""Kernel or PyTorch: the same numbers, and kernels only where they compute what the modules say."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from kernel_checks import (
    assert_near,
    needs_kernels,
    soil_the_heap,
)
from reference import gradients_of, lively_model, reference_of, small_model, to_reference
from torch import Tensor, nn

from mu_sota import MuForCausalLM
from mu_sota.model import backend
from mu_sota.model.loss import IGNORE_INDEX

ALL_KERNELS = {
    f"mu_{name}{way}" for name in ("attention", "block_attention", "feed_forward") for way in ("", "_backward")
} | {"mu_cross_entropy"}
TWO_KERNELS = {"mu_feed_forward", "mu_feed_forward_backward", "mu_cross_entropy"}
BLOCK_KERNELS = TWO_KERNELS | {"mu_block_attention", "mu_block_attention_backward"}


@pytest.mark.parametrize("kernels_on", [pytest.param(True, marks=needs_kernels), False], ids=["kernels", "plain"])
@pytest.mark.parametrize(
    ("overrides", "runs"),
    [
        ({"matrix_size": 8, "num_attention_heads": 8}, ALL_KERNELS),
        ({"matrix_size": 8, "num_attention_heads": 1}, BLOCK_KERNELS),  # heads of 64
        ({"matrix_size": 4, "num_attention_heads": 2}, ALL_KERNELS),
        ({"matrix_size": 12, "num_attention_heads": 16}, ALL_KERNELS),
        ({"matrix_size": 12}, BLOCK_KERNELS),  # heads of 36
        ({"matrix_size": 16}, BLOCK_KERNELS),
        ({"matrix_size": 16, "num_attention_heads": 16}, ALL_KERNELS),
        ({"matrix_size": 24}, TWO_KERNELS),  # blocks of 36
        ({"matrix_size": 8, "intermediate_size": 40}, ALL_KERNELS - TWO_KERNELS | {"mu_cross_entropy"}),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else f"{len(value)} kernels",
)
def test_the_model_in_float32_equals_the_reference(
    overrides: dict[str, int], runs: set[str], kernels_on: bool, used: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Logits, loss and all gradients, with every kernel that its sizes allow, and without any."""
    if not kernels_on:
        monkeypatch.setattr(backend, "_switched_off", True)
    model = lively_model(**overrides).float()
    reference = reference_of(model)
    ids = torch.randint(model.config.vocab_size, (3, 23))
    labels = ids.clone()
    labels[1, 7:11] = IGNORE_INDEX
    ours = model(ids, labels=labels)
    ours.loss.backward()
    assert used == (runs if kernels_on else set())
    logits = reference(ids).logits
    loss = F.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
    loss.backward()
    assert_near(ours.logits, logits, 5e-5, "logits")
    assert_near(ours.loss, loss, 1e-5, "loss")
    assert ours.num_correct == (logits[:, :-1].argmax(-1) == labels[:, 1:]).sum()
    gradients = to_reference(gradients_of(model), reference.matrix_size)
    expected = gradients_of(reference)
    whole = torch.stack([gradient.norm() for gradient in expected.values()]).norm()
    for name, gradient in expected.items():
        error = (gradients[name] - gradient).norm()
        assert error <= 4e-4 * gradient.norm() + 5e-6 * whole, f"gradient by {name}: off by {error}"


@needs_kernels
def test_what_the_kernels_are_not_made_for_goes_without_them(used: set[str]) -> None:
    """Float64, autocast and padded batches."""
    ids = torch.randint(37, (2, 9))
    lively_model()(ids, labels=ids).loss.backward()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        lively_model().float()(ids, labels=ids).loss.backward()
    assert used == set()
    padding = torch.ones_like(ids)
    padding[0, :3] = 0
    lively_model().float()(ids, labels=ids, attention_mask=padding).loss.backward()
    assert used == TWO_KERNELS


@needs_kernels
def test_a_cached_text_continues_as_the_whole_is_read(used: set[str]) -> None:
    """The prompt goes through the kernels and fills the cache; the tokens after it need none."""
    model = lively_model().float()
    ids = torch.randint(37, (2, 20))
    with torch.no_grad():
        whole = model(ids).logits
        used.clear()
        start = model(ids[:, :12], use_cache=True)
        assert used == {"mu_attention", "mu_feed_forward"}
        rest = [model(ids[:, [place]], past_key_values=start.past_key_values).logits for place in range(12, 20)]
    assert_near(torch.cat([start.logits, *rest], 1), whole.double(), 5e-5)


class _Adapted(nn.Linear):
    """Adds to what a linear layer gives, as an adapter of low rank would add its part."""

    def forward(self, state: Tensor) -> Tensor:
        return super().forward(state) + state.sin().sum(-1, keepdim=True) * self.bias


LINEARS = ["feed_forward.up", "feed_forward.down", "block_attention.qkv", "block_attention.out", "cross_attention.qkv"]


@pytest.mark.parametrize("name", [*LINEARS, "feed_forward.dropout"])
def test_hooks_run(name: str) -> None:
    """A forward hook sees and may change the output of any part, a forward pre-hook its input, also with kernels."""
    model = lively_model().float()
    ids = torch.randint(37, (2, 9))
    part = model.model.layers[0].get_submodule(name)
    before = model(ids).logits
    seen: Any = []  # so that `append` can be part of an expression
    for register in (
        lambda: part.register_forward_hook(lambda module, inputs, output: seen.append(1) or output.sin()),
        lambda: part.register_forward_pre_hook(lambda module, inputs: seen.append(1) or (inputs[0].sin(),)),
    ):
        handle = register()
        assert not torch.allclose(model(ids).logits, before, atol=1e-3)
        handle.remove()
        assert torch.equal(model(ids).logits, before)
    assert len(seen) == 2


@pytest.mark.parametrize("name", LINEARS)
def test_backward_hooks_run(name: str) -> None:
    """As they do around any module."""
    model = lively_model().float()
    ids = torch.randint(37, (2, 9))
    seen = []
    model.model.layers[0].get_submodule(name).register_full_backward_hook(lambda *_: seen.append(1))
    model(ids, labels=ids).loss.backward()
    assert seen == [1]


@pytest.mark.parametrize("name", ["up", "down"])
def test_a_replaced_linear_layer_takes_effect(name: str) -> None:
    """Adapters put a module of their own in the place of a linear layer, or a `forward` of their own into it."""
    model = lively_model().float()
    ids = torch.randint(37, (2, 9))
    before = model(ids).logits
    feed_forward = model.model.layers[0].feed_forward
    linear = getattr(feed_forward, name)
    adapted = _Adapted(linear.in_features, linear.out_features)
    adapted.load_state_dict(linear.state_dict())
    setattr(feed_forward, name, adapted)
    replaced = model(ids).logits
    assert not torch.allclose(replaced, before, atol=1e-3)

    setattr(feed_forward, name, linear)
    assert torch.equal(model(ids).logits, before)
    plain = linear.forward
    linear.forward = lambda state: plain(state) + state.sin().sum(-1, keepdim=True) * linear.bias
    torch.testing.assert_close(model(ids).logits, replaced)


@pytest.mark.parametrize("bias", [True, False])
def test_a_parametrized_weight_takes_effect(bias: bool) -> None:
    """A weight that is computed from others goes through its own module."""

    class Twice(nn.Module):
        def forward(self, weight: Tensor) -> Tensor:
            return 2 * weight

    model = lively_model().float()
    ids = torch.randint(37, (2, 9))
    before = model(ids).logits
    up = model.model.layers[0].feed_forward.up
    nn.utils.parametrize.register_parametrization(up, "bias" if bias else "weight", Twice())
    assert not torch.allclose(model(ids).logits, before, atol=1e-3)


@needs_kernels
@pytest.mark.parametrize("rate", [0.9999999999, 1.0])
def test_dropout_of_nearly_everything_is_left_to_pytorch(rate: float) -> None:
    """What is kept is divided by 1 - p, which float32 takes for 0."""
    model = small_model().train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = rate
    ids = torch.arange(20)[None]
    loss = model(ids, labels=ids).loss
    loss.backward()
    assert loss.isfinite()
    assert all(weight.grad is None or weight.grad.isfinite().all() for weight in model.parameters())


# --- Training -------------------------------------------------------------------------------------------------------


def trained(steps: int, **overrides: Any) -> tuple[list[float], MuForCausalLM]:
    """The losses of some steps of AdamW on one made-up batch after another, and the model after them."""
    model = small_model(matrix_size=8, **overrides).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    ids = (torch.arange(24 * 4 * steps).view(steps, 4, 24) ** 2 // 7) % 37
    losses = []
    for batch in ids:
        loss = model(batch, labels=batch).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses, model


def test_training_is_reproducible() -> None:
    """Two steps from one seed, with dropout: the same losses and gradients to the last bit."""
    runs = []
    for _ in range(2):
        soil_the_heap()
        runs.append(trained(2, dropout=0.1))
    (first, model), (second, again) = runs
    assert first == second
    gradients = [[p.grad for p in run.parameters()] for run in (model, again)]
    assert all(map(torch.equal, *gradients))


# Of 20 steps, by PyTorch's own operations in float32.
LOSSES = [3.62003, 3.62344, 3.57263, 3.48128, 3.5133, 3.43114, 3.41494, 3.45875, 3.29174, 3.33516]
LOSSES += [3.31195, 3.22155, 3.24601, 3.19713, 3.11373, 3.17696, 3.02617, 3.08041, 3.05989, 2.97614]


@pytest.mark.parametrize("kernels_on", [pytest.param(True, marks=needs_kernels), False], ids=["kernels", "plain"])
def test_training_goes_as_it_always_has(kernels_on: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """The losses of the first steps are known numbers: a change of the model, or of a kernel, shows in them."""
    if not kernels_on:
        monkeypatch.setattr(backend, "_switched_off", True)
    losses, _ = trained(20)
    assert losses == pytest.approx(LOSSES, rel=1e-3)


@needs_kernels
def test_training_with_kernels_goes_as_without(monkeypatch: pytest.MonkeyPatch) -> None:
    """The losses of 20 steps; they differ by 2e-7 or so."""
    losses, _ = trained(20)
    monkeypatch.setattr(backend, "_switched_off", True)
    assert losses == pytest.approx(trained(20)[0], rel=1e-5)
