"""What a run survives beside a kill: damaged files, a second process, other conditions, bad numbers; and going on."""

import json
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_runs import KILL, command, losses, rows, run

from mu_sota import MuForCausalLM, cli
from mu_sota.common.files import checksum, read_sealed, write_sealed
from mu_sota.common.locks import alone
from mu_sota.model.errors import InputError
from mu_sota.training import trainer
from mu_sota.training.checkpoint import Damaged, find_checkpoints, require_usable
from mu_sota.training.divergence import DivergedError
from mu_sota.training.lr_schedule import one_cycle

Damage = Callable[[Path], object]


def flip_a_bit(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def make_a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


DAMAGES: dict[str, Damage] = {
    "removed": Path.unlink,
    "emptied": lambda file: file.write_bytes(b""),
    "halved": lambda file: file.write_bytes(file.read_bytes()[: file.stat().st_size // 2]),
    "one bit flipped": flip_a_bit,
    "zeros": lambda file: file.write_bytes(bytes(file.stat().st_size)),
    "longer": lambda file: file.write_bytes(file.read_bytes() + b"1"),
    "a folder": make_a_folder,
}


@pytest.fixture(scope="module")
def killed(tmp_path_factory: pytest.TempPathFactory, make_corpus: Callable[[Path], Path]) -> Any:
    """A run killed at step 17 of 42, its corpus, and the rows of one that was not killed."""
    base = tmp_path_factory.mktemp("killed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MU_SOTA_CACHE", str(base / "cache"))
        corpus = make_corpus(base)
        run(corpus, base / "whole", num_epochs=1)
        arguments = command(corpus, base / "out", num_epochs=1, checkpoint_minutes=0.0001)
        done = subprocess.run(
            [sys.executable, "-c", KILL, "in a step", "17", *arguments], capture_output=True, check=False
        )
        assert done.returncode == -signal.SIGKILL
        assert [folder.name for folder in find_checkpoints(base / "out")] == ["checkpoint-16", "checkpoint-17"]
        yield base / "out", corpus, rows(base / "whole")


@pytest.fixture
def out(killed: Any, tmp_path: Path) -> Path:
    """A copy of the killed run."""
    shutil.copytree(killed[0], tmp_path / "out")
    return tmp_path / "out"


def go_on(killed: Any, out: Path, **changes: Any) -> None:
    run(killed[1], out, resume=True, **{"num_epochs": 1} | changes)


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damage_to_any_file_of_a_checkpoint_is_found_and_named(out: Path, damage: Damage) -> None:
    checkpoint = find_checkpoints(out)[-1]
    require_usable(checkpoint, {}, 42)
    files = sorted(checkpoint.iterdir())
    assert len(files) == 10
    for file in files:
        shutil.copytree(checkpoint, spare := out / "spare" / checkpoint.name)
        damage(spare / file.name)
        with pytest.raises(Damaged, match=rf"{file.name} (is missing|cannot be read|holds other bytes)"):
            require_usable(spare, {}, 42)
        shutil.rmtree(spare)


@pytest.mark.parametrize("name", ["model.safetensors", "manifest.json"])
def test_a_run_goes_on_from_the_checkpoint_before_a_damaged_one(
    killed: Any, out: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """To the same losses: what was done since is done again."""
    flip_a_bit(out / "checkpoint-17" / name)
    go_on(killed, out)
    printed = capsys.readouterr().out
    assert f"checkpoint-17 cannot be used ({name}" in printed
    assert "going on from checkpoint-16" in printed
    assert "Going on after step 16 of 42" in printed
    assert rows(out) == killed[2]


def test_a_run_whose_checkpoints_are_all_damaged_begins_at_its_start(
    killed: Any, out: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for checkpoint in find_checkpoints(out):
        (checkpoint / "optimizer.pt").unlink()
    go_on(killed, out)
    assert "going on from the start of the run" in capsys.readouterr().out
    assert rows(out) == killed[2]
    assert [folder.name for folder in find_checkpoints(out)] == ["checkpoint-42"], "what is damaged is gone"


def reseal(checkpoint: Path, name: str) -> None:
    """As if the file had been written so."""
    manifest = read_sealed(checkpoint / "manifest.json")
    manifest["checksums"][name] = checksum(checkpoint / name)
    write_sealed(checkpoint / "manifest.json", manifest)


def test_a_number_that_is_not_finite_is_found_in_weights_and_optimizer(out: Path) -> None:
    checkpoint = find_checkpoints(out)[-1]
    weights = load_file(checkpoint / "model.safetensors")
    good = (checkpoint / "model.safetensors").read_bytes()
    weights["lm_head.bias"][3] = float("nan")
    save_file(weights, checkpoint / "model.safetensors", {"format": "pt"})
    reseal(checkpoint, "model.safetensors")
    with pytest.raises(Damaged, match=r"the weight lm_head\.bias holds a number that is not finite"):
        require_usable(checkpoint, {}, 42)
    (checkpoint / "model.safetensors").write_bytes(good)
    reseal(checkpoint, "model.safetensors")
    moments = torch.load(checkpoint / "optimizer.pt", weights_only=True)
    moments["state"][0]["exp_avg_sq"][0] = float("inf")
    torch.save(moments, checkpoint / "optimizer.pt")
    reseal(checkpoint, "optimizer.pt")
    with pytest.raises(Damaged, match=r"the optimizer's 0\.exp_avg_sq holds a number that is not finite"):
        require_usable(checkpoint, {}, 42)


def test_a_checkpoint_of_an_earlier_run_in_the_folder_is_not_adopted(killed: Any, out: Path, tmp_path: Path) -> None:
    run(killed[1], tmp_path / "other", num_epochs=1, max_steps=20, learning_rate=0.02)
    shutil.copytree(tmp_path / "other" / "checkpoint-20", out / "checkpoint-20")
    with pytest.raises(InputError, match=r"checkpoint-20 belongs to another run: its learning_rate is 0\.02"):
        go_on(killed, out)


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("left", ["checkpoint-17", "metrics.jsonl"])
def test_what_is_left_of_a_run_without_its_record_is_refused(
    killed: Any, out: Path, tmp_path: Path, resume: bool, left: str
) -> None:
    (tmp_path / "new").mkdir()
    (out / left).rename(tmp_path / "new" / left)
    with pytest.raises(InputError, match=rf"holds {left}.* of a run, but not its run\.json"):
        run(killed[1], tmp_path / "new", resume=resume, learning_rate=0.5)
    assert [path.name for path in (tmp_path / "new").iterdir() if path.name[0] != "."] == [left]


def test_a_second_process_is_told_who_is_at_work(killed: Any, out: Path) -> None:
    with alone(out / ".lock", pytest.fail), pytest.raises(InputError, match=r"is at work \(process \d+ on .*, since "):
        go_on(killed, out)


def test_the_lock_of_a_dead_process_is_taken_over(killed: Any, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The kill has left its file, and the name of the dead process."""
    assert (out / ".lock").exists()
    assert (out / ".lock.json").exists()
    go_on(killed, out)
    assert not (out / ".lock.json").exists()
    assert "Other than before" not in capsys.readouterr().out


def test_other_conditions_than_before_are_said(killed: Any, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    go_on(killed, out, micro_batch_size=3)
    line = "micro_batch_size 3, not 8. So losses may differ in their last digits, and dropout draws other masks."
    assert line in capsys.readouterr().out


def test_other_threads_and_kernels_are_said(
    killed: Any, out: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    described = trainer.conditions

    def elsewhere(*arguments: Any) -> dict[str, Any]:
        return described(*arguments) | {"threads": 64, "torch": "9.0"}

    monkeypatch.setattr(trainer, "conditions", elsewhere)
    go_on(killed, out)
    assert "Other than before: torch 9.0, not 2" in (printed := capsys.readouterr().out)
    assert "; threads 64, not 1. So losses may differ in their last digits.\n" in printed


def test_a_record_that_was_cut_is_said_and_put_back(killed: Any, out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    DAMAGES["halved"](out / "metrics.jsonl")
    go_on(killed, out)
    assert "put back from checkpoint-17" in capsys.readouterr().out
    assert rows(out) == killed[2]


def test_a_setting_that_may_be_another_is_applied(killed: Any, out: Path) -> None:
    go_on(killed, out, log_steps=5)
    assert [row["step"] for row in rows(out) if row["kind"] == "step"] == [*range(1, 18), 20, 25, 30, 35, 40]


@pytest.mark.parametrize("schedule", ["cycle", "constant"])
def test_a_finished_run_is_made_longer(
    killed: Any, out: Path, schedule: str, capsys: pytest.CaptureFixture[str]
) -> None:
    go_on(killed, out)
    first = rows(out)
    go_on(killed, out, num_epochs=2, schedule=schedule)
    assert f"The run is made longer: 84 steps, not 42; a {schedule} for the rest." in capsys.readouterr().out
    assert rows(out)[: len(first)] == first
    record = json.loads((out / "run.json").read_text())
    assert record["schedule"] == [{"end": 42, "shape": "cycle"}, {"end": 84, "shape": schedule}]
    assert len(record["earlier_results"]) == 1
    rates = [row["learning_rate"] for row in rows(out) if row["kind"] == "step"]
    assert rates[:42] == [one_cycle(step, 42, 0.01, 20) for step in range(42)]
    assert (rates[42:] == rates[:42]) == (schedule == "cycle")
    with pytest.raises(InputError, match="cannot be made shorter: 42 are asked for"):
        go_on(killed, out)


def test_a_run_made_longer_ends_the_same_when_it_is_killed_within(
    killed: Any, out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    go_on(killed, out)
    shutil.copytree(out, tmp_path / "again")
    go_on(killed, out, num_epochs=2)
    arguments = command(killed[1], tmp_path / "again", "--resume", num_epochs=2, checkpoint_minutes=0.0001)
    subprocess.run([sys.executable, "-c", KILL, "in a step", "60", *arguments], capture_output=True, check=False)
    assert find_checkpoints(tmp_path / "again")[-1].name == "checkpoint-60"
    go_on(killed, tmp_path / "again", num_epochs=2)
    assert rows(tmp_path / "again") == rows(out)


def spoil(monkeypatch: pytest.MonkeyPatch, steps: range, spoiled: Callable[[Any, Any], Any]) -> None:
    """Change the loss of some steps, counted from 0."""
    original = MuForCausalLM.forward

    def forward(self: Any, *arguments: Any, **named: Any) -> Any:
        output = original(self, *arguments, **named)
        if self.training and output.loss is not None and _step[0] in steps:
            output.loss = spoiled(self, output.loss)
        return output

    _step = [0]
    judge = trainer.MuTrainer.judge_step

    def counted(self: Any) -> None:
        judge(self)
        _step[0] = self.state.global_step + 1

    monkeypatch.setattr(MuForCausalLM, "forward", forward)
    monkeypatch.setattr(trainer.MuTrainer, "judge_step", counted)


def test_a_loss_that_is_not_finite_stops_the_run_before_it_changes_a_weight(
    tiny_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, range(6, 7), lambda _, loss: loss * float("nan"))
    with pytest.raises(DivergedError, match="the loss became nan at step 7") as error:
        run(tiny_corpus, tmp_path / "out", log_steps=40)
    assert "go on with --resume --set bad_steps=skip" in str(error.value)


def test_the_first_module_with_a_value_that_is_not_finite_is_named(
    tiny_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def poisoned(self: Any, *arguments: Any) -> Any:
        if self.state.global_step == 6:
            self.model.model.layers[1].feed_forward.up.weight.data[0, 0] = float("inf")
        return original(self, *arguments)

    original = trainer.MuTrainer.training_step
    monkeypatch.setattr(trainer.MuTrainer, "training_step", poisoned)
    with pytest.raises(DivergedError, match=r"at step 7 \(the first value .* the weight model\.layers\.1\.feed_for"):
        run(tiny_corpus, tmp_path / "out", log_steps=40)


def test_a_bad_batch_is_left_out_where_a_setting_says_so(
    tiny_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(monkeypatch, range(6, 8), lambda _, loss: loss * float("nan"))
    run(tiny_corpus, tmp_path / "out", num_epochs=1, bad_steps="skip")
    printed = capsys.readouterr().out
    assert "Step 7: the first value that is not finite is" in printed
    assert "[ok] 42 of 42 steps done" in printed
    left_out = [row["step"] for row in rows(tmp_path / "out") if row["kind"] == "unusual" and row["skipped"]]
    assert left_out == [7, 8]
    epoch = rows(tmp_path / "out")[-1]
    assert epoch["train"]["loss"] < 4, "the totals are of the other batches"


def test_a_spike_of_the_loss_is_said_and_left_out_where_a_setting_says_so(
    tiny_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(monkeypatch, range(30, 31), lambda _, loss: loss * 5)
    for bad_steps, what in (("stop", "its batch counts"), ("skip", "its batch is left out")):
        run(tiny_corpus, tmp_path / bad_steps, num_epochs=1, bad_steps=bad_steps, log_steps=42)
        assert "Step 31: the loss jumped to" in (printed := capsys.readouterr().out)
        assert what in printed


def test_a_run_in_which_every_batch_is_bad_stops(
    tiny_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, range(5, 42), lambda _, loss: loss * float("inf"))
    with pytest.raises(DivergedError, match="the loss became inf at step 15"):
        run(tiny_corpus, tmp_path / "out", num_epochs=1, bad_steps="skip")


def test_validation_within_an_epoch_and_an_early_end(
    tiny_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a rate at which the losses go up and down."""
    run(tiny_corpus, tmp_path / "out", num_epochs=8, eval_steps=10, patience=2)
    printed = capsys.readouterr().out
    assert "the run ends here (patience)" in printed
    assert "ended early by patience" in printed
    scored = [row for row in rows(tmp_path / "out") if row["kind"] in ("validation", "epoch")]
    assert {row["step"] for row in scored if row["kind"] == "validation"} <= set(range(10, 336, 10))
    best = min(scored, key=lambda row: row["validation"]["loss"])
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["result"]["best"]["step"] == best["step"]
    assert torch.load(tmp_path / "out" / "mu_sota_best.pt", weights_only=True)["step"] == best["step"]
    before = (tmp_path / "out" / "metrics.jsonl").read_bytes()
    run(tiny_corpus, tmp_path / "out", num_epochs=8, eval_steps=10, patience=2, resume=True)
    assert "is finished" in capsys.readouterr().out
    assert (tmp_path / "out" / "metrics.jsonl").read_bytes() == before


def main(*arguments: object) -> int:
    with pytest.raises(SystemExit) as ended:
        cli.main([str(argument) for argument in arguments])
    return int(ended.value.code or 0)


def test_a_run_begins_with_the_weights_of_another_and_is_repeated_by_its_record(
    killed: Any, out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    go_on(killed, out)
    tuned = ["--epochs", 1, "--set", "learning_rate=0.001"]
    assert main("train", "--out", tmp_path / "tuned", "--init-from", out, *tuned) == 0
    assert losses(tmp_path / "tuned")[0] < 0.5 * losses(out)[0]
    assert main("train", "--out", tmp_path / "repeated", "--from-run", tmp_path / "tuned" / "run.json") == 0
    assert rows(tmp_path / "repeated") == rows(tmp_path / "tuned")
    capsys.readouterr()
    assert main("train", "--out", tmp_path / "x", "--init-from", out, "--set", "num_hidden_layers=3") == 2
    assert "has another form than the settings say" in capsys.readouterr().err
    assert main("train", "--out", tmp_path / "x", "--init-from", out, "--tokenizer", "word") == 2
    assert "has another tokenizer" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()


def test_a_folder_that_is_mistyped_is_not_a_new_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main("train", "--out", tmp_path / "typo", "--resume") == 2
    assert "there is no run in" in capsys.readouterr().err
    assert not (tmp_path / "typo").exists()
