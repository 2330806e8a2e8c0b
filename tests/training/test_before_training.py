"""What is checked before a run writes anything, and the model that comes out of it."""

import random

import pytest
import torch
from transformers import set_seed

from mu_sota import MuConfig, MuForCausalLM
from mu_sota.model.errors import InputError
from mu_sota.training.before_training import build_causal_model, check_trackers, choose_precision


def test_the_leak_check_leaves_model_and_random_state_as_if_it_had_not_been() -> None:
    """The checked model is the one that is trained, so its losses must be those of an unchecked one."""
    config = MuConfig(vocab_size=50, num_hidden_layers=2, max_position_embeddings=32)
    checked, report = build_causal_model(config, 7, torch.device("cpu"))
    numbers = torch.rand(3).tolist(), random.random()
    assert report.clean
    set_seed(7)
    fresh = MuForCausalLM(config)
    assert numbers == (torch.rand(3).tolist(), random.random())
    theirs = dict(fresh.state_dict()) | dict(fresh.named_buffers())
    for name, value in (dict(checked.state_dict()) | dict(checked.named_buffers())).items():
        assert torch.equal(value, theirs[name]), name
    assert all(parameter.grad is None and parameter.requires_grad for parameter in checked.parameters())
    assert all(module.training for module in checked.modules())


def test_a_tracker_that_cannot_be_used_is_named() -> None:
    with pytest.raises(InputError, match="the tracker 'foo' cannot be used"):
        check_trackers(["foo"])


def test_precision() -> None:
    if torch.cuda.is_available():
        assert choose_precision("auto") in ("bf16", "fp16")
    else:
        assert choose_precision("auto") == "fp32"
        with pytest.raises(InputError, match="fp16"):
            choose_precision("fp16")
    assert choose_precision("bf16") == "bf16"
