"""What a run says of the machine before it trains."""

import pytest
import torch

from mu_sota.training import heading


@pytest.mark.parametrize(
    ("device", "precision", "on_gpu", "said"),
    [
        ("cuda", "bf16", True, ", kernels for GPUs"),
        ("cuda:1", "fp16", False, ", PyTorch's kernels"),  # a T4
        ("mps", "fp32", True, ""),
        ("cpu", "bf16", False, ", PyTorch's kernels (those of mu-sota, several times as fast, are for fp32)"),
    ],
)
def test_the_kernels_are_named(
    device: str, precision: str, on_gpu: bool, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, torch.dtype]] = []

    def work(index: int, dtype: torch.dtype) -> bool:
        asked.append((index, dtype))
        return on_gpu

    monkeypatch.setattr(heading, "gpu_kernels_work", work)
    assert heading._kernels(torch.device(device), precision) == said
    half = {"bf16": torch.bfloat16, "fp16": torch.float16}
    assert asked == ([(torch.device(device).index or 0, half[precision])] if "cuda" in device else [])
