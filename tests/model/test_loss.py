"""The chunked loss against cross-entropy on full logits."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mu_sota.model import loss as loss_module
from mu_sota.model.loss import IGNORE_INDEX, chunked_cross_entropy

STATE, VOCABULARY = 6, 23
CHUNK = 128  # on the CPU


def random_problem(rows: int, *, bias: bool = True, ignored: float = 0.2) -> tuple[list[Tensor], Tensor]:
    """[hidden, weight, and bias], in float64, and labels of which a part is to be ignored."""
    generator = torch.Generator().manual_seed(rows)

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator).requires_grad_()

    tensors = [random(rows, STATE), random(VOCABULARY, STATE), *([random(VOCABULARY)] if bias else [])]
    labels = torch.randint(VOCABULARY, (rows,), generator=generator)
    labels[torch.rand(rows, generator=generator) < ignored] = IGNORE_INDEX
    return tensors, labels


def chunked(tensors: list[Tensor], labels: Tensor) -> tuple[Tensor, Tensor]:
    hidden, weight, *bias = tensors
    return chunked_cross_entropy(hidden, weight, bias[0] if bias else None, labels)


def full(tensors: list[Tensor], labels: Tensor) -> tuple[Tensor, Tensor]:
    logits = F.linear(*tensors)
    loss = F.cross_entropy(logits, labels, ignore_index=IGNORE_INDEX, reduction="sum")
    return loss, (logits.argmax(-1) == labels).sum()


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("rows", [0, 1, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK, 3 * CHUNK + 5])
def test_loss_count_and_gradients_equal_full_logits(rows: int, bias: bool) -> None:
    """Around the boundary between chunks; gradients scale with what comes back from above."""
    tensors, labels = random_problem(rows, bias=bias)
    loss, correct = chunked(tensors, labels)
    expected_loss, expected_correct = full(tensors, labels)
    torch.testing.assert_close(loss, expected_loss, rtol=1e-12, atol=1e-12)
    assert correct == expected_correct
    assert correct.dtype == torch.int64
    gradients = torch.autograd.grad(loss * 0.37, tensors)
    expected = torch.autograd.grad(expected_loss * 0.37, tensors)
    for ours, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
def test_entries_that_are_added_change_nothing(bias: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU the table is filled up to a multiple of 64 entries, which no prediction can be."""
    tensors, labels = random_problem(200, bias=bias)
    expected = chunked(tensors, labels)
    expected_gradients = torch.autograd.grad(expected[0], tensors)
    monkeypatch.setattr(loss_module, "_MULTIPLE", {"cpu": 8})
    found = chunked(tensors, labels)
    for ours, theirs in zip(
        (*found, *torch.autograd.grad(found[0], tensors)), (*expected, *expected_gradients), strict=True
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-12)


def test_ignored_rows_count_for_nothing() -> None:
    """Not even as predictions of token 0, and their hidden states get no gradient."""
    tensors, labels = random_problem(200, ignored=0.5)
    _, _, bias = tensors
    with torch.no_grad():
        bias[0] += 100  # token 0 is predicted everywhere
    labels[labels == 0] = 1
    loss, correct = chunked(tensors, labels)
    assert correct == 0
    (gradient,) = torch.autograd.grad(loss, tensors[:1])
    assert (gradient[labels == IGNORE_INDEX] == 0).all()
    assert (gradient[labels != IGNORE_INDEX] != 0).any(-1).all()


def test_no_labelled_row_is_a_loss_of_zero() -> None:
    """A batch of padding adds nothing, and no NaN."""
    tensors, labels = random_problem(130, ignored=1.1)
    assert (labels == IGNORE_INDEX).all()
    loss, correct = chunked(tensors, labels)
    assert loss == correct == 0
    assert all((gradient == 0).all() for gradient in torch.autograd.grad(loss, tensors))


def test_gradcheck() -> None:
    """All three gradients against differences of the loss itself."""
    tensors, labels = random_problem(7)
    assert torch.autograd.gradcheck(lambda *inputs: chunked(list(inputs), labels)[0], tensors)


def test_without_gradients() -> None:
    """Evaluation gives the same loss and keeps nothing; a frozen table leaves the states' gradient as it was."""
    tensors, labels = random_problem(150)
    loss, correct = chunked(tensors, labels)
    with torch.no_grad():
        evaluated = chunked(tensors, labels)
    assert (evaluated[0], evaluated[1]) == (loss, correct)
    assert not evaluated[0].requires_grad

    frozen = [tensors[0], *(tensor.detach() for tensor in tensors[1:])]
    (expected,) = torch.autograd.grad(loss, tensors[:1])
    (gradient,) = torch.autograd.grad(chunked(frozen, labels)[0], frozen[:1])
    assert torch.equal(gradient, expected)


def test_leading_axes_and_strides_do_not_matter() -> None:
    """[B, T, D], contiguous or not, is B times T rows, and its gradient has its shape."""
    tensors, labels = random_problem(60)
    expected, _ = chunked(tensors, labels)
    (expected_gradient,) = torch.autograd.grad(expected, tensors[:1])
    turned = tensors[0].detach().view(4, 15, STATE).transpose(0, 1).contiguous().transpose(0, 1).requires_grad_()
    loss, _ = chunked([turned, *tensors[1:]], labels.view(4, 15))
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    (gradient,) = torch.autograd.grad(loss, [turned])
    torch.testing.assert_close(gradient.flatten(0, 1), expected_gradient, rtol=1e-12, atol=1e-14)


def test_large_logits_stay_finite() -> None:
    """Logits of a thousand: the largest is taken out before the exponential."""
    tensors, labels = random_problem(140)
    tensors = [(tensor.detach() * 40).requires_grad_() for tensor in tensors]
    loss, _ = chunked(tensors, labels)
    torch.testing.assert_close(loss, full(tensors, labels)[0], rtol=1e-12, atol=0)
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(loss, tensors))


def relative_error(found: Tensor, expected: Tensor) -> float:
    found, expected = found.detach().double(), expected.detach().double()
    return float((found - expected).norm() / expected.norm())


def test_bfloat16_autocast_is_close_to_float32() -> None:
    """Products in bfloat16, sums in float32: the loss is float32, gradients come in their parameter's type."""
    exact, labels = random_problem(300)
    tensors = [tensor.detach().float().requires_grad_() for tensor in exact]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = chunked(tensors, labels)
    expected, _ = full(tensors, labels)
    assert loss.dtype == torch.float32
    assert relative_error(loss, expected) < 2e-3
    gradients = torch.autograd.grad(loss, tensors)
    for ours, theirs in zip(gradients, torch.autograd.grad(expected, tensors), strict=True):
        assert ours.dtype == torch.float32
        assert relative_error(ours, theirs) < 1e-2
    assert relative_error(loss, expected) > 0  # it did work in bfloat16


def test_float16_autocast_works_in_float32() -> None:
    """Probabilities of a large vocabulary underflow in float16: only the states come in it, and their gradient."""
    exact, labels = random_problem(300)
    hidden, weight, bias = (tensor.detach().float() for tensor in exact)
    hidden = hidden.half()
    tensors = [hidden.requires_grad_(), weight.requires_grad_(), bias.requires_grad_()]
    with torch.autocast("cpu", dtype=torch.float16):
        loss, _ = chunked(tensors, labels)
    expected, _ = full([hidden.float(), weight, bias], labels)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss, expected, rtol=1e-6, atol=0)
    gradients = torch.autograd.grad(loss, tensors)
    assert [gradient.dtype for gradient in gradients] == [torch.float16, torch.float32, torch.float32]
    for ours, theirs in zip(gradients, torch.autograd.grad(expected, tensors), strict=True):
        assert relative_error(ours, theirs) < (1e-3 if ours.dtype == torch.float16 else 1e-6)


class LargestTensor(TorchDispatchMode):
    """Remembers the number of elements of the largest tensor that any operation gave."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        sizes = [leaf.numel() for leaf in tree_leaves(result) if isinstance(leaf, Tensor)]
        self.elements = max(self.elements, *sizes, 0)
        return result


def test_full_logits_are_never_held() -> None:
    """Forward and backward, no tensor is larger than one chunk of logits; the full way would show."""
    tensors, labels = random_problem(5 * CHUNK)
    with LargestTensor() as largest:
        chunked(tensors, labels)[0].backward()
    assert largest.elements <= max(CHUNK * VOCABULARY, 5 * CHUNK * STATE)
    with LargestTensor() as largest:
        full(tensors, labels)[0].backward()
    assert largest.elements == 5 * CHUNK * VOCABULARY
