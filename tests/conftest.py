"""What several test files share."""

import os

# Small models gain nothing from threads, and lose much where others use the same cores. Before torch is imported.
os.environ["OMP_NUM_THREADS"] = "1"

from collections.abc import Callable
from pathlib import Path

import pytest

WORDS = "the a state block token model of in and reads writes sees keeps moves gives small large new old open".split()  # noqa: SIM905


def _make_corpus(place: Path) -> Path:
    """A folder with train.txt, valid.txt and test.txt of made-up sentences."""
    folder = place / "corpus"
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
    """Writes the made-up corpus into a given folder."""
    return _make_corpus


@pytest.fixture
def tiny_corpus(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The made-up corpus in a folder of its own, with a cache of its own."""
    monkeypatch.setenv("MU_SOTA_CACHE", str(tmp_path / "cache"))
    return _make_corpus(tmp_path)


@pytest.fixture(scope="session")
def wikitext2() -> Path:
    """The folder of the tokenized WikiText-2, where it lies beside the repository."""
    folder = Path(__file__).parents[2] / "shared/data/wikitext-2"
    if not folder.is_dir():
        pytest.skip(f"WikiText-2 is not at {folder}")
    return folder
