"""The padding check."""

from typing import Any

import torch
from planted import TinyLM, results
from torch import Tensor, nn

from mu_sota.leakcheck.checks import check


def test_padding_on_the_right_alone_is_found() -> None:
    class Shifted(TinyLM):
        def forward(self, ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
            mask = torch.ones_like(ids) if attention_mask is None else attention_mask
            return super().forward(ids) + 0.1 * (mask[:, :1] - mask[:, -1:])[..., None]  # 1 if padded on the right

    torch.manual_seed(0)
    model: Any = Shifted(nn.Identity())
    model.before.forward = torch.zeros_like  # each token by itself, so that padding on the left is harmless
    found = results(check(model))["padding"]
    assert found.verdict == "differs"
    assert "of padding on the right" in found.meaning
