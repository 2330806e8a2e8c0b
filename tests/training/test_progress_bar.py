"""How often the bar of a run is drawn."""

import sys
from types import SimpleNamespace
from typing import Any

import pytest

from mu_sota.training.progress_bar import ProgressBar


@pytest.mark.parametrize(
    ("terminal", "notebook", "seconds"), [(True, False, 0.5), (False, True, 2), (False, False, 30)]
)
def test_a_log_gets_fewer_bars(monkeypatch: pytest.MonkeyPatch, terminal: bool, notebook: bool, seconds: float) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal, raising=False)
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    if notebook:
        monkeypatch.setitem(sys.modules, "ipykernel", sys)
    trainer: Any = SimpleNamespace(
        is_world_process_zero=lambda: True,
        steps_per_epoch=10,
        settings=SimpleNamespace(batch_size=1, window=1),
    )
    progress = ProgressBar(trainer)
    state: Any = SimpleNamespace(global_step=0, max_steps=10)
    progress.start_epoch(state)
    assert progress.bar is not None
    assert progress.bar.mininterval == seconds
    progress.end_epoch()
