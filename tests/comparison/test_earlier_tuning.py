"""Settings that an earlier comparison chose: read from its record, and refused where they are not there."""

import json
from pathlib import Path

import pytest
from made_up_comparison import comparison

from mu_sota.comparison.earlier_tuning import read_earlier_tuning
from mu_sota.comparison.hyperparameter_search import Trial
from mu_sota.model.errors import InputError


@pytest.fixture
def record(tmp_path: Path) -> Path:
    file = tmp_path / "comparison.json"
    file.write_text(json.dumps(comparison()), encoding="utf-8")
    return file


def test_the_choice_for_each_model_is_read_from_a_record_or_its_folder(record: Path) -> None:
    made = json.loads(record.read_text(encoding="utf-8"))
    tuning = read_earlier_tuning(record)
    assert tuning == read_earlier_tuning(record.parent)
    assert tuning.steps == made["steps"]
    chosen = {one["name"]: one["chosen"] for one in made["arms"] if one["control_of"] is None}
    assert {name: trial._asdict() for name, trial in tuning.trials.items()} == chosen
    assert all(isinstance(trial, Trial) for trial in tuning.trials.values())
    assert not any("control" in name for name in tuning.trials)


def test_models_that_it_did_not_choose_for_are_named(record: Path) -> None:
    tuning = read_earlier_tuning(record)
    tuning.require(list(tuning.trials))
    with pytest.raises(InputError, match=r"chose for mu, .*, not for other-time; give"):
        tuning.require(["mu", "other-time"])


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", "\x00", '{"command": 1}', '{"arms": [{"name": "mu"}], "steps": 1, "command": "", "preset": ""}'],
)
def test_what_is_no_record_is_refused_in_a_sentence(tmp_path: Path, content: str) -> None:
    file = tmp_path / "comparison.json"
    file.write_text(content, encoding="utf-8")
    with pytest.raises(InputError, match=r"cannot be read as the record of a comparison \(.+\); give --tuned-in a"):
        read_earlier_tuning(tmp_path)


def test_settings_out_of_their_range_are_refused(record: Path) -> None:
    made = json.loads(record.read_text(encoding="utf-8"))
    made["arms"][0]["chosen"]["learning_rate"] = "fast"
    record.write_text(json.dumps(made), encoding="utf-8")
    with pytest.raises(InputError, match="learning_rate"):
        read_earlier_tuning(record)
