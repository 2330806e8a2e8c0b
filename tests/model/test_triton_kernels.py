"""The kernels for GPUs: what they compute, in Triton's interpreter on a CPU, and that they build for GPUs.

The interpreter runs a kernel's Python with NumPy. It knows no products of bfloat16, so those are built here, and
computed where there is a GPU.

Legend: B batch, H heads, T time, K size of a head.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from mu_sota.model import backend, gpu
from mu_sota.model.loss import IGNORE_INDEX, chunked_cross_entropy

pytest.importorskip("triton")

CLOSE = {torch.float32: 1e-5, torch.float16: 5e-3}


@pytest.fixture
def interpreted() -> Any:
    """The kernels on the CPU; see `TRITON_INTERPRET` in conftest.py."""
    if torch.cuda.is_available():
        pytest.skip("where there is a GPU, the kernels are compiled for it")
    pytest.importorskip("triton", minversion="3.7.1", reason="older interpreters fail with NumPy 2.4")
    from mu_sota.model import triton_kernels

    return triton_kernels


def full_attention(qkv: Tensor) -> tuple[Tensor, Tensor]:
    """Outputs [B, T, H, K] and entropies in nats [B, H, T] from whole matrices of probabilities."""
    query, key, value = qkv.permute(2, 0, 3, 1, 4)
    length = query.shape[-2]
    scores = query @ key.transpose(-2, -1) / query.shape[-1] ** 0.5
    seen = torch.ones(length, length, dtype=torch.bool).tril()
    weights = scores.masked_fill(~seen, float("-inf")).softmax(-1)
    entropy = -(weights * weights.clamp(min=torch.finfo(weights.dtype).tiny).log()).sum(-1)
    return (weights @ value).transpose(1, 2), entropy


def assert_attention_is_exact(kernels: Any, qkv: Tensor, tolerance: float, seed: int = 0) -> None:
    """Outputs, entropies and gradients through both against full matrices in float64."""
    generator = torch.Generator().manual_seed(seed)
    exact = qkv.detach().cpu().double().requires_grad_()
    expected, expected_entropy = full_attention(exact)
    grad_output = torch.randn(expected.shape, generator=generator).to(qkv)
    grad_entropy = torch.randn(expected_entropy.shape, generator=generator).to(qkv.device)
    (expected_grad,) = torch.autograd.grad(
        (expected * grad_output.cpu().double()).sum() + (expected_entropy * grad_entropy.cpu().double()).sum(), exact
    )
    output, entropy, log_sum = kernels.attention(qkv)
    grad = kernels.attention_backward(grad_output, grad_entropy, qkv, output, entropy, log_sum)
    assert output.dtype == grad.dtype == qkv.dtype
    assert entropy.dtype == torch.float32
    pairs = {"output": (output, expected), "entropy": (entropy, expected_entropy), "gradient": (grad, expected_grad)}
    for name, (found, right) in pairs.items():
        assert found.shape == right.shape, name
        error = (found.cpu().double() - right).abs().max()
        assert error <= tolerance * right.abs().max().clamp(min=1), f"{name} is off by {error}"


@pytest.mark.parametrize("dtype", CLOSE, ids=str)
@pytest.mark.parametrize(
    ("batch", "length", "heads", "size"),
    [(2, 70, 3, 4), (1, 1, 2, 8), (1, 129, 1, 16), (2, 65, 2, 3), (1, 64, 2, 2), (1, 63, 1, 1), (3, 17, 5, 7)],
)
def test_attention_equals_full_matrices(
    interpreted: Any, batch: int, length: int, heads: int, size: int, dtype: torch.dtype
) -> None:
    """Around the edges of tiles, with sizes of heads that fill none."""
    generator = torch.Generator().manual_seed(length)
    qkv = torch.randn(batch, length, 3, heads, size, generator=generator).to(dtype)
    assert_attention_is_exact(interpreted, qkv, CLOSE[dtype])


@settings(max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    length=st.integers(1, 140), size=st.integers(1, 16), scale=st.sampled_from([0.0, 1.0, 5.0]), seed=st.integers(0, 99)
)
def test_attention_of_any_shape(interpreted: Any, length: int, size: int, scale: float, seed: int) -> None:
    """Uniform rows, ordinary ones, and rows so sure that weights vanish."""
    qkv = torch.randn(1, length, 3, 2, size, generator=torch.Generator().manual_seed(seed))
    qkv[:, :, 0] *= scale
    assert_attention_is_exact(interpreted, qkv, 1e-4, seed)


def test_scores_of_a_thousand_stay_finite(interpreted: Any) -> None:
    """The entropy is then of numbers relative to the largest score, and keeps its digits."""
    qkv = torch.randn(1, 70, 3, 2, 4, generator=torch.Generator().manual_seed(0))
    qkv[:, :, 0] *= 1e3
    output, entropy, log_sum = interpreted.attention(qkv)
    grad = interpreted.attention_backward(torch.ones_like(output), entropy * 0 + 1, qkv, output, entropy, log_sum)
    assert all(tensor.isfinite().all() for tensor in (output, entropy, log_sum, grad))
    torch.testing.assert_close(entropy.double(), full_attention(qkv.double())[1], rtol=0, atol=1e-4)


def test_future_keys_and_values_change_nothing(interpreted: Any) -> None:
    """Nor does the gradient of a position reach what comes after it."""
    qkv = torch.randn(1, 80, 3, 2, 4, generator=torch.Generator().manual_seed(0))
    changed = qkv.clone()
    changed[:, 40:] = 100 * torch.randn(1, 40, 3, 2, 4, generator=torch.Generator().manual_seed(1))
    before, after = interpreted.attention(qkv), interpreted.attention(changed)
    assert torch.equal(before[0][:, :40], after[0][:, :40])
    assert torch.equal(before[1][..., :40], after[1][..., :40])
    into = torch.zeros_like(before[0])
    into[:, 39] = 1
    grad = interpreted.attention_backward(into, torch.zeros_like(before[1]), qkv, *before)
    assert grad[:, :40].any()
    assert not grad[:, 40:].any()


def test_nothing_in_nothing_out(interpreted: Any) -> None:
    output, entropy, log_sum = interpreted.attention(torch.empty(0, 5, 3, 2, 4))
    assert output.shape == (0, 5, 2, 4)
    assert interpreted.attention_backward(output, entropy, torch.empty(0, 5, 3, 2, 4), output, entropy, log_sum).shape


@pytest.mark.parametrize("vocabulary", [3, 4096, 5000])
def test_cross_entropy_of_rows(interpreted: Any, vocabulary: int) -> None:
    """Loss, right predictions and the gradient that takes the logits' place; a label outside is no number."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(6, vocabulary, generator=generator)
    labels = torch.tensor([2, IGNORE_INDEX, vocabulary - 1, 0, int(logits[4].argmax()), 1])
    exact = logits.double().requires_grad_()
    expected = F.cross_entropy(exact, labels, reduction="sum", ignore_index=IGNORE_INDEX)
    (grad,) = torch.autograd.grad(expected, exact)
    kept = logits.clone()
    loss, right = interpreted.cross_entropy_of_rows(logits, labels, gradient=False)
    assert torch.equal(logits, kept)
    torch.testing.assert_close(loss.double(), expected.detach(), rtol=1e-6, atol=1e-6)
    assert right == ((kept.argmax(-1) == labels) & (labels >= 0)).sum()
    interpreted.cross_entropy_of_rows(logits, labels, gradient=True)
    torch.testing.assert_close(logits.double(), grad, rtol=1e-5, atol=1e-7)
    strided = torch.stack([labels, labels + 1], dim=1)[:, 0]
    torch.testing.assert_close(interpreted.cross_entropy_of_rows(kept, strided, gradient=False)[0], loss)
    labels[0] = vocabulary
    assert not interpreted.cross_entropy_of_rows(kept, labels, gradient=False)[0].isfinite()


def test_the_chunked_loss_uses_it(interpreted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a last chunk that is smaller, and scaled by what comes back from above."""
    generator = torch.Generator().manual_seed(0)
    tensors = [torch.randn(*shape, generator=generator).requires_grad_() for shape in ((300, 6), (50, 6), (50,))]
    labels = torch.randint(50, (300,), generator=generator)
    labels[::7] = IGNORE_INDEX

    def run() -> list[Tensor]:
        loss, correct = chunked_cross_entropy(tensors[0], tensors[1], tensors[2], labels)
        return [loss, correct, *torch.autograd.grad(loss * 0.37, tensors)]

    expected = run()
    chunks: list[Tensor] = []
    monkeypatch.setattr("mu_sota.model.loss.use_kernel_for_rows_of_logits", lambda _: True)
    monkeypatch.setattr("mu_sota.model.loss.use_cross_entropy_kernel", lambda _: False)
    monkeypatch.setattr("mu_sota.model.loss._MULTIPLE", {"cpu": 64})  # with entries that are added
    kernel = interpreted.cross_entropy_of_rows

    def noting(logits: Tensor, *others: Any) -> Any:
        chunks.append(logits)
        return kernel(logits, *others)

    monkeypatch.setattr(interpreted, "cross_entropy_of_rows", noting)
    for ours, theirs in zip(run(), expected, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)
    assert [len(chunk) for chunk in chunks] == [128, 128, 44]


def test_the_operators_have_them_for_cuda() -> None:
    """Attention and its gradient are the operators of the CPU's kernels, and so in their autograd and in `compile`."""
    for name in ("attention", "attention_backward"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"mu_sota::{name}", "CUDA")


# The check at first use


@pytest.fixture
def on_a_gpu(monkeypatch: pytest.MonkeyPatch, interpreted: Any) -> Iterator[Callable[[], bool]]:
    """Asks for the kernels of a GPU of this century, whose check runs on the CPU."""
    check = gpu.difference
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda _: (9, 0))
    monkeypatch.setattr(gpu, "difference", lambda _, dtype: check(torch.device("cpu"), dtype))
    gpu.gpu_kernels_work.cache_clear()
    yield lambda: gpu.gpu_kernels_work(0, torch.float32)
    gpu.gpu_kernels_work.cache_clear()


def test_right_kernels_pass_the_check(on_a_gpu: Callable[[], bool], caplog: pytest.LogCaptureFixture) -> None:
    """Quietly, and without a random number drawn."""
    before = torch.get_rng_state()
    assert on_a_gpu()
    assert torch.equal(torch.get_rng_state(), before)
    assert not caplog.records


@pytest.mark.parametrize(
    ("name", "what"),
    [("attention", "attention is off"), ("attention_backward", "gradient is off"), ("cross_entropy_of_rows", "cross-")],
)
def test_a_kernel_that_computes_something_else_is_left_out(
    on_a_gpu: Callable[[], bool],
    interpreted: Any,
    name: str,
    what: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One warning says what differs, and no second one comes."""
    right = getattr(interpreted, name)

    def wrong(*arguments: Any, **named: Any) -> Any:
        result = right(*arguments, **named)
        first, *others = result if isinstance(result, tuple) else (result,)
        first = first * 1.01
        return (first, *others) if others else first

    monkeypatch.setattr(interpreted, name, wrong)
    monkeypatch.setattr("mu_sota.model.gpu.logger.parent.propagate", True)
    assert not on_a_gpu()
    assert not on_a_gpu()
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.startswith("the kernels for GPUs are left out")
    assert what in message


def test_a_kernel_that_does_not_build_is_left_out(
    on_a_gpu: Callable[[], bool],
    interpreted: Any,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def broken(_: Tensor) -> None:
        raise RuntimeError("ptxas died\n  of boredom")

    monkeypatch.setattr(interpreted, "attention", broken)
    monkeypatch.setattr("mu_sota.model.gpu.logger.parent.propagate", True)
    assert not on_a_gpu()
    (message,) = [record.getMessage() for record in caplog.records]
    assert message.endswith("they do not run: ptxas died of boredom")


@pytest.mark.parametrize("why", ["switched off", "old"])
def test_no_kernels_where_they_are_not_wanted(
    on_a_gpu: Callable[[], bool], why: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """By MU_SOTA_KERNELS=0, or on a T4, which Triton gives no matrix units; nothing is said."""
    if why == "old":
        monkeypatch.setattr("torch.cuda.get_device_capability", lambda _: (7, 5))
    else:
        monkeypatch.setenv("MU_SOTA_KERNELS", "0")
    assert not on_a_gpu()
    assert not caplog.records


def test_only_for_half_and_single_precision_on_cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """And heads of up to 16 values; within `plain_pytorch`, for nothing."""

    class OnCuda:
        device = torch.device("cuda", 0)

        def __init__(self, dtype: torch.dtype) -> None:
            self.dtype = dtype

    monkeypatch.setattr(backend, "gpu_kernels_work", lambda index, dtype: True)
    take: Any = backend.gpu_kernels_take
    assert all(take(OnCuda(dtype), 16) for dtype in (torch.float32, torch.bfloat16, torch.float16))
    assert not take(OnCuda(torch.float64), 16)
    assert not take(OnCuda(torch.bfloat16), 17)
    assert not take(torch.zeros(1), 16)
    with backend.plain_pytorch():
        assert not take(OnCuda(torch.bfloat16), 16)


# Building


@pytest.mark.parametrize(("capability", "dtype"), [(80, "bf16"), (90, "bf16"), (90, "fp16"), (90, "fp32")])
def test_they_build(capability: int, dtype: str, tmp_path: Path) -> None:
    """To machine code, with products on the matrix units in half precision."""
    script = Path(__file__).parents[1] / "build_kernels.py"
    environment = {**os.environ, "TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    command = [sys.executable, str(script), str(capability), dtype]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    built = [line.split() for line in done.stdout.splitlines()]
    assert len(built) == 5
    assert {name: units for name, units in built if "attention" in name} == dict.fromkeys(
        ("_attention_forward", "_attention_backward_queries", "_attention_backward_keys"), str(dtype != "fp32")
    )


@pytest.mark.cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("size", [2, 4, 8, 16])
def test_on_a_gpu(dtype: torch.dtype, size: int) -> None:
    """As in the interpreter; and it is used."""
    from mu_sota.model import triton_kernels

    if torch.cuda.get_device_capability() < gpu.LEAST_CAPABILITY:
        pytest.skip("no kernels for this GPU")
    assert gpu.gpu_kernels_work(0, dtype)
    for length in (1, 65, 512):
        generator = torch.Generator().manual_seed(length)
        qkv = torch.randn(2, length, 3, 5, size, generator=generator).to("cuda", dtype)
        assert_attention_is_exact(triton_kernels, qkv, {torch.bfloat16: 4e-2}.get(dtype, CLOSE.get(dtype, 0)))
