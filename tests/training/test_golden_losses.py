"""A tiny training has the losses it has always had: numbers in `fixtures/golden_losses.json`, per kind of machine.

A change that is meant to leave the numerics alone passes this test. One that is meant to change them, or a new kind of
machine, adds its losses with

    PYTHONPATH=tests python tests/training/test_golden_losses.py --write

Processors of one kind add in vectors of different widths and round differently: the losses of AVX-512, AVX2 and SSE, of
one thread and two, are within 1.3e-7 of each other, and `SAME` allows for eight times that. A kind that is not in the
file is compared with those that are, within `SIMILAR`, and without dropout, which kinds draw differently.
"""

import json
import platform
import sys
import warnings
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from reference import NEW_FORM

from mu_sota import MuConfig, MuForCausalLM
from mu_sota.model.backend import plain_pytorch
from mu_sota.model.kernels import library

FILE = Path(__file__).parents[1] / "fixtures" / "golden_losses.json"
SAME, SIMILAR = 1e-6, 1e-4  # relative; half the heads would be 1e-3
STEPS, BATCH, WINDOW, VOCABULARY = 20, 8, 32, 61

BACKENDS = ("kernels", "pytorch")
CASES: dict[str, dict[str, Any]] = {
    "dropout 0.0": {"dropout": 0.0},
    "dropout 0.1": {"dropout": 0.1},
    "new form": {"dropout": 0.0, **NEW_FORM, "block_inputs": "token"},
    "inputs by name": {"dropout": 0.0, **NEW_FORM},
}


def kind_of_machine(backend: str) -> str:
    return f"{platform.machine()}-{backend}"


def train(backend: str, case: str) -> dict[str, list[float]]:
    """Losses of `STEPS` optimizer steps of the presets' architectures, and one of validation after them."""
    numbers = torch.arange((STEPS + 1) * BATCH * (WINDOW + 1))
    batches = (numbers**2 // 11 % VOCABULARY).view(STEPS + 1, BATCH, WINDOW + 1)
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": VOCABULARY, "num_hidden_layers": 2, "max_position_embeddings": WINDOW}
    model = MuForCausalLM(MuConfig(**sizes, **CASES[case]))
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.01)
    losses = []
    with plain_pytorch() if backend == "pytorch" else nullcontext():
        for batch in batches[:-1]:
            loss = model(batch[:, :-1], shift_labels=batch[:, 1:]).loss
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss.item())
        model.eval()
        with torch.no_grad():
            validation = model(batches[-1, :, :-1], shift_labels=batches[-1, :, 1:]).loss.item()
    return {"training": losses, "validation": [validation]}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("backend", BACKENDS)
def test_losses_of_a_tiny_training_are_the_golden_ones(backend: str, case: str) -> None:
    if backend == "kernels" and library() is None:
        pytest.skip("no compiled kernels here")
    golden = json.loads(FILE.read_text(encoding="utf-8"))
    kind = kind_of_machine(backend)
    losses = train(backend, case)
    if kind in golden:
        for part, expected in golden[kind][case].items():
            assert losses[part] == pytest.approx(expected, rel=SAME), part
    elif CASES[case]["dropout"]:
        pytest.skip(f"no golden losses of {kind}: add them with `{Path(__file__).name} --write`")
    else:
        for other, cases in golden.items():
            for part, expected in cases[case].items():
                assert losses[part] == pytest.approx(expected, rel=SIMILAR), f"{part} of {other}"


def write() -> None:
    """Add the losses of this machine to the file, or replace them."""
    torch.set_num_threads(1)  # as in the tests
    golden = json.loads(FILE.read_text(encoding="utf-8")) if FILE.exists() else {}
    for backend in BACKENDS:
        if backend == "kernels" and library() is None:
            warnings.warn("no compiled kernels here: only the losses of plain PyTorch are written", stacklevel=1)
            continue
        golden[kind_of_machine(backend)] = {case: train(backend, case) for case in CASES}
    FILE.write_text(json.dumps(golden, indent=1, sort_keys=True) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if sys.argv[1:] != ["--write"]:
        sys.exit(f"usage: python {sys.argv[0]} --write")
    write()
