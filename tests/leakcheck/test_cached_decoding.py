"""The cache check."""

from typing import Any

import torch
from planted import CLEAN, VOCABULARY, results

from mu_sota.leakcheck.checks import check


def test_generation_config_of_the_model_does_not_disturb_the_cache_check() -> None:
    """Tokens at which it stops, beams, a limit of time or length: all from the checkpoint's generation_config."""
    torch.manual_seed(0)
    model: Any = CLEAN["Llama"]()
    model.generation_config.eos_token_id = list(range(3, VOCABULARY))
    model.generation_config.num_beams = 2
    model.generation_config.max_time = 1e-6
    own = model.generation_config
    report = check(model)
    assert results(report)["cache"].verdict == "ok", report
    assert model.generation_config is own
