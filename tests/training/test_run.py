"""A training run as its user meets it: what it prints, writes, survives, refuses."""

import json
import math
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_runs import AS_USERS_DO, KILL, TINY, command, losses, rows, run
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import TrainerCallback

from mu_sota import MuConfig, MuForCausalLM
from mu_sota.leakcheck.report import LeakError
from mu_sota.model.backend import plain_pytorch
from mu_sota.model.errors import InputError
from mu_sota.training import trainer
from mu_sota.training.divergence import DivergedError


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, make_corpus: Callable[[Path], Path]) -> Iterator[Any]:
    """One uninterrupted run: its corpus, its folder and what it printed."""
    patch = pytest.MonkeyPatch()
    base = tmp_path_factory.mktemp("finished")
    patch.setenv("MU_SOTA_CACHE", str(base / "cache"))
    corpus = make_corpus(base)
    done = subprocess.run(
        [sys.executable, "-m", "mu_sota", *command(corpus, base / "out", **AS_USERS_DO)],
        capture_output=True,
        text=True,
        check=True,
    )
    yield corpus, base / "out", done.stdout
    patch.undo()


def test_it_prints_what_the_run_instructions_show(finished: Any) -> None:
    _, _, printed = finished
    for epoch in (1, 2):
        assert re.search(
            rf"Epoch {epoch}:\n  Train: Loss=\d+\.\d{{4}}, Acc=\d+\.\d\d%\n"
            r"  Val: Loss=\d+\.\d{4}, Acc=\d+\.\d\d%, PPL=\d+\.\d\d, PPL/word=\d+\.\d\d, bits/byte=\d+\.\d{4}\n",
            printed,
        )
        block = printed[printed.index(f"TEXT GENERATION TEST - EPOCH {epoch}") :]
        assert re.match(
            rf"TEXT GENERATION TEST - EPOCH {epoch}\n={{80}}\n"
            r"  Prompt: 'the state'\n  Generated: 'the state.*'\n-{80}\n"
            r"  Prompt: 'a block'\n  Generated: 'a block.*'\n={80}\n",
            block,
        )
    assert "Unigram model on the same validation tokens: PPL=" in printed
    assert "Estimate: " in printed


def test_the_printed_checks_are_computed_from_the_record(finished: Any) -> None:
    _, out, printed = finished
    epochs = [row for row in rows(out) if row["kind"] == "epoch"]
    assert epochs[1]["validation"]["loss"] < epochs[0]["validation"]["loss"], "the tiny run should learn"
    assert "[NO]" not in printed
    assert (
        f"[ok] training loss, every epoch lower: {epochs[0]['train']['loss']:.4f} > {epochs[1]['train']['loss']:.4f}"
        in printed
    )
    assert "best model saved, and loads again" in printed


def test_files(finished: Any) -> None:
    _, out, _ = finished
    best = torch.load(out / "mu_sota_best.pt", weights_only=True)
    assert best["epoch"] == 2
    model = MuForCausalLM(MuConfig(**best["config"]))
    model.load_state_dict(best["model"])
    folder = MuForCausalLM.from_pretrained(out / "best")
    ids = torch.arange(20)[None]
    assert torch.equal(model.eval()(ids).logits, folder(ids).logits)
    moments = best["optimizer"]["state"]
    assert set(moments) == {name for name, _ in model.named_parameters()}
    assert (out / "mu_sota_tokenizer.json").stat().st_size > 0
    assert (out / "best" / "model.safetensors").exists()
    assert (out / "best" / "tokenizer.json").exists()
    assert not {"seed", "batch_size"} & set(json.loads((out / "best" / "generation_config.json").read_text()))
    assert list((out / "tensorboard").glob("events.*"))
    assert [path.name for path in out.glob(".*")] == [".lock"], "no temporary file is left"
    assert not list(out.rglob("training_args.bin")), "no pickle of settings"
    record = json.loads((out / "run.json").read_text())
    assert record["settings"]["batch_size"] == 8
    assert record["machine"]["versions"]["torch"] == version("torch")
    assert record["causality"]["clean"] is True
    assert {"future", "batch", "length", "gradient"} <= {check["check"] for check in record["causality"]["checks"]}
    assert record["result"]["best"]["epoch"] == 2
    assert record["unigram"]["perplexity"] > record["result"]["best"]["validation"]["perplexity"]


def test_a_finished_run_is_not_run_again(finished: Any, capsys: pytest.CaptureFixture[str]) -> None:
    corpus, out, _ = finished
    before = (out / "metrics.jsonl").read_bytes()
    with pytest.raises(InputError, match="already holds a run; add --resume"):
        run(corpus, out)
    with pytest.raises(InputError, match=r"was started with learning_rate 0\.01, not 0\.02"):
        run(corpus, out, resume=True, **AS_USERS_DO | {"learning_rate": 0.02})
    with pytest.raises(InputError, match="cannot be made shorter: 3 are asked for"):
        run(corpus, out, resume=True, **AS_USERS_DO, max_steps=3)
    assert all(check.passed for check in run(corpus, out, resume=True, **AS_USERS_DO))
    assert "is finished" in capsys.readouterr().out
    assert (out / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("moment", "step"),
    [
        ("in a step", 2),
        ("in a step", 17),
        ("in a checkpoint", 5),
        ("in the evaluation", 12),
        ("after the best model", 12),
        ("before the checks", 0),
    ],
)
def test_killed_and_resumed_is_as_if_never_killed(finished: Any, tmp_path: Path, moment: str, step: int) -> None:
    """With dropout, so the random state counts too. Equal to the last digit: every loss, sample and weight."""
    corpus, whole, _ = finished
    out = tmp_path / "out"
    arguments = command(corpus, out, **AS_USERS_DO, checkpoint_minutes=0.0005)
    killed = subprocess.run(
        [sys.executable, "-c", KILL, moment, str(step), *arguments], capture_output=True, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    run(corpus, out, resume=True, **AS_USERS_DO)
    assert rows(out) == rows(whole)
    ours, theirs = (torch.load(place / "mu_sota_best.pt", weights_only=True) for place in (out, whole))
    assert all(torch.equal(ours["model"][name], theirs["model"][name]) for name in theirs["model"])
    assert [path.name for path in out.glob(".*")] == [".lock"], "what the kill left behind is cleaned up"


def test_ctrl_c_saves_and_says_how_to_go_on(finished: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    corpus, whole, _ = finished
    out = tmp_path / "out"
    arguments = command(corpus, out, **AS_USERS_DO)
    process = subprocess.Popen(
        [sys.executable, "-m", "mu_sota", *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    while not (out / "metrics.jsonl").exists() or not (out / "metrics.jsonl").read_text():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    left = re.search(r"mu-sota: interrupted: saved at step (\d+) of (\d+); the same command with --resume", errors)
    assert left
    assert "Traceback" not in errors
    saved, steps = left.groups()
    run(corpus, out, resume=True, **AS_USERS_DO)
    assert f"Going on after step {saved} of {steps}." in capsys.readouterr().out
    assert rows(out) == rows(whole)


def test_resuming_what_is_not_there_says_so(
    tiny_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A mistyped folder would otherwise be noticed hours later."""
    run(tiny_corpus, tmp_path / "out", resume=True, max_steps=1)
    assert f"There is no run in {tmp_path / 'out'} yet, so this is a new one." in capsys.readouterr().out


def test_a_run_of_so_many_steps_killed_at_its_end_is_finished_by_resuming(
    tiny_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The last checkpoint lies within an epoch, and training on from there would go past the last step."""
    out = tmp_path / "out"
    arguments = command(tiny_corpus, out, "--max-steps", "7")
    killed = subprocess.run(
        [sys.executable, "-c", KILL, "before the checks", "0", *arguments], capture_output=True, check=False
    )
    assert killed.returncode == -signal.SIGKILL
    run(tiny_corpus, out, resume=True, max_steps=7)
    assert "[ok] 7 of 7 steps done" in capsys.readouterr().out


def test_folders_that_are_not_its_own_are_left_alone(tiny_corpus: Path, tmp_path: Path) -> None:
    others = [tmp_path / "out" / name for name in ("checkpoint-old", "checkpoint-5", ".notes.tmp")]
    for other in others:
        other.mkdir(parents=True)
        (other / "file").write_text("mine")
    run(tiny_corpus, tmp_path / "out", max_steps=3)
    assert [(other / "file").read_text() for other in others] == ["mine"] * 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"trackers": ["foo"]}, "the tracker 'foo' cannot be used"),
        ({"sample_tokens": 40}, "40 more are asked for, but the model has 32 positions"),
        ({"window": 100_000, "max_position_embeddings": 100_000}, "a window of 100000 needs"),
    ],
)
def test_nothing_is_written_where_a_check_before_training_fails(
    tiny_corpus: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        run(tiny_corpus, tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists()


def test_two_processes_give_the_losses_of_one(tiny_corpus: Path, tmp_path: Path) -> None:
    """Global batches of 7, so that the processes' shares differ; without dropout, whose masks do."""
    same: dict[str, Any] = {"batch_size": 7, "dropout": 0.0}
    run(tiny_corpus, tmp_path / "one", **same)
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*torchrun, "-m", "mu_sota", *command(tiny_corpus, tmp_path / "two", **same)],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("VERDICT") == 1, "one process speaks"
    assert losses(tmp_path / "two") == pytest.approx(losses(tmp_path / "one"), rel=1e-4)
    for one, two in zip(rows(tmp_path / "one"), rows(tmp_path / "two"), strict=True):
        if one["kind"] == "epoch":
            assert two["train"] == pytest.approx(one["train"], rel=1e-4)
            assert two["validation"] == pytest.approx(one["validation"], rel=1e-4)


def test_accumulation_gives_the_losses_of_the_whole_batch(tiny_corpus: Path, tmp_path: Path) -> None:
    run(tiny_corpus, tmp_path / "whole", dropout=0.0, micro_batch_size=8)
    run(tiny_corpus, tmp_path / "parts", dropout=0.0, micro_batch_size=3)
    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "whole"), rel=1e-5)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of torch.compile's own parts
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf:UserWarning")
def test_compiled_layers_give_the_losses_of_uncompiled_ones(tiny_corpus: Path, tmp_path: Path) -> None:
    """With a smaller last batch, evaluation and samples, none of which is compiled."""
    run(tiny_corpus, tmp_path / "plain", dropout=0.0)
    run(tiny_corpus, tmp_path / "compiled", dropout=0.0, compile="always")
    assert losses(tmp_path / "compiled") == pytest.approx(losses(tmp_path / "plain"), rel=1e-4)
    compiled, plain = (rows(tmp_path / name)[-1] for name in ("compiled", "plain"))
    assert compiled["validation"] == pytest.approx(plain["validation"], rel=1e-3)
    assert compiled["samples"]


def test_a_run_whose_layers_cannot_be_compiled_says_so_and_goes_on(
    tiny_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(trainer, "compile_layers", lambda *_: "no compiler anywhere")
    run(tiny_corpus, tmp_path / "out", max_steps=2, compile="always")
    assert "run uncompiled, since they cannot be compiled here: no compiler anywhere" in capsys.readouterr().out
    assert len(losses(tmp_path / "out")) == 2


@pytest.mark.filterwarnings("ignore:Synchronization debug mode is a prototype")
@pytest.mark.parametrize("on_gpu", [False, pytest.param(True, marks=pytest.mark.cuda)], ids=["counted", "CUDA"])
def test_a_step_never_waits_for_the_device(
    on_gpu: bool, tiny_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the start of a step and its end no number is read from a tensor; on a GPU, that would wait for it.

    Nor is the size of anything decided by values. What is logged is read after a step.
    """
    waits: list[str] = []

    class Noting(TorchDispatchMode):
        def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            name = function.overloadpacket.__name__
            if name in ("_local_scalar_dense", "item", "is_nonzero", "nonzero", "equal", "masked_select", "unique_dim"):
                waits.append(name)
            return function(*args, **(kwargs or {}))

    class Watch(TrainerCallback):
        steps = 0

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.mode = Noting()
            self.mode.__enter__()
            if on_gpu:
                torch.cuda.set_sync_debug_mode("error")

        def on_pre_optimizer_step(self, *_: Any, **__: Any) -> None:
            Watch.steps += 1

        def on_optimizer_step(self, *_: Any, **__: Any) -> None:
            self.mode.__exit__(None, None, None)
            if on_gpu:
                torch.cuda.set_sync_debug_mode("default")

    original = trainer.MuTrainer.train_from_last_checkpoint

    def watched(self: Any, steps: int) -> None:
        self.add_callback(Watch)
        original(self, steps)

    monkeypatch.setattr(trainer.MuTrainer, "train_from_last_checkpoint", watched)
    with nullcontext() if on_gpu else plain_pytorch():
        run(tiny_corpus, tmp_path / "out", max_steps=6, micro_batch_size=3)
    assert Watch.steps == 6
    assert waits == []


def test_a_model_that_leaks_is_refused(tiny_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unmasked(query: Any, key: Any, value: Any, bias: Any) -> Any:
        return torch.nn.functional.scaled_dot_product_attention(query, key, value)

    monkeypatch.setattr("mu_sota.model.layers.causal_attention", unmasked)
    with plain_pytorch(), pytest.raises(LeakError, match=r"not causal.*it arises in model\.layers\.0\.block_attention"):
        run(tiny_corpus, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_diverging_run_stops_with_advice_and_keeps_the_checkpoint(
    tiny_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original = trainer.MuTrainer.training_step

    def poisoned(self: Any, *arguments: Any) -> Any:
        if self.state.global_step == 6:
            next(self.model.parameters()).data.fill_(math.nan)
        return original(self, *arguments)

    monkeypatch.setattr(trainer.MuTrainer, "training_step", poisoned)
    with pytest.raises(DivergedError) as error:
        run(tiny_corpus, tmp_path / "out", checkpoint_minutes=1e-6)
    assert "the loss became nan at step 7" in str(error.value)
    assert "--set learning_rate=0.005" in str(error.value)
    assert "--set max_grad_norm=0.5" in str(error.value)
    assert "checkpoint-6" in str(error.value)
    weights = MuForCausalLM.from_pretrained(tmp_path / "out" / "checkpoint-6").state_dict()
    assert all(torch.isfinite(weight).all() for weight in weights.values())


def test_an_exploding_loss_stops(tiny_corpus: Path, tmp_path: Path) -> None:
    with pytest.raises(DivergedError, match=r"the (loss|gradient) became"):
        run(tiny_corpus, tmp_path / "out", learning_rate=1e4, max_grad_norm=1e9)


def test_out_of_memory_goes_on_with_less_at_once(
    tiny_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """A new model and the same random numbers: as if the run had begun with 2 at once, to the last digit."""
    run(tiny_corpus, tmp_path / "two", micro_batch_size=2)
    original = MuForCausalLM.forward

    def limited(self: Any, input_ids: torch.Tensor, **named: Any) -> Any:
        if self.training and len(input_ids) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return original(self, input_ids, **named)

    monkeypatch.setattr(MuForCausalLM, "forward", limited)
    run(tiny_corpus, tmp_path / "out")
    assert "Out of memory: going on with 2 at once" in capsys.readouterr().out
    assert rows(tmp_path / "out") == rows(tmp_path / "two")


def test_out_of_memory_with_one_sequence_says_what_to_lower(
    tiny_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(self: Any, *_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(trainer.MuTrainer, "training_step", never)
    with pytest.raises(InputError, match="lower window, num_hidden_layers or matrix_size"):
        run(tiny_corpus, tmp_path / "out")


def test_the_recipe_s_warm_up_is_as_long_as_it_says(tiny_corpus: Path, tmp_path: Path) -> None:
    """The peak comes after `warmup_steps`, however few steps follow; 20 of 24 here as 1,000 of 1,310 in the recipe."""
    run(tiny_corpus, tmp_path / "out", max_steps=24)
    rates = [row["learning_rate"] for row in rows(tmp_path / "out") if row["kind"] == "step"]
    assert rates.index(max(rates)) == 20 - 1


@pytest.mark.parametrize("steps", [1, 2])
def test_the_shortest_runs_work(tiny_corpus: Path, tmp_path: Path, steps: int) -> None:
    run(tiny_corpus, tmp_path / "out", max_steps=steps, num_epochs=1)
    rates = [row["learning_rate"] for row in rows(tmp_path / "out") if row["kind"] == "step"]
    assert len(rates) == steps
    assert rates[0] == pytest.approx(TINY["learning_rate"] / 25)


def test_a_part_of_an_epoch_is_called_a_part(
    tiny_corpus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run(tiny_corpus, tmp_path / "out", max_steps=5)
    assert "Epoch 1 (first 5 steps):" in capsys.readouterr().out
    assert rows(tmp_path / "out")[-1]["complete"] is False


def test_bf16_training_learns_like_float32(tiny_corpus: Path, tmp_path: Path) -> None:
    run(tiny_corpus, tmp_path / "fp32", dropout=0.0)
    run(tiny_corpus, tmp_path / "bf16", dropout=0.0, precision="bf16")
    assert losses(tmp_path / "bf16") == pytest.approx(losses(tmp_path / "fp32"), rel=0.05)
