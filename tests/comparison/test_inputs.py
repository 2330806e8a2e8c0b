"""Settings and text that do not fit each other are refused before anything is trained."""

from pathlib import Path
from typing import Any

import pytest

from mu_sota.comparison.inputs import load_inputs
from mu_sota.comparison.request import Request
from mu_sota.model.errors import InputError
from mu_sota.settings.load import load_settings

TINY = {"vocab_size": 300, "max_position_embeddings": 16, "window": 16, "stride": 16, "batch_size": 8}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sample_tokens": 30}, "30 more are asked for, but the model has 16 positions"),
        ({"batch_size": 10_000}, "windows, less than a batch of 10000"),
    ],
)
def test_settings_that_do_not_fit_the_text_are_refused_before_training(
    tiny_corpus: Path, changes: dict[str, Any], message: str
) -> None:
    overrides = TINY | changes
    with pytest.raises(InputError, match=message):
        load_inputs(Request(data=str(tiny_corpus)), load_settings("quickstart", overrides=overrides))


def test_several_processes_are_refused(tiny_corpus: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(InputError, match="a comparison runs in one process"):
        load_inputs(Request(data=str(tiny_corpus)), load_settings("quickstart"))
