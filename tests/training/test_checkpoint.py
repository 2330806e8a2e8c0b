"""Checkpoints appear complete, one at a time, and are found among other folders."""

from pathlib import Path

from mu_sota.training.checkpoint import Progress, find_checkpoints, publish, read_progress, temporary_folder
from mu_sota.training.running_totals import RunningTotals

OLD_RUN = Path(__file__).parents[1] / "fixtures" / "old_run"
PROGRESS = Progress(RunningTotals(30.5, 5, 20), RunningTotals(10.0, 1, 10), first_loss=4.0)


def write(out: Path, step: int, content: str = "weights") -> None:
    """As `Trainer` does, then as `MuTrainer` does."""
    folder = temporary_folder(out, step) / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_text(content)
    (folder / "training_args.bin").write_text("a pickle")
    publish(out, step, PROGRESS)


def test_the_newest_checkpoint_takes_the_place_of_the_one_before(tmp_path: Path) -> None:
    for step in (9, 10):
        write(tmp_path, step)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint-10"]
    assert find_checkpoints(tmp_path) == [tmp_path / "checkpoint-10"]
    assert {path.name for path in (tmp_path / "checkpoint-10").iterdir()} == {"model.safetensors", "progress.json"}
    assert read_progress(tmp_path / "checkpoint-10") == PROGRESS


def test_a_checkpoint_of_the_same_step_is_replaced(tmp_path: Path) -> None:
    write(tmp_path, 5, "old")
    write(tmp_path, 5, "new")
    assert (tmp_path / "checkpoint-5" / "model.safetensors").read_text() == "new"


def test_the_last_of_several_is_that_of_the_last_step(tmp_path: Path) -> None:
    """A kill can leave the one before; 100 comes after 99, though not in the alphabet."""
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
