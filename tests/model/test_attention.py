"""The attention kernels against full attention matrices in float64.

Legend: B batch, H heads, T time, K size of a head.
"""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mu_sota.model.attention import attention_bias, causal_attention, causal_attention_with_entropy, row_log_sum_exp

Inputs = tuple[Tensor, Tensor, Tensor]

# 1 at tokens, 0 at padding: on the left, on the right, on both sides and in between, none.
PADDING = torch.tensor([[0, 0, 0, 1, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 0, 0, 0], [0, 1, 1, 0, 1, 1, 1, 1, 0], [1] * 9])
# Float64, but for the value of the entropy, which is taken in float32.
CLOSE: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-12}
ENTROPY_CLOSE: dict[str, Any] = {"rtol": 1e-5, "atol": 2e-6}


def bias_of(padding: Tensor | None, length: int = 9) -> Tensor | None:
    """The bias of a whole text."""
    return attention_bias(padding, queries=length, keys=length, past=0, device=torch.device("cpu"))


class _DeviceByAnotherName(str):
    """A device string that places tensors on the CPU, and claims to be of another type."""

    type = "elsewhere"


class _CudaByName(_DeviceByAnotherName):
    type = "cuda"


class _Elsewhere(torch.Tensor):
    """A CPU tensor that a choice of kernel by `device.type` takes for one of an accelerator."""

    @property
    def device(self) -> _DeviceByAnotherName:  # type: ignore[override]
        return _DeviceByAnotherName("cpu")


class _OnCuda(torch.Tensor):
    """A CPU tensor that a choice of kernel by `device.type` takes for one of a CUDA GPU."""

    @property
    def device(self) -> _CudaByName:  # type: ignore[override]
        return _CudaByName("cpu")


# The branch for the CPU, the one for everything else run on the CPU, and that one at home.
KERNELS = pytest.mark.parametrize(
    "where",
    [
        "cpu",
        "elsewhere",
        pytest.param("cuda", marks=pytest.mark.cuda),
    ],
)


def moved(inputs: Inputs, where: str) -> Inputs:
    query, key, value = inputs
    if where == "elsewhere":
        return query.as_subclass(_Elsewhere), key, value
    return query.to(where), key.to(where), value.to(where)


def fused_attention_of_cuda(name: str) -> Callable[..., tuple[Tensor, ...]]:
    """What PyTorch's fused attention `name` on CUDA asks for and returns, computed with full matrices on the CPU."""
    real = getattr(torch.ops.aten, name)

    def plain(tensor: Tensor) -> Tensor:
        return tensor.as_subclass(Tensor)

    def attend(query: Tensor, key: Tensor, value: Tensor, *others: Any, scale: float) -> tuple[Tensor, ...]:
        query, key, value = map(plain, (query, key, value))
        bias, causal = (None, others[1]) if "flash" in name else (others[0], others[3])
        # Arguments and shapes are those of the real one.
        meta = [tensor.to("meta") for tensor in (query, key, value)]
        on_meta = [other.to("meta") if isinstance(other, Tensor) else other for other in others]
        output, log_sums = real(*meta, *on_meta, scale=scale)[:2]
        assert query.shape[-1] == key.shape[-1] == value.shape[-1]
        assert query.shape[-1] % (4 if query.dtype == torch.float32 else 8) == 0
        assert "flash" not in name or query.dtype != torch.float32
        scores = (query.float() @ key.float().transpose(-2, -1)) * scale
        if bias is not None:
            assert bias.shape == scores.shape
            assert bias.dtype == query.dtype
            assert all(
                stride % 8 == 0 for stride, size in zip(bias.stride()[:-1], bias.shape, strict=False) if size > 1
            )
            assert bias.stride(-1) == 1
            scores = scores + bias
        if causal:
            scores = scores.masked_fill(~torch.ones(scores.shape[-2:], dtype=torch.bool).tril(), float("-inf"))
        mixed = scores.softmax(-1) @ value.float()
        assert mixed.shape == output.shape
        beyond = log_sums.shape[-1] - scores.shape[-2]
        return mixed.to(query.dtype), F.pad(scores.logsumexp(-1), (0, beyond), value=float("nan")), torch.empty(0)

    return attend


def test_heads_too_wide_for_flash_attention_go_to_the_other_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Values and keys side by side are twice as wide as a head, and flash attention ends at 256."""
    monkeypatch.setattr("mu_sota.model.attention._has_flash_attention", lambda _: True)
    name = "_scaled_dot_product_efficient_attention"
    monkeypatch.setattr(torch.ops.aten, name, fused_attention_of_cuda(name))
    query, key, value = (tensor.detach().half() for tensor in random_inputs((1, 1, 9, 144)))
    output, _ = causal_attention_with_entropy(query.as_subclass(_OnCuda), key, value, None)
    assert output.shape == (1, 1, 9, 144)


@pytest.mark.parametrize("name", ["_scaled_dot_product_flash_attention", "_scaled_dot_product_efficient_attention"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("padding", [None, PADDING], ids=["plain", "padded"])
@pytest.mark.parametrize("size", [2, 5, 8])
def test_on_cuda_the_fused_attentions_give_the_entropy(
    name: str, dtype: torch.dtype, padding: Tensor | None, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flash attention on an A100 and newer, the memory-efficient one on a T4, in float32, and for padding."""
    used: list[str] = []
    for fused in ("_scaled_dot_product_flash_attention", "_scaled_dot_product_efficient_attention"):
        stand_in = fused_attention_of_cuda(fused)

        def noting(*args: Any, fused: str = fused, stand_in: Any = stand_in, **named: Any) -> tuple[Tensor, ...]:
            used.append(fused)
            return stand_in(*args, **named)

        monkeypatch.setattr(torch.ops.aten, fused, noting)
    monkeypatch.setattr("mu_sota.model.attention._has_flash_attention", lambda _: "flash" in name)
    inputs = [tensor.detach().to(dtype) for tensor in random_inputs((4, 3, 9, size))]
    leaves = [tensor.clone().requires_grad_() for tensor in inputs]
    bias = bias_of(padding)
    output, entropy = causal_attention_with_entropy(leaves[0].as_subclass(_OnCuda), leaves[1], leaves[2], bias)
    plain = dtype != torch.float32 and padding is None
    assert used == [name if plain else "_scaled_dot_product_efficient_attention"]

    exact = [tensor.double().requires_grad_() for tensor in inputs]
    expected, expected_entropy = full_attention(exact[0], exact[1], exact[2], visible_by_loop(padding, 9))
    tolerance = 1e-5 if dtype == torch.float32 else 4e-2
    output, entropy = output.as_subclass(Tensor), entropy.as_subclass(Tensor)
    assert output.dtype == dtype
    assert entropy.dtype == torch.float32
    torch.testing.assert_close(output.double(), expected, rtol=0, atol=tolerance)
    torch.testing.assert_close(entropy.double(), expected_entropy, rtol=0, atol=tolerance)
    found = torch.autograd.grad(output.float().square().sum() + entropy.square().sum(), leaves)
    right = torch.autograd.grad(expected.square().sum() + expected_entropy.square().sum(), exact)
    for ours, theirs in zip(found, right, strict=True):
        torch.testing.assert_close(ours.double(), theirs, rtol=0, atol=4 * tolerance)


def random_inputs(shape: tuple[int, ...], scale: float = 1.0, seed: int = 0) -> Inputs:
    """Queries, keys and values [B, H, T, K], in float64; scores are of the order of `scale` times sqrt(K) or so."""
    generator = torch.Generator().manual_seed(seed)
    query, key, value = torch.randn(3, *shape, dtype=torch.float64, generator=generator).unbind()
    return (query * scale).requires_grad_(), key.requires_grad_(), value.requires_grad_()


def full_attention(query: Tensor, key: Tensor, value: Tensor, visible: Tensor) -> tuple[Tensor, Tensor]:
    """Output and entropy in nats from the whole matrix of probabilities; 0 log 0 is 0."""
    scores = query @ key.transpose(-2, -1) / math.sqrt(query.shape[-1])
    probabilities = scores.masked_fill(~visible, float("-inf")).softmax(-1)
    logs = probabilities.clamp(min=torch.finfo(probabilities.dtype).tiny).log()
    return probabilities @ value, -(probabilities * logs).sum(-1)


def visible_by_loop(padding: Tensor | None, length: int) -> Tensor:
    """[B, 1, T, T]: which positions each position sees, entry by entry."""
    rows = [[1] * length] if padding is None else padding.tolist()
    visible = torch.zeros(len(rows), 1, length, length, dtype=torch.bool)
    for row, real in enumerate(rows):
        for query in range(length):
            for key in range(query + 1):
                visible[row, 0, query, key] = bool(real[key]) or key == query
    return visible


@KERNELS
@pytest.mark.parametrize("padding", [None, PADDING], ids=["plain", "padded"])
@pytest.mark.parametrize("scale", [0.1, 3.0], ids=["diffuse", "peaked"])
def test_outputs_entropies_and_gradients_equal_the_full_matrix(
    where: str, padding: Tensor | None, scale: float
) -> None:
    """Gradients flow back through both outputs: attention learns from what it does to the sensitivities."""
    inputs = random_inputs((4, 3, 9, 5), scale)
    query, key, value = moved(inputs, where)
    bias = bias_of(padding)
    output, entropy = causal_attention_with_entropy(query, key, value, None if bias is None else bias.to(value.device))
    output, entropy = output.as_subclass(Tensor).cpu(), entropy.as_subclass(Tensor).cpu()
    expected_output, expected_entropy = full_attention(*inputs, visible_by_loop(padding, 9))
    torch.testing.assert_close(output, expected_output, **CLOSE)
    torch.testing.assert_close(entropy, expected_entropy, **ENTROPY_CLOSE, check_dtype=False)
    torch.testing.assert_close(causal_attention(*inputs, bias), expected_output, **CLOSE)

    for part in ("output", "entropy", "both"):
        generator = torch.Generator().manual_seed(1)
        into_output = torch.randn(output.shape, dtype=torch.float64, generator=generator) * (part != "entropy")
        into_entropy = torch.randn(entropy.shape, dtype=torch.float64, generator=generator) * (part != "output")
        found = torch.autograd.grad(
            (output * into_output).sum() + (entropy * into_entropy).sum(), inputs, retain_graph=True
        )
        expected = torch.autograd.grad(
            (expected_output * into_output).sum() + (expected_entropy * into_entropy).sum(), inputs, retain_graph=True
        )
        for name, ours, theirs in zip(("query", "key", "value"), found, expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=1e-6, msg=f"{part}: {name}")


@KERNELS
def test_gradcheck(where: str) -> None:
    """The argument for leaving terms out of the derivative, held against differences of the function itself."""

    def function(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        outputs = causal_attention_with_entropy(*moved((query, key, value), where), None)
        return tuple(output.as_subclass(Tensor).cpu().double() for output in outputs)

    # The steps are long since the entropy comes in float32.
    assert torch.autograd.gradcheck(function, random_inputs((1, 2, 4, 2)), eps=1e-3, atol=2e-3, rtol=1e-3)


@KERNELS
@pytest.mark.parametrize("padding", [None, PADDING], ids=["plain", "padded"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_lower_precisions_stay_close(where: str, padding: Tensor | None, dtype: torch.dtype) -> None:
    """Scores of ordinary size; an entropy in bfloat16 is as good as keys in bfloat16 allow."""
    exact = random_inputs((4, 4, 9, 8))
    query, key, value = (tensor.detach().to(dtype) for tensor in exact)
    bias = bias_of(padding)
    output, entropy = causal_attention_with_entropy(
        *moved((query, key, value), where), None if bias is None else bias.to("cuda" if where == "cuda" else "cpu")
    )
    expected_output, expected_entropy = full_attention(
        query.double(), key.double(), value.double(), visible_by_loop(padding, 9)
    )
    tolerance = 1e-5 if dtype == torch.float32 else 4e-2
    torch.testing.assert_close(output.as_subclass(Tensor).cpu().double(), expected_output, rtol=0, atol=tolerance)
    torch.testing.assert_close(entropy.as_subclass(Tensor).cpu().double(), expected_entropy, rtol=0, atol=tolerance)
    assert output.dtype == dtype
    assert entropy.dtype == torch.float32

    last, last_entropy = causal_attention_with_entropy(*moved((query[..., -1:, :], key, value), where), None)
    assert last.dtype == dtype
    assert last_entropy.dtype == torch.float32
    if padding is None:  # one query over all keys, its row in float32 whatever the keys are
        torch.testing.assert_close(
            last_entropy.as_subclass(Tensor).cpu().double(), expected_entropy[..., -1:], rtol=0, atol=tolerance / 4
        )


@pytest.mark.parametrize("length", [1, 127, 128, 129, 300])
def test_row_log_sum_exp_equals_the_full_matrix(length: int) -> None:
    """Around the boundary between the pieces it works in, with a bias and without."""
    query, key, _ = random_inputs((2, 2, length, 3), 2.0)
    padding = torch.ones(2, length, dtype=torch.long)
    padding[0, : length // 2] = 0
    scores = query @ key.transpose(-2, -1) / math.sqrt(3)
    for mask in (None, padding):
        found = row_log_sum_exp(query, key, bias_of(mask, length))
        expected = scores.masked_fill(~visible_by_loop(mask, length), float("-inf")).logsumexp(-1)
        torch.testing.assert_close(found.double(), expected.detach(), rtol=1e-6, atol=1e-6)
    assert not found.requires_grad


@KERNELS
@settings(max_examples=40)
@given(length=st.integers(1, 12), scale=st.floats(0, 30), seed=st.integers(0, 1000))
def test_entropy_is_bounded(where: str, length: int, scale: float, seed: int) -> None:
    """0 <= H <= log(t + 1), reached at the first row and by uniform attention."""
    query, key, value = random_inputs((1, 2, length, 4), scale, seed)
    with torch.no_grad():
        _, entropy = causal_attention_with_entropy(*moved((query, key, value), where), None)
        largest = float((query @ key.transpose(-2, -1)).abs().max())
    entropy = entropy.as_subclass(Tensor).cpu().double()
    most = torch.arange(1, length + 1, dtype=torch.float64).log()
    rounding = 1e-6 * (1 + largest)
    assert (entropy >= -rounding).all()
    assert (entropy <= most + rounding).all()
    assert entropy[..., 0].abs().max() <= rounding
    if scale == 0:
        torch.testing.assert_close(entropy, most.expand_as(entropy), **ENTROPY_CLOSE)


@KERNELS
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_large_scores_stay_finite(where: str, dtype: torch.dtype) -> None:
    """Scores of a thousand, both signs: softmax in the kernel, its log-sum-exp, and both gradients."""
    query, key, value = (x.detach().to(dtype).requires_grad_() for x in random_inputs((1, 2, 20, 4), 1e3))
    assert (query @ key.transpose(-2, -1) / 2).abs().max() > 1e3
    output, entropy = causal_attention_with_entropy(*moved((query, key, value), where), None)
    gradients = torch.autograd.grad(output.sum() + entropy.sum(), (query, key, value))
    assert all(tensor.isfinite().all() for tensor in (output, entropy, *gradients))
    _, expected = full_attention(query.double(), key.double(), value.double(), visible_by_loop(None, 20))
    # On CUDA, float32 products of the fused attention are made of three products of 19 bits.
    close = 1e-2 if where == "cuda" else 2e-3
    torch.testing.assert_close(entropy.as_subclass(Tensor).cpu().double(), expected, rtol=0, atol=close)


def test_no_bias_where_nothing_is_padded() -> None:
    """The causal rule alone keeps the kernels on their fast path."""
    assert bias_of(None) is None
    assert bias_of(torch.ones(2, 9, dtype=torch.long)) is None
    assert bias_of(torch.ones(2, 9, dtype=torch.bool)) is None
    one_more = attention_bias(torch.ones(2, 6), queries=1, keys=6, past=5, device=torch.device("cpu"))
    assert one_more is None


@pytest.mark.parametrize("padding", [PADDING, PADDING.bool(), PADDING.double()], ids=["int", "bool", "float"])
def test_bias_for_padding(padding: Tensor) -> None:
    """Zero where a position sees another, -inf where not, and no row without any zero."""
    bias = bias_of(padding)
    assert bias is not None
    visible = visible_by_loop(PADDING, 9)
    assert (bias[visible] == 0).all()
    assert (bias[~visible] == float("-inf")).all()
    assert visible.any(-1).all()


@pytest.mark.parametrize("padding", [None, PADDING], ids=["plain", "padded"])
@pytest.mark.parametrize("spare", [0, 3], ids=["growing", "fixed size"])
@pytest.mark.parametrize("new", [1, 4, 9])
@KERNELS
def test_new_tokens_after_cached_ones_are_the_last_rows(
    where: str, new: int, spare: int, padding: Tensor | None
) -> None:
    """Outputs and entropies of the last queries over all keys, and over a cache with places not yet filled."""
    query, key, value = (x.detach() for x in random_inputs((4, 2, 9, 4)))
    expected, expected_entropy = full_attention(query, key, value, visible_by_loop(padding, 9))
    query, key, value = query[..., 9 - new :, :], *(F.pad(x, (0, 0, 0, spare), value=3.0) for x in (key, value))
    bias = attention_bias(padding, queries=new, keys=9 + spare, past=9 - new, device=torch.device("cpu"))
    query, key, value = moved((query, key, value), where)
    output, entropy = causal_attention_with_entropy(query, key, value, None if bias is None else bias.to(value.device))
    output, entropy = output.as_subclass(Tensor).cpu(), entropy.as_subclass(Tensor).cpu()
    torch.testing.assert_close(output, expected[..., 9 - new :, :], **CLOSE)
    torch.testing.assert_close(entropy, expected_entropy[..., 9 - new :], **ENTROPY_CLOSE, check_dtype=False)
    mixed = causal_attention(query, key, value, None if bias is None else bias.to(value.device))
    torch.testing.assert_close(mixed.as_subclass(Tensor).cpu(), output, **CLOSE)


def test_a_mask_of_four_axes_is_taken_as_it_is() -> None:
    """As `generate` makes it for caches of a fixed size: truth values, or 0 and a large negative number."""
    seen = visible_by_loop(PADDING, 9)[..., 5:, :]
    no_self = seen & ~torch.eye(9, dtype=torch.bool)[5:]
    for mask in (no_self, torch.zeros(no_self.shape).masked_fill(~no_self, torch.finfo(torch.float32).min)):
        bias = attention_bias(mask, queries=4, keys=9, past=5, device=torch.device("cpu"))
        assert bias is not None
        assert torch.equal(bias == 0, seen)


def test_a_mask_that_forgets_the_cached_tokens_is_said() -> None:
    for mask in (torch.tensor([[0, 1]]), torch.tensor([[1, 1]])):
        with pytest.raises(ValueError, match="covers 2 tokens, but the cache holds 5 and 2 are new"):
            attention_bias(mask, queries=2, keys=7, past=5, device=torch.device("cpu"))


def test_padding_is_seen_by_nothing_but_itself() -> None:
    """Its keys and values do not move any other position, and its own row is finite."""
    query, key, value = (x.detach() for x in random_inputs((4, 2, 9, 4)))
    bias = bias_of(PADDING)
    before, entropy = causal_attention_with_entropy(query, key, value, bias)
    pad = (PADDING == 0)[:, None, :, None]
    after, after_entropy = causal_attention_with_entropy(
        query, torch.where(pad, 50 * key + 7, key), torch.where(pad, -50 * value, value), bias
    )
    real = PADDING.bool()[:, None, :].expand(4, 2, 9)
    assert torch.equal(before[real], after[real])
    assert torch.equal(entropy[real], after_entropy[real])
    assert after.isfinite().all()
