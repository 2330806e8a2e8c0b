"""Hooks are removed again, also those registered before an error; compiled modules call them."""

from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from mu_sota.common.hooks import attached, without_compilation


def test_hooks_are_called_inside_and_removed_afterwards() -> None:
    modules, calls = [nn.Identity() for _ in range(3)], list[nn.Module]()
    with attached(module.register_forward_hook(lambda module, *_: calls.append(module)) for module in modules):
        nn.Sequential(*modules)(torch.zeros(1))
    nn.Sequential(*modules)(torch.zeros(1))
    assert calls == modules


def test_hooks_registered_before_an_error_are_removed() -> None:
    module = nn.Identity()

    def handles() -> Iterator[RemovableHandle]:
        yield module.register_forward_hook(lambda *_: None)
        raise RuntimeError("this module takes no hooks")

    with pytest.raises(RuntimeError, match="takes no hooks"), attached(handles()):
        pass
    assert not module._forward_hooks


def test_hooks_in_a_compiled_module_are_called() -> None:
    inner, calls = nn.Identity(), list[int]()
    compiled = torch.compile(nn.Sequential(inner), backend="eager")
    compiled(torch.zeros(1))
    with without_compilation(), attached([inner.register_forward_hook(lambda *_: calls.append(1))]):
        compiled(torch.zeros(1))
    assert calls == [1]
