"""Names, files and folders a text can be had from."""

import os
import time
from pathlib import Path
from typing import Any

import pytest
from made_up_text import small, texts, write_jsonl, write_splits

from mu_sota.data.corpus import load_corpus
from mu_sota.model.errors import InputError

pytestmark = pytest.mark.usefixtures("cache")


@pytest.mark.parametrize("validation", ["valid", "validation", "val", "dev"])
def test_folder_with_split_files_keeps_them(tmp_path: Path, validation: str) -> None:
    folder = write_splits(tmp_path / "corpus", ("train.txt", f"{validation}.txt", "test.txt"))
    (folder / "README.md").write_text("not a split", encoding="utf-8")
    assert texts(small(folder)) == {
        name: [f"split {i}\n\nof this corpus"] for i, name in enumerate(("train", "validation", "test"))
    }


def test_shards_of_a_split_belong_together(tmp_path: Path) -> None:
    for name in ("train-00000-of-00002", "train-00001-of-00002", "valid-00000-of-00001", "test-00000-of-00001"):
        write_jsonl(tmp_path / f"{name}.jsonl", [name])
    assert texts(small(tmp_path))["train"] == ["train-00000-of-00002", "train-00001-of-00002"]


def test_unknown_source_says_what_exists(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"no data named 'wikitext-3'.*`pydocs`, `wikitext-2`, or the path"):
        small("wikitext-3")
    with pytest.raises(InputError, match=r"holds no .txt, .jsonl, .parquet file"):
        small(tmp_path)


def test_incomplete_or_ambiguous_splits_are_named(tmp_path: Path) -> None:
    folder = write_splits(tmp_path / "corpus", ("train.txt", "test.txt"))
    with pytest.raises(InputError, match=r"none for validation: add valid.txt"):
        small(folder)
    write_splits(folder, ("valid.txt", "dev.txt"))
    with pytest.raises(InputError, match=r"more than one validation file \(dev.txt, valid.txt\)"):
        small(folder)
    (folder / "dev.txt").unlink()
    (folder / "valid.txt").write_bytes(b"")
    with pytest.raises(InputError, match="empty validation split"):
        small(folder)


def test_folder_without_permission_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: Path) -> Any:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "iterdir", denied)
    with pytest.raises(InputError, match=r"cannot be read \(Permission denied\)"):
        small(tmp_path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no named pipes here")
def test_neither_file_nor_folder_is_named(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(InputError, match="neither a file nor a folder"):
        small(tmp_path / "pipe")


# ---- the hub -------------------------------------------------------------------------------------------------------


def unreachable(*_: Any, **__: Any) -> Any:
    raise ConnectionError("Couldn't reach 'Salesforce/wikitext' on the Hub")


def test_unreachable_hub_is_an_error_of_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets.config
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "get_session", unreachable)
    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    before = datasets.config.HF_HUB_OFFLINE
    with pytest.raises(InputError, match=r"Hugging Face hub.*--data pydocs, or a folder with train.txt, valid.txt"):
        load_corpus("wikitext-2")
    assert before == datasets.config.HF_HUB_OFFLINE


def test_unreachable_hub_is_not_retried(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import datasets.config
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "get_session", unreachable)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    started = time.monotonic()
    with pytest.raises(InputError, match="Hugging Face hub"):
        load_corpus("wikitext-2")
    assert time.monotonic() - started < 5


def test_downloaded_wikitext_is_opened_from_the_cache_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets.config
    import huggingface_hub

    class Session:
        def head(self, *_: Any, **__: Any) -> None: ...

    rows = {
        split: {"text": ["", " = Title = \n", f" Text of {split} .\n"]} for split in ("train", "validation", "test")
    }
    monkeypatch.setattr(huggingface_hub, "get_session", Session)
    monkeypatch.setattr(datasets, "load_dataset", lambda *_: rows)
    first = texts(small("wikitext-2"))
    assert first == {split: [f" = Title = \n Text of {split} .\n"] for split in rows}
    monkeypatch.setattr(datasets, "load_dataset", unreachable)
    assert texts(small("wikitext-2")) == first
