"""The notebook, run cell by cell as its user runs it, with tiny choices and without a network."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import nbformat
import pytest
import torch
from conftest import TINY
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from transformers import AutoModelForCausalLM

from mu_sota.saved.load_save import load_trained

NOTEBOOK = Path(__file__).parents[1] / "notebooks" / "train_and_look_inside.ipynb"
EPOCHS = 2


def read() -> Any:
    return nbformat.read(NOTEBOOK, as_version=4)


def cell_of(notebook: Any, name: str) -> Any:
    """The cell of that id."""
    (cell,) = [cell for cell in notebook.cells if cell.id == name]
    return cell


def choices(corpus: Path, **settings: Any) -> str:
    """The source of the cell of choices, for a tiny run."""
    values = {
        "PRESET": "quickstart",
        "DATA": str(corpus),
        "OUT": "run",
        "SETTINGS": {**TINY, "trackers": [], **settings},
        "SENTENCE": "the state of a block is large, and the model reads $x_1$",
        "PROMPT": "the state",
    }
    return "\n".join(["import torch", *(f"{name} = {value!r}" for name, value in values.items())])


def client_for(notebook: Any, folder: Path) -> NotebookClient:
    return NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(folder)}})


def printed(cell: Any) -> str:
    return "".join(output.text for output in cell.outputs if output.output_type == "stream")


@pytest.fixture(autouse=True)
def own_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel writes nothing outside the test's folder, asks no network, and compiles nothing."""
    jupyter = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")
    for name in ("MU_SOTA_CACHE", "HF_HOME", "MPLCONFIGDIR", *jupyter):
        folder = tmp_path / "home" / name
        folder.mkdir(parents=True)
        monkeypatch.setenv(name, str(folder))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("MU_SOTA_KERNELS", "0")


def test_the_stored_notebook_is_clean() -> None:
    notebook = read()
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert NOTEBOOK.stat().st_size < 30_000
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert not any(cell.outputs or cell.execution_count for cell in code)
    assert notebook.metadata.kernelspec.name == "python3"
    assert notebook.metadata.accelerator == "GPU"
    assert notebook.metadata.colab.gpuType == "T4"
    assert notebook.metadata.kaggle.isGpuEnabled
    assert [cell.id for cell in code if "parameters" in cell.metadata.get("tags", ())] == ["choices"]


def test_every_cell_runs(tiny_corpus: Path, tmp_path: Path) -> None:
    notebook = read()
    own = {line.partition(" =")[0] for line in cell_of(notebook, "choices").source.splitlines() if " = " in line}
    cell_of(notebook, "choices").source = choices(tiny_corpus, num_epochs=EPOCHS)
    assert all(f"{name} = " in cell_of(notebook, "choices").source for name in own - {"GPU"})
    client_for(notebook, tmp_path).execute()

    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    figures = [cell.id for cell in code for output in cell.outputs if "image/png" in output.get("data", {})]
    assert figures == ["curves", "sensitivities", "off"]
    assert [printed(cell_of(notebook, "samples")).count(f"Epoch {epoch}, ") for epoch in (1, EPOCHS)] == [1, 1]
    assert printed(cell_of(notebook, "off")).count("the state") == 1 + 16
    assert "transformers_modules" in printed(cell_of(notebook, "export"))
    assert "without mu-sota: True\nthe state" in printed(cell_of(notebook, "export"))

    run, export = tmp_path / "run", tmp_path / "run" / "export" / "my-quickstart"
    score = json.loads((run / "test.json").read_text(encoding="utf-8"))
    assert f"loss {score['loss']:.4f}" in printed(cell_of(notebook, "test"))
    assert export.with_suffix(".zip").is_file()
    trained, _ = load_trained(run)
    exported = AutoModelForCausalLM.from_pretrained(export)
    ids = torch.arange(20)[None]
    torch.testing.assert_close(exported(ids).logits, trained(ids).logits)


def run_in_kernel(notebook: Any, folder: Path, steps: Callable[[NotebookClient], Awaitable[None]]) -> None:
    """Do some steps with a kernel that is started before and shut down after."""

    async def work() -> None:
        client = client_for(notebook, folder)
        async with client.async_setup_kernel():
            await steps(client)

    asyncio.run(work())


async def execute(client: NotebookClient, name: str) -> None:
    cell = cell_of(client.nb, name)
    await client.async_execute_cell(cell, client.nb.cells.index(cell))


def test_an_interrupted_run_is_saved_and_goes_on(tiny_corpus: Path, tmp_path: Path) -> None:
    notebook = read()
    cell_of(notebook, "choices").source = choices(tiny_corpus, num_epochs=10_000, log_steps=1)
    metrics = tmp_path / "run" / "metrics.jsonl"

    def rows() -> int:
        return metrics.read_bytes().count(b"\n") if metrics.exists() else 0

    async def interrupt_training(client: NotebookClient) -> str:
        """Train until there are more rows, then interrupt the kernel; return the last line of the error."""
        before = rows()
        training = asyncio.create_task(execute(client, "train"))
        while rows() <= before + 5 and not training.done():
            await asyncio.sleep(0.1)
        manager: Any = client.km
        await manager.interrupt_kernel()
        with pytest.raises(CellExecutionError) as caught:
            await training
        return caught.value.evalue

    async def steps(client: NotebookClient) -> None:
        await execute(client, "install")
        await execute(client, "choices")
        first = await interrupt_training(client)
        assert first.startswith("saved at step ")
        assert first.endswith("Run this cell again to go on.")
        second = await interrupt_training(client)
        step = first.split()[3]
        assert f"Going on after step {step} of" in printed(cell_of(notebook, "train"))
        assert second.startswith("saved at step ")

    run_in_kernel(notebook, tmp_path, steps)


def test_a_failed_installation_stops_the_notebook(tmp_path: Path) -> None:
    notebook = read()
    hide = nbformat.v4.new_code_cell("import importlib.util\nimportlib.util.find_spec = lambda name: None", id="hide")
    notebook.cells.append(hide)
    folder = tmp_path / "clone" / "notebooks"
    folder.mkdir(parents=True)

    async def steps(client: NotebookClient) -> None:
        await execute(client, "hide")
        with pytest.raises(CellExecutionError, match="write into SOURCE"):
            await execute(client, "install")
        (tmp_path / "clone" / "src" / "mu_sota").mkdir(parents=True)
        with pytest.raises(CellExecutionError, match=r"pip could not install .*clone"):
            await execute(client, "install")

    run_in_kernel(notebook, folder, steps)
