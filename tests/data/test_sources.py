"""Names, files and folders a text can be had from."""

import os
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from made_up_text import LINES, small, texts, write_jsonl, write_splits

from mu_sota.data import folders, sources
from mu_sota.data.corpus import load_corpus
from mu_sota.data.description import describe
from mu_sota.data.folders import find_files
from mu_sota.data.options import TextOptions
from mu_sota.data.sources import find_source
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
    with pytest.raises(InputError, match=r"no data named 'wikitext-3'.*`pydocs`, `wikitext-2`, the path"):
        small("wikitext-3")
    with pytest.raises(InputError, match=r"holds no text file \(it is empty"):
        small(tmp_path)


def test_a_missing_split_is_taken_from_the_training_text(tmp_path: Path) -> None:
    folder = write_splits(tmp_path / "corpus", ("train.txt", "test.txt"))
    (folder / "train.txt").write_text(LINES)
    found = texts(small(folder))
    assert "".join(found["train"] + found["validation"]) == LINES
    assert len("".join(found["validation"])) / len(LINES) == pytest.approx(0.05, abs=0.01)
    assert found["test"] == ["split 1\n\nof this corpus"]


def test_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "blank.txt").write_text(" \n")
    with pytest.raises(InputError, match=r"blank.txt holds no text: give a file or folder that does"):
        small(tmp_path / "blank.txt")


def test_an_empty_split_is_named(tmp_path: Path) -> None:
    folder = write_splits(tmp_path / "corpus")
    (folder / "valid.txt").write_bytes(b"")
    with pytest.raises(InputError, match="empty validation split"):
        small(folder)


def test_folder_without_permission_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: Path) -> Any:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(os, "scandir", denied)
    with pytest.raises(InputError, match=r"cannot be read \(Permission denied\)"):
        small(tmp_path)


def test_an_empty_name_is_no_name(tmp_path: Path) -> None:
    """A shell gives it for a variable without a value; it was taken for `pydocs`, or for the current folder."""
    for name in ("", " "):
        with pytest.raises(InputError, match=r"--data is empty \(a variable without a value\?\)"):
            small(name)


def test_a_file_is_taken_by_its_name_whatever_its_ending(tmp_path: Path) -> None:
    (tmp_path / "corpus.xyz").write_text(LINES)
    assert "".join(text for part in texts(small(tmp_path / "corpus.xyz")).values() for text in part) == LINES
    (tmp_path / "corpus.bin").write_bytes(bytes(range(256)) * 100)
    with pytest.raises(InputError, match=r"corpus.bin"):
        small(tmp_path / "corpus.bin")


@pytest.mark.usefixtures("settled")
def test_a_text_that_changes_in_size_or_time_is_read_again(tmp_path: Path, cache: Path) -> None:
    """The hash of a large file is remembered; the same name with other bytes is another text."""
    file = tmp_path / "large.txt"
    file.write_text(LINES * 60)
    first = small(file).fingerprint
    assert len([*cache.glob("digests/*.json")]) == 1
    assert small(file).fingerprint == first
    file.write_text(LINES[:-2] + "?\n" + LINES * 59)
    assert small(file).fingerprint != first


@pytest.mark.usefixtures("settled")
def test_an_unchanged_folder_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where its tokens are to be other ones: the files are those of the first time."""
    folder = write_splits(tmp_path / "corpus")
    (folder / "notes.md").write_text("left out")
    first = small(folder)

    def forbidden(*_: Any) -> Any:
        raise AssertionError("looked at again")

    monkeypatch.setattr(sources, "digest", forbidden)
    monkeypatch.setattr(folders, "find_files", forbidden)
    second = small(folder)
    assert (texts(second), second.fingerprint, second.about) == (texts(first), first.fingerprint, first.about)
    other = load_corpus(str(folder), vocab_size=280)
    assert (texts(other), other.about) == (texts(first), first.about)


CHANGES: dict[str, Callable[[Path], object]] = {
    "other bytes": lambda folder: (folder / "train.txt").write_text("split 9\n\nof this corpus"),
    "a new file": lambda folder: (folder / "train2.txt").write_text("more"),
    "a file less": lambda folder: (folder / "test.txt").unlink(),
    "another name": lambda folder: (folder / "dev.txt").rename(folder / "eval.txt"),
    "a read-me": lambda folder: (folder / "README.md").write_text(
        "---\nconfigs:\n- config_name: a\n  data_files:\n  - {split: train, path: dev.txt}\n---\n"
    ),
}


@pytest.mark.usefixtures("settled")
@pytest.mark.parametrize("change", CHANGES)
def test_a_folder_that_changes_is_read_again(tmp_path: Path, change: str) -> None:
    folder = write_splits(tmp_path / "corpus", ("train.txt", "dev.txt", "test.txt"))
    before = find_source(str(folder), TextOptions(), tmp_path / "cache").fingerprint
    CHANGES[change](folder)
    after = find_source(str(folder), TextOptions(), tmp_path / "cache").fingerprint
    assert after == find_source(str(folder), TextOptions(), tmp_path / "no cache").fingerprint
    assert after != before


def test_another_name_alone_is_another_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a file keeps its stamp under it, as on Windows."""
    monkeypatch.setattr(sources, "stamp_of", lambda status: [status.st_size, 1, 1, 1])
    folder = write_splits(tmp_path / "corpus", ("train.txt", "dev.txt", "test.txt"))
    before = find_source(str(folder), TextOptions(), tmp_path / "cache").fingerprint
    (folder / "dev.txt").rename(folder / "eval.txt")
    assert find_source(str(folder), TextOptions(), tmp_path / "cache").fingerprint != before


@pytest.mark.usefixtures("settled")
def test_a_folder_that_changes_while_it_is_read_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that was there for a moment is not remembered."""
    folder = write_splits(tmp_path / "corpus")
    expected = find_source(str(folder), TextOptions(), tmp_path / "another").fingerprint
    with monkeypatch.context() as patch:

        def meanwhile(*arguments: Any) -> Any:
            (folder / "train2.txt").write_text("more")
            return find_files(*arguments)

        patch.setattr(folders, "find_files", meanwhile)
        assert find_source(str(folder), TextOptions(), tmp_path / "cache").fingerprint != expected
    (folder / "train2.txt").unlink()
    assert find_source(str(folder), TextOptions(), tmp_path / "cache").fingerprint == expected


@pytest.mark.usefixtures("settled")
def test_what_is_remembered_of_a_folder_is_damaged(tmp_path: Path) -> None:
    folder = write_splits(tmp_path / "corpus")
    before = find_source(str(folder), TextOptions(), tmp_path / "cache").fingerprint
    [memory] = tmp_path.glob("cache/listings/*.json")
    memory.write_text(memory.read_text().replace("train.txt", "tr\u0001in.txt"))
    assert find_source(str(folder), TextOptions(), tmp_path / "cache").fingerprint == before


@pytest.mark.usefixtures("settled")
def test_other_rules_of_what_is_taken_are_other_memories(tmp_path: Path) -> None:
    folder = write_splits(tmp_path / "corpus")
    by_names = find_source(str(folder), TextOptions(), tmp_path / "cache")
    by_content = find_source(str(folder), TextOptions(splits="content"), tmp_path / "cache")
    assert [set(by_names.parts), set(by_content.parts)] == [{"train", "validation", "test"}, {"all"}]


@pytest.mark.parametrize("size", ["small", "large"])
def test_what_was_written_to_lately_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, size: str) -> None:
    """Two changes within one tick of the file system's clock: stamps do not tell them apart."""
    now = time.time_ns()
    monkeypatch.setattr(sources, "stamp_of", lambda status: [status.st_size, now, now, 1])
    times = 1 if size == "small" else 100_000
    folder = write_splits(tmp_path / "corpus")
    fingerprints = []
    for text in ("one text here.\n", "two text here.\n"):
        (folder / "train.txt").write_text(text * times)
        fingerprints.append(find_source(str(folder), TextOptions(), tmp_path / "cache").fingerprint)
    assert fingerprints[0] != fingerprints[1]


@pytest.mark.usefixtures("settled")
def test_nothing_can_be_remembered(tmp_path: Path) -> None:
    """A cache that others have filled can be used by those who may not write to it."""
    folder = write_splits(tmp_path / "corpus")
    (folder / "train.txt").write_text(LINES * 60)
    (tmp_path / "file").touch()
    found = [find_source(str(folder), TextOptions(), tmp_path / cache).fingerprint for cache in ("file/below", "cache")]
    assert found[0] == found[1]


# ---- text that stands in two splits -------------------------------------------------------------------------------


def test_a_split_that_is_the_training_text_is_refused(tmp_path: Path) -> None:
    folder = write_splits(tmp_path / "corpus")
    (folder / "valid.txt").write_text((folder / "train.txt").read_text())
    with pytest.raises(InputError, match=r"all of the validation split \(1 whole document\) stands in the training"):
        small(folder)
    allowed = small(folder, options=TextOptions(overlap="allow"))
    assert allowed.about["overlap"]["validation"]["documents"] == 1


def test_a_split_whose_lines_are_those_of_the_training_text_is_refused(tmp_path: Path) -> None:
    """Also from the cache, and though its document is another one."""
    folder = write_splits(tmp_path / "corpus")
    lines = [
        f"The line {i} is so long that it can hardly stand in two texts by chance, {'so ' * 20}one thinks.\n"
        for i in range(40)
    ]
    (folder / "train.txt").write_text("".join(lines))
    (folder / "test.txt").write_text("".join(lines[:20]))
    for _ in range(2):
        with pytest.raises(InputError, match=r"all of the test split \(20 long lines\)"):
            small(folder)
    assert small(folder, options=TextOptions(overlap="allow")).about["overlap"]["test"]["lines"] == 20


def test_what_stands_twice_is_counted_and_said(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "train.jsonl", [*(f"Document {i}." for i in range(50)), "Document 0.", "Document 1."])
    write_jsonl(tmp_path / "valid.jsonl", ["Document 3.", "Another one.", "Document 4."])
    write_jsonl(tmp_path / "test.jsonl", ["New."])
    corpus = small(tmp_path)
    assert corpus.about["repeats"] == 2
    assert corpus.about["overlap"]["validation"] == {"documents": 2, "of_documents": 3, "lines": 0, "of_lines": 0}
    said = "\n".join(describe(corpus))
    assert "2 training documents are equal to earlier ones" in said
    assert "Of validation, 2 of 3 documents" in said
    assert "Of test" not in said
    assert "The test split is small" in said


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


class Hub:
    """A data set of the hub: three splits, streamed or not."""

    ROWS: dict[str, list[dict[str, Any]]] = {
        "train": [{"id": i, "text": f"Row {i} of train, which is long enough.\n"} for i in range(300)],
        "validation": [{"id": 0, "text": "A row of validation."}, {"id": 1, "text": None}],
        "unsupervised": [{"id": 0, "text": "never read"}],
    }

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        import datasets
        import huggingface_hub

        self.streamed: list[bool] = []
        self.read = 0
        monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *_, **__: SimpleNamespace(sha="abcdef" * 7))
        monkeypatch.setattr(datasets, "get_dataset_split_names", lambda *_, **__: [*self.ROWS])
        monkeypatch.setattr(datasets, "load_dataset", self.load)

    def load(self, name: str, config: str | None, *, split: str, revision: str, streaming: bool) -> Any:
        assert (name, config, revision) == ("owner/name", None, "abcdef" * 7)
        self.streamed.append(streaming)
        for row in self.ROWS[split]:
            self.read += 1
            yield row


def test_a_data_set_of_the_hub_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(monkeypatch)
    corpus = small("owner/name")
    found = texts(corpus)
    assert sorted(found["train"] + found["test"]) == sorted(row["text"] for row in hub.ROWS["train"])
    assert found["validation"] == ["A row of validation."]
    assert "owner/name: 1 null row was left out." in corpus.about["lines"]
    assert corpus.about["lines"][0] == "owner/name at abcdefabcdef: train, validation; not unsupervised"
    assert not any(hub.streamed)


def test_the_most_of_a_text_is_streamed_and_no_more_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(monkeypatch)
    corpus = small("owner/name", options=TextOptions(text_bytes=2000))
    assert all(hub.streamed)
    assert 1500 < corpus.train.n_bytes + corpus.test.n_bytes < 2100
    assert hub.read < 300


def test_a_hub_that_does_not_know_a_name_is_an_error_of_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", unreachable)
    with pytest.raises(
        InputError, match=r"no file or folder owner/none, and no data set of that name.*set data_config"
    ):
        small("owner/none")
