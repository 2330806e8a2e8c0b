"""How often a progress bar is drawn."""

import sys

import pytest

from mu_sota.common.bars import seconds_between_drawings


@pytest.mark.parametrize(
    ("terminal", "notebook", "seconds"), [(True, False, 0.5), (False, True, 2), (False, False, 30)]
)
def test_a_log_gets_fewer_bars(monkeypatch: pytest.MonkeyPatch, terminal: bool, notebook: bool, seconds: float) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    if notebook:
        monkeypatch.setitem(sys.modules, "ipykernel", sys)
    assert seconds_between_drawings() == seconds
