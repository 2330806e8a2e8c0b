"""Grounding: blocks are taught while a model is trained, which nothing but its weights shows afterwards."""

import json
import math
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from conftest import TINY
from safetensors.torch import load_file

from mu_sota import MuForCausalLM
from mu_sota.data.corpus import load_corpus
from mu_sota.data.windows import TrainWindows
from mu_sota.inspection.similarity import block_similarity
from mu_sota.inspection.targets import NONE, TAUGHT, Target, block_targets
from mu_sota.model.blocks import BLOCKS
from mu_sota.settings.load import load_settings
from mu_sota.training.batches import PADDING_SAMPLE
from mu_sota.training.grounding import BlockReadouts, GroundedWindows, likeness
from mu_sota.training.interrupt import Interrupted
from mu_sota.training.run import train
from mu_sota.training.trainer import MuTrainer

NAMES = [block.name for block in BLOCKS]


def run(corpus: Path, out: Path, resume: bool = False, **changes: Any) -> list[dict[str, Any]]:
    """Train, and give the rows of its record."""
    overrides: dict[str, Any] = {**TINY, "trackers": [], "num_hidden_layers": 2, "log_steps": 5, **changes}
    train("mu-sota", str(corpus), out, load_settings("mu-sota", overrides=overrides), resume)
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def losses(rows: list[dict[str, Any]]) -> list[float]:
    return [row["loss"] if row["kind"] == "step" else row["validation"]["loss"] for row in rows]


def test_readouts_cost_what_their_cross_entropy_is() -> None:
    """A weighted mean over blocks, and over the targets of one: each relative to what class frequencies would cost.

    What keeps blocks apart is added.
    """
    torch.manual_seed(0)
    labels = torch.randint(-1, 5, (2, 6, 2))
    targets = [
        Target("S", "kind", np.array([0, 1, NONE, 2]), list("abcde")),
        Target("P", "place", np.array([1, 1, 4, 1]), list("abcde")),
    ]
    tokens = np.array([3, 3, 10, 7])
    readouts = BlockReadouts(targets, tokens, vocab_size=11, block_size=4, window=6)
    state, ids = torch.randn(2, 6, 64), torch.randint(0, 11, (2, 6))
    blocks = state.unflatten(-1, (16, 4))
    expected: dict[str, list[float]] = {"S": [], "P": [], "I": [], "C1": []}

    def cost(head: int, block: str, wanted: torch.Tensor, counts: list[int], share: float) -> None:
        logits = readouts.heads[head](blocks[:, :, NAMES.index(block)])
        nll = [
            -logits[row, at].log_softmax(-1)[wanted[row, at]].item()
            for row in range(2)
            for at in range(6)
            if wanted[row, at] != NONE
        ]
        frequencies = [(count + 1) / (sum(counts) + len(counts)) for count in counts]
        by_frequency = -sum(each * math.log(each) for each in frequencies)
        expected[block].append(sum(nll) / (share * 12 * by_frequency))

    of_tokens = [0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 1]
    cost(0, "S", labels[..., 0], [1, 1, 1, 0, 0], 0.75)
    cost(1, "P", labels[..., 1], [0, 3, 0, 0, 1], 1.0)
    cost(2, "I", ids, of_tokens, 1.0)
    cost(3, "C1", F.pad(ids[:, :-1], (1, 0), value=NONE), of_tokens, 1.0)
    cost(4, "P", (torch.arange(6) * 16 // 6).expand(2, 6), [1] * 16, 1.0)
    mean = np.mean([TAUGHT[block].weight * np.mean(values) for block, values in expected.items()])
    alike = np.triu(np.asarray(block_similarity(blocks.flatten(0, 1)).cka), 1)
    assert readouts(state, ids, labels).item() == pytest.approx(mean + 0.05 * (alike**2).sum(), rel=1e-5)


def test_blocks_that_are_alike_are_moved_apart() -> None:
    torch.manual_seed(0)
    blocks = torch.randn(4, 30, 16, 4)
    blocks[:, :, 4] = blocks[:, :, 1] + 0.3 * torch.randn(4, 30, 4)
    blocks.requires_grad_()
    before = likeness(blocks)
    (gradient,) = torch.autograd.grad(before, blocks)
    largest = gradient.square().sum((0, 1, 3)).topk(2).indices
    assert set(largest.tolist()) == {1, 4}, "the two that are alike"
    assert likeness(blocks - gradient / gradient.norm()) < before


def test_readouts_begin_with_the_frequencies_of_classes() -> None:
    target = Target("S", "kind", np.array([0] * 90 + [1] * 9 + [NONE] * 50), ["a", "b"])
    readouts = BlockReadouts([target], np.array([1, 2]), vocab_size=3, block_size=4, window=6)
    start = readouts.heads[0](torch.zeros(4)).softmax(-1)
    assert start.tolist() == pytest.approx([91 / 101, 10 / 101])


def test_windows_have_the_labels_of_their_tokens() -> None:
    tokens = np.arange(40, dtype=np.uint32)
    targets = [
        Target("S", "same", tokens.astype(np.int32), [str(number) for number in range(40)]),
        Target("A", "none", np.full(40, NONE, np.int32), list("abc")),
    ]
    windows = GroundedWindows(TrainWindows(tokens, window=8, stride=5), targets)
    batch = windows.__getitems__([3, PADDING_SAMPLE, 0])
    assert batch["block_labels"][0, :, 0].tolist() == batch["input_ids"][0].tolist()
    assert batch["block_labels"][2, :, 0].tolist() == list(range(8))
    assert (batch["block_labels"][1] == NONE).all()
    assert (batch["block_labels"][..., 1] == NONE).all()


def test_what_is_taught_can_be_read_off_the_block_it_is_taught_to(tiny_corpus: Path, tmp_path: Path) -> None:
    """The place in the sentence is in block P, by a regression on its values; without grounding less is."""
    corpus = load_corpus(str(tiny_corpus), vocab_size=300)
    (place,) = (
        target
        for target in block_targets(corpus.validation.tokens, corpus.tokenizer)
        if target.name == "place in the sentence"
    )
    ids = torch.from_numpy(corpus.validation.tokens[: 32 * 30].astype(np.int64)).view(-1, 32)
    wanted = torch.from_numpy(place.labels[: ids.numel()].astype(np.int64))
    found = {}
    for grounding in (0.0, 3.0):
        run(tiny_corpus, tmp_path / str(grounding), grounding=grounding, num_epochs=4)
        model = MuForCausalLM.from_pretrained(tmp_path / str(grounding) / "best").eval()
        with torch.no_grad():
            state = model(ids, output_hidden_states=True).hidden_states[1]
        block = state.unflatten(-1, (16, 4))[..., NAMES.index("P"), :].flatten(0, 1)[wanted != NONE]
        known = F.one_hot(wanted[wanted != NONE]).float()
        inputs = torch.cat([block, torch.ones(len(block), 1)], 1)
        rest = known - inputs @ torch.linalg.lstsq(inputs, known).solution
        found[grounding] = 1 - float(rest.square().sum() / (known - known.mean(0)).square().sum())
    assert found[3.0] > found[0.0] + 0.1


def test_nothing_but_the_weights_is_left(tiny_corpus: Path, tmp_path: Path) -> None:
    rows = run(tiny_corpus, tmp_path / "out", grounding=0.5)
    assert rows[-1]["kind"] == "epoch"
    plain = MuForCausalLM.from_pretrained(tmp_path / "out" / "best")
    assert set(load_file(tmp_path / "out" / "best" / "model.safetensors")) == set(plain.state_dict())
    content = torch.load(tmp_path / "out" / "mu_sota_best.pt", weights_only=True)
    assert set(content["model"]) == set(plain.state_dict())
    record = json.loads((tmp_path / "out" / "run.json").read_text())
    assert record["settings"]["grounding"] == 0.5
    assert all(passed for _, passed, *_ in record["result"]["checks"][:2])


def test_a_grounded_run_goes_on_as_if_never_interrupted(
    tiny_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = losses(run(tiny_corpus, tmp_path / "whole", grounding=0.5, num_epochs=2))
    compute = MuTrainer.compute_loss

    def interrupted(self: MuTrainer, *arguments: Any, **named: Any) -> Any:
        if self.state.global_step == 17:
            os.kill(os.getpid(), signal.SIGINT)
        return compute(self, *arguments, **named)

    monkeypatch.setattr(MuTrainer, "compute_loss", interrupted)
    with pytest.raises(Interrupted):
        run(tiny_corpus, tmp_path / "parts", grounding=0.5, num_epochs=2)
    monkeypatch.setattr(MuTrainer, "compute_loss", compute)
    assert losses(run(tiny_corpus, tmp_path / "parts", resume=True, grounding=0.5, num_epochs=2)) == whole


def test_accumulated_batches_teach_the_same(tiny_corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """But for what keeps blocks apart, and for lessons, which are asked of what is in the memory at once."""
    for weight in ("_APART", "_LESSONS"):
        monkeypatch.setattr(f"mu_sota.training.grounding.{weight}", 0.0)
    at_once = losses(run(tiny_corpus, tmp_path / "once", grounding=0.5, dropout=0.0))
    in_parts = losses(run(tiny_corpus, tmp_path / "parts", grounding=0.5, dropout=0.0, micro_batch_size=2))
    np.testing.assert_allclose(in_parts, at_once, rtol=2e-4)
