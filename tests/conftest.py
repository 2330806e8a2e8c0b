"""What several test files share, and which tests are slow."""

import os
import random
import re
import shlex
import shutil
import sys

# Small models gain nothing from threads, and lose much where others use the same cores. Before torch is imported.
os.environ["OMP_NUM_THREADS"] = "1"

from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import torch

if not torch.cuda.is_available():  # then Triton's interpreter runs the kernels for GPUs; before triton is imported
    os.environ["TRITON_INTERPRET"] = "1"

from made_up_text import LINES
from reference import NEW_FORM

from mu_sota import MuConfig, MuForCausalLM
from mu_sota.data.tokenizer import train_bpe
from mu_sota.saved.export import export_model

hypothesis.settings.register_profile("any machine", deadline=None)  # a busy one is slow now and then
hypothesis.settings.load_profile("any machine")

pytest_plugins = ["kernel_checks", "playground_model"]  # their fixtures

# Slow tests, which `make test-fast` leaves out: they start processes, servers, browsers or the compiler, or take long.
SLOW_FIXTURES = {"browser", "chromium", "served", "small_run", "tiny_export", "trained", "wikitext2"}
SLOW_FILES = {
    *(
        "cli/test_commands.py",
        "cli/test_odd_files.py",
        "cli/test_start_up.py",
        "cli/test_system.py",
        "test_notebook.py",
        "test_using.py",
    ),
    *("comparison/test_baselines.py", "comparison/test_contenders.py", "comparison/test_drawing.py"),
    *("comparison/test_report.py", "comparison/test_runner.py"),
    *("comparison/test_single_training.py", "comparison/test_size_matching.py", "comparison/test_timing.py"),
    *("data/test_pydocs.py", "evaluation/test_lm_eval.py", "generation/test_terminal_program.py"),
    *("leakcheck/test_checks.py", "leakcheck/test_locate.py", "leakcheck/test_logits.py"),
    *("leakcheck/test_noise_training.py", "leakcheck/test_perturbation.py"),
    *("leakcheck/test_sizes.py", "leakcheck/test_snapshot.py", "leakcheck/test_tolerance.py"),
    *("model/test_kernel_library.py", "model/test_others_code.py", "model/test_triton_kernels.py"),
    *("playground/test_page.py", "playground/test_server.py", "test_gpu_benchmark.py"),
    *("saved/test_export.py", "saved/test_serving.py", "training/test_bare_machine.py"),
    *("training/test_compilation.py", "training/test_old_run.py", "training/test_reliability.py"),
    "training/test_run.py",
}
ASKED_BY_LIBRARIES = {"fc-list", "git", "uname"}  # for fonts, the commit and the processor, in milliseconds

_in_a_fast_test = False


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        file = item.path.relative_to(Path(__file__).parent).as_posix()
        if file in SLOW_FILES or SLOW_FIXTURES.intersection(getattr(item, "fixturenames", ())):
            item.add_marker(pytest.mark.slow)
        if item.get_closest_marker("cuda") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Generator[None, object, object]:
    global _in_a_fast_test  # noqa: PLW0603
    _in_a_fast_test = item.config.getoption("markexpr") == "not slow"
    try:
        return (yield)
    finally:
        _in_a_fast_test = False


def refuse_processes(event: str, arguments: tuple[Any, ...]) -> None:
    """An audit hook: in the fast tests, starting a process or a server is an error."""
    if _in_a_fast_test and event in ("subprocess.Popen", "os.fork", "os.forkpty", "socket.bind"):
        if event == "subprocess.Popen" and Path(arguments[0]).name in ASKED_BY_LIBRARIES:
            return
        pytest.fail(f"{event}{arguments[:2]} in a fast test: add its file to SLOW_FILES in tests/conftest.py")


sys.addaudithook(refuse_processes)

USING = Path(__file__).parents[1] / "docs" / "using.md"


def examples(language: str, holding: str = "") -> list[str]:
    """The fenced blocks of docs/using.md in a language that hold a text."""
    blocks = re.findall(r"^```(\w+)\n(.*?)^```$", USING.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [code for kind, code in blocks if kind == language and holding in code]


def command_of(example: str, start: str) -> list[str]:
    """The words of the one command of an example that starts so."""
    lines = example.replace("\\\n", " ").splitlines()
    (line,) = [line for line in lines if start in line]
    return shlex.split(line, comments=True)


TINY = {
    "vocab_size": 300,
    "num_hidden_layers": 1,
    "max_position_embeddings": 32,
    "window": 32,
    "stride": 32,
    "num_epochs": 1,
    "batch_size": 4,
    "learning_rate": 0.02,
    "sample_tokens": 3,
    "trackers": "[]",
    **NEW_FORM,
}
TINY_SETTINGS = [f"--set={key}={value}" for key, value in TINY.items()]

WORDS = "the a state block token model of in and reads writes sees keeps moves gives small large new old open".split()  # noqa: SIM905


def _make_corpus(parent: Path) -> Path:
    """A folder with train.txt, valid.txt and test.txt of made-up sentences."""
    folder = parent / "corpus"
    folder.mkdir()
    for offset, (name, sentences) in enumerate({"train": 260, "valid": 60, "test": 40}.items()):
        lines = []
        for number in range(sentences):
            picks = [WORDS[(number * 7 + offset + k * (number % 5 + 1)) % len(WORDS)] for k in range(9)]
            lines.append(" ".join(picks) + ".")
        (folder / f"{name}.txt").write_text("\n".join(lines) + "\n")
    return folder


@pytest.fixture(scope="session")
def make_corpus() -> Callable[[Path], Path]:
    """Writes the made-up corpus into a folder, as its folder `corpus`."""
    return _make_corpus


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A tiny trained model: the folders of its corpus and of its run. Not to be changed."""
    from transformers import logging

    from mu_sota import cli

    base = tmp_path_factory.mktemp("trained")
    verbosity = logging.get_verbosity()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MU_SOTA_CACHE", str(base / "cache"))
        corpus = _make_corpus(base)
        with pytest.raises(SystemExit, match="0"):
            cli.main(["train", "--data", str(corpus), "--out", str(base / "run"), *TINY_SETTINGS])
    logging.set_verbosity(verbosity)  # the command line silences the library for the rest of its process
    logging.enable_progress_bar()
    return corpus, base / "run"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache for one test."""
    monkeypatch.setenv("MU_SOTA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def settled(monkeypatch: pytest.MonkeyPatch) -> None:
    """No file is too young for its stamp to be trusted."""
    from mu_sota.common import files

    monkeypatch.setattr(files, "_LONGEST_TICK", -(10**9))


@pytest.fixture
def tiny_corpus(tmp_path: Path, cache: Path) -> Path:
    """The made-up corpus in a folder of its own, with a cache of its own."""
    return _make_corpus(tmp_path)


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    """The one text of `made_up_text`, as a file."""
    path = tmp_path / "text.txt"
    path.write_bytes(LINES.encode())
    return path


@pytest.fixture(scope="session")
def tiny_export(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The exported folder of a tiny untrained model with 32 positions and a BPE of 300 entries.

    It is sure of itself, and says nothing that is not ASCII: its text can be cut after any token.
    """
    folder = tmp_path_factory.mktemp("exported")
    tokenizer = train_bpe([" ".join(WORDS)], 300)
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"vocab_size": len(tokenizer), "num_hidden_layers": 2, "max_position_embeddings": 32}
    model = MuForCausalLM(MuConfig(**sizes, **NEW_FORM))
    torch.nn.init.normal_(model.lm_head.weight, std=0.3)  # predictions far from uniform, which context changes
    for table in model.model.lookups.tables:
        torch.nn.init.normal_(table.weight)
    beyond_ascii = [token for token in range(len(tokenizer)) if not str(tokenizer.decode([token])).isascii()]
    model.lm_head.bias.data[beyond_ascii] = -10
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    export_model(folder / "model", folder / "tiny")
    return folder / "tiny"


def _beside_the_repository(name: str) -> Path:
    folder = Path(__file__).parents[2] / "shared/data" / name
    if not folder.is_dir():
        pytest.skip(f"there is no {folder}")
    return folder


@pytest.fixture(scope="session")
def wikitext2() -> Path:
    """The folder of the tokenized WikiText-2, where it lies beside the repository."""
    return _beside_the_repository("wikitext-2")


@pytest.fixture
def treebank(tmp_path: Path) -> Path:
    """A folder of two made-up treebanks: which kind a word is follows from the word."""
    folder = tmp_path / "labels"
    folder.mkdir()
    chosen = random.Random(0)
    words = {"the": "DET", "a": "DET", "state": "NOUN", "block": "NOUN", "reads": "VERB", "sees": "VERB"}
    words |= {"good": "ADJ", "bad": "ADJ"}
    for name in ("made-up-dev.conllu", "made-up-test.conllu"):
        lines = []
        for document in range(12):
            lines.append(f"# newdoc id = answers-{document}")
            for _ in range(6):
                rows = enumerate(chosen.choices(list(words), k=5), start=1)
                lines += [f"{at}\t{word}\t_\t{words[word]}\t_\t_\t0\troot\t_\t_" for at, word in rows]
                lines.append("")
        (folder / name).write_text("\n".join(lines))
    return folder


@pytest.fixture(scope="session")
def probe_texts() -> Path:
    """The folder of labelled texts, where it lies beside the repository."""
    return _beside_the_repository("probes")


@pytest.fixture(scope="session")
def chromium() -> str:
    """The path of a browser."""
    for name in ("chromium", "chromium-browser", "google-chrome"):
        if found := shutil.which(name):
            return found
    if os.environ.get("CI") == "true":
        pytest.fail("no chromium, chromium-browser or google-chrome is on the PATH, and CI must have one")
    pytest.skip("no chromium, chromium-browser or google-chrome is on the PATH")


@pytest.fixture(scope="module")
def browser(chromium: str) -> Iterator[Any]:
    """That browser, started; its pages are for the tests to open and close."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        yield browser
        browser.close()
