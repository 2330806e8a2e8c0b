"""Checkpoints appear complete, the two newest are kept, found among other folders, and verified."""

from pathlib import Path

import pytest

from mu_sota.model.errors import InputError
from mu_sota.training.checkpoint import (
    Damaged,
    Progress,
    find_checkpoints,
    publish,
    read_progress,
    require_usable,
    temporary_folder,
)
from mu_sota.training.running_totals import RunningTotals

OLD_RUN = Path(__file__).parents[1] / "fixtures" / "old_run"
PROGRESS = Progress(RunningTotals(30.5, 5, 20), RunningTotals(10.0, 1, 10), 4.0, (3.5, 7), {"curve": [1]})
BELONGS = {"identity": {"learning_rate": 0.01}, "conditions": {"threads": 2}}


def write(out: Path, step: int, content: str = "weights") -> None:
    """As `Trainer` does, then as `MuTrainer` does."""
    folder = temporary_folder(out, step) / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_text(content)
    (folder / "trainer_state.json").write_text(f'{{"global_step": {step}}}')
    (folder / "training_args.bin").write_text("a pickle")
    publish(out, step, PROGRESS, BELONGS)


def test_the_two_newest_checkpoints_are_kept(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text("rows")
    for step in (9, 10, 11):
        write(tmp_path, step)
    assert find_checkpoints(tmp_path) == [tmp_path / "checkpoint-10", tmp_path / "checkpoint-11"]
    assert {path.name for path in tmp_path.iterdir()} == {"checkpoint-10", "checkpoint-11", "metrics.jsonl"}
    files = {"model.safetensors", "progress.json", "trainer_state.json", "metrics.jsonl", "manifest.json"}
    assert {path.name for path in (tmp_path / "checkpoint-11").iterdir()} == files
    assert (tmp_path / "checkpoint-11" / "metrics.jsonl").read_text() == "rows"
    assert read_progress(tmp_path / "checkpoint-11") == PROGRESS


def test_a_checkpoint_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    write(tmp_path, 5, "old")
    write(tmp_path, 5, "new")
    assert (tmp_path / "checkpoint-5" / "model.safetensors").read_text() == "new"


def test_those_of_later_steps_are_removed_since_a_run_that_goes_on_could_not_use_them(tmp_path: Path) -> None:
    for step in (20, 30, 10):
        write(tmp_path, step)
    assert find_checkpoints(tmp_path) == [tmp_path / "checkpoint-10"]


def test_the_last_of_several_is_that_of_the_last_step(tmp_path: Path) -> None:
    """100 comes after 99, though not in the alphabet."""
    for step in (99, 100):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "progress.json").touch()
    (tmp_path / "checkpoint-200").mkdir()
    assert [path.name for path in find_checkpoints(tmp_path)] == ["checkpoint-99", "checkpoint-100"]


def test_progress_of_an_older_version_can_be_read() -> None:
    progress = read_progress(OLD_RUN / "checkpoint-100")
    assert progress.tally == progress.logged
    assert progress.tally.num_tokens == 29 * 8 * 16, "the 29 steps of its second epoch"
    assert 5 < (progress.first_loss or 0) < 6


def test_a_checkpoint_of_another_run_is_refused_not_passed_over(tmp_path: Path) -> None:
    write(tmp_path, 5)
    with pytest.raises(InputError, match=r"belongs to another run: its learning_rate is 0\.01, and here it is 0\.02"):
        require_usable(tmp_path / "checkpoint-5", {"learning_rate": 0.02}, 10)


def test_a_checkpoint_beyond_the_run_cannot_be_used(tmp_path: Path) -> None:
    write(tmp_path, 500)
    with pytest.raises(Damaged, match="it is of step 500, and the run has 10"):
        require_usable(tmp_path / "checkpoint-500", {}, 10)


def test_a_checkpoint_under_the_name_of_another_step_cannot_be_used(tmp_path: Path) -> None:
    write(tmp_path, 5)
    (tmp_path / "checkpoint-5").rename(tmp_path / "checkpoint-7")
    with pytest.raises(Damaged, match=r"trainer_state\.json says step 5"):
        require_usable(tmp_path / "checkpoint-7", {}, 10)
