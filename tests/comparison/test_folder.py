"""The folder of a comparison: begun once, resumed only by the same comparison, by one process at a time."""

import json
from pathlib import Path
from typing import Any

import pytest

from mu_sota.comparison.folder import ComparisonFolder, recorded_request
from mu_sota.model.errors import InputError

IDENTITY: dict[str, Any] = {
    "format": 3,
    "request": {"questions": ["flops"], "seeds": 3, "data": "texts", "overrides": {"window": 16}},
    "settings": {"window": 16},
    "data_fingerprint": "f",
}


def begun(path: Path, steps: int = 10) -> ComparisonFolder:
    folder = ComparisonFolder(path, IDENTITY, resume=False)
    folder.begin(IDENTITY | {"plan": {"steps": steps}})
    return folder


def test_a_begun_comparison_is_found_again(tmp_path: Path) -> None:
    begun(tmp_path)
    again = ComparisonFolder(tmp_path, IDENTITY, resume=True)
    assert again.start == IDENTITY | {"plan": {"steps": 10}}
    assert recorded_request(tmp_path) == IDENTITY["request"]
    assert recorded_request(tmp_path / "nothing") == {}


def test_a_begun_comparison_is_not_begun_again(tmp_path: Path) -> None:
    begun(tmp_path)
    with pytest.raises(InputError, match="already holds a comparison; add --resume"):
        ComparisonFolder(tmp_path, IDENTITY, resume=False)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"format": 4}, "was started by another version of mu-sota"),
        ({"data_fingerprint": "g"}, "was started on other text or tokens than 'texts' gives now"),
        ({"request": {"questions": ["time"]}}, r"was started with match \['flops'\], not \['time'\]"),
        ({"settings": {"window": 32}}, "was started with window 16, not 32; resume it as it was started"),
    ],
)
def test_another_comparison_is_not_resumed(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    begun(tmp_path)
    other = {key: value | changes.get(key, {}) if isinstance(value, dict) else value for key, value in IDENTITY.items()}
    other |= {key: value for key, value in changes.items() if not isinstance(value, dict)}
    with pytest.raises(InputError, match=message):
        ComparisonFolder(tmp_path, other, resume=True)


def test_other_overrides_with_the_same_settings_are_resumed(tmp_path: Path) -> None:
    begun(tmp_path)
    same = IDENTITY | {"request": IDENTITY["request"] | {"overrides": {}}}
    assert ComparisonFolder(tmp_path, same, resume=True).start


def test_files_of_another_plan_are_refused(tmp_path: Path) -> None:
    folder = begun(tmp_path / "one")
    file = folder.training("mu", "seed-0") / "training.json"
    folder.write(file, {"loss": 1.0})
    assert folder.read(file) == {"loss": 1.0}
    with pytest.raises(InputError, match=r"training\.json belongs to another comparison"):
        begun(tmp_path / "other", steps=11).read(file)


def test_training_runs_without_a_plan_are_refused(tmp_path: Path) -> None:
    (tmp_path / "trainings").mkdir()
    with pytest.raises(InputError, match=r"holds trainings of a comparison, but not its plan\.json; give another"):
        ComparisonFolder(tmp_path, IDENTITY, resume=True)


def test_a_file_instead_of_a_folder_and_a_damaged_file_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(InputError, match="which is a file; give a folder"):
        ComparisonFolder(file, IDENTITY, resume=False)
    folder = begun(tmp_path / "out")
    (folder.path / "references.json").write_text("{", encoding="utf-8")
    with pytest.raises(InputError, match=r"references\.json is damaged .*; remove it"):
        folder.read(folder.path / "references.json")


def test_two_processes_in_one_folder_are_refused(tmp_path: Path) -> None:
    folder = begun(tmp_path)
    with folder.locked(), pytest.raises(InputError, match=r"is at work \(process \d+ on "), folder.locked():
        pass
    with folder.locked():
        assert (tmp_path / ".lock").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"plan.json", ".lock"}


def test_plan_json_is_written_only_when_it_changes(tmp_path: Path) -> None:
    folder = begun(tmp_path)
    written = (tmp_path / "plan.json").stat().st_mtime_ns
    folder.begin(json.loads(json.dumps(folder.start)))
    assert (tmp_path / "plan.json").stat().st_mtime_ns == written
