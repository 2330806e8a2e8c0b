"""One source string becomes three splits, cached; every token but the first is scored once."""

import hashlib
import json
import os
import sys
import sysconfig
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from mu_sota.data import corpus as module
from mu_sota.data.corpus import Corpus, EvalWindows, Split, TrainWindows, load_corpus
from mu_sota.data.tokenizer import encode, load, train_bpe
from mu_sota.model.errors import InputError

LINES = "".join(f"Line {i} says something about the number {i * i}, <unk> and <EOS>.\n" for i in range(400))


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of its own for every test."""
    monkeypatch.setenv("MU_SOTA_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_bytes(LINES.encode())
    return path


@pytest.fixture(scope="module")
def pydocs(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return load_corpus("pydocs", vocab_size=1000, cache_dir=tmp_path_factory.mktemp("pydocs"))


@pytest.fixture(scope="module")
def wikitext2_words(wikitext2: Path, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return load_corpus(str(wikitext2), tokenizer="word", cache_dir=tmp_path_factory.mktemp("wikitext2"))


def small(source: Path | str, **options: Any) -> Corpus:
    return load_corpus(str(source), vocab_size=300, **options)


def splits(corpus: Corpus) -> dict[str, Split]:
    return {"train": corpus.train, "validation": corpus.validation, "test": corpus.test}


def texts(corpus: Corpus) -> dict[str, Any]:
    """The documents of every split, read back from its token stream."""
    bos, eos = corpus.tokenizer.bos_token_id, corpus.tokenizer.eos_token_id
    documents = {}
    for name, split in splits(corpus).items():
        assert split.tokens[0] == bos
        assert split.tokens[-1] == eos
        ends = np.flatnonzero(split.tokens == eos)
        starts = [1, *(ends[:-1] + 1)]
        documents[name] = [
            corpus.tokenizer.decode(split.tokens[a:b].astype(int)) for a, b in zip(starts, ends, strict=True)
        ]
    return documents


def write_splits(folder: Path, names: tuple[str, ...] = ("train.txt", "valid.txt", "test.txt")) -> Path:
    folder.mkdir(exist_ok=True)
    for number, name in enumerate(names):
        (folder / name).write_text(f"split {number}\n\nof this corpus", encoding="utf-8")
    return folder


def write_jsonl(path: Path, documents: list[str]) -> Path:
    path.write_text("".join(json.dumps({"id": i, "text": t}) + "\n" for i, t in enumerate(documents)), encoding="utf-8")
    return path


# ---- sources -------------------------------------------------------------------------------------------------------


def test_one_text_is_cut_at_line_ends_without_loss(text_file: Path) -> None:
    corpus = small(text_file)
    pieces = texts(corpus)
    joined = [piece for documents in pieces.values() for piece in documents]
    assert "".join(joined) == LINES
    assert all(piece.endswith("\n") for piece in joined)
    shares = [split.n_bytes / len(LINES) for split in splits(corpus).values()]
    assert shares == pytest.approx([0.9, 0.05, 0.05], abs=0.01)


def test_counts_are_those_of_the_text(text_file: Path) -> None:
    corpus = small(text_file)
    for name, split in splits(corpus).items():
        [text] = texts(corpus)[name]
        assert (split.n_words, split.n_bytes, split.n_documents) == (len(text.split()), len(text.encode()), 1)
        assert split.n_predicted == len(encode(corpus.tokenizer, text)) + 1  # with <EOS>
        assert isinstance(split.tokens, np.memmap)
        assert split.tokens.dtype == np.uint16


def test_large_vocabulary_is_stored_in_32_bits(tmp_path: Path) -> None:
    words = " ".join(f"w{i}" for i in range(70_000))
    for name in ("train", "valid", "test"):
        (tmp_path / f"{name}.txt").write_text(words, encoding="utf-8")
    corpus = load_corpus(str(tmp_path), tokenizer="word")
    assert corpus.train.tokens.dtype == np.uint32
    assert corpus.tokenizer.decode(corpus.train.tokens.astype(int)) == f"<eos> {words} <eos>"


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


@pytest.mark.parametrize("kind", ["jsonl", "parquet", "folder"])
def test_many_documents_are_split_whole_and_disjoint(tmp_path: Path, kind: str) -> None:
    documents = [f"Document {i}\r\nwith <EOS> and é.\n" for i in range(400)]
    source = tmp_path / f"corpus.{kind}"
    if kind == "jsonl":
        write_jsonl(source, [*documents, documents[0], " \n"])  # one twice, one blank
    elif kind == "parquet":
        pyarrow.parquet.write_table(pyarrow.table({"text": [*documents, documents[0], ""]}), source)
    else:
        source.mkdir()
        for i, document in enumerate([*documents, documents[0], "\n"]):
            (source / f"{i}.txt").write_bytes(document.encode())
    found = texts(small(source))
    assert sorted(text for part in found.values() for text in part) == sorted([*documents, documents[0]])
    assert not set(found["train"]) & {*found["validation"], *found["test"]}
    assert not set(found["validation"]) & set(found["test"])
    assert len(found["train"]) == pytest.approx(360, abs=20)
    assert len(found["validation"]) == pytest.approx(20, abs=15)


def test_documents_keep_their_split_when_others_come(tmp_path: Path) -> None:
    documents = [f"Document {i}." for i in range(300)]
    before = texts(small(write_jsonl(tmp_path / "a.jsonl", documents)))
    after = texts(small(write_jsonl(tmp_path / "b.jsonl", ["New."] * 3 + documents)))
    for name in before:
        assert set(before[name]) <= set(after[name])


def test_word_stream_has_an_eos_for_each_line_and_a_first_one_as_context(tmp_path: Path) -> None:
    for name, text in {"train": "a b\n\nc\n", "valid": "b a", "test": "d\n"}.items():
        (tmp_path / f"{name}.txt").write_text(text, encoding="utf-8")
    corpus = load_corpus(str(tmp_path), tokenizer="word")
    streams = {
        name: " ".join(corpus.tokenizer.convert_ids_to_tokens(split.tokens.tolist()))
        for name, split in splits(corpus).items()
    }
    assert streams == {
        "train": "<eos> a b <eos> <eos> c <eos>",
        "validation": "<eos> b a <eos>",
        "test": "<eos> <unk> <eos>",
    }


def test_wikitext2_counts_are_those_of_its_readme(wikitext2: Path, wikitext2_words: Corpus) -> None:
    corpus = wikitext2_words
    assert len(corpus.tokenizer) == 33_278
    rows = [line.split("|")[1:-1] for line in (wikitext2 / "README.md").read_text(encoding="utf-8").splitlines()]
    table = {
        row[0].strip(): [int(cell.replace(",", "")) for cell in row[1:]]
        for row in rows
        if row and row[0].strip().endswith(".txt")
    }
    for name, split in {"train": corpus.train, "valid": corpus.validation, "test": corpus.test}.items():
        words, _, predicted, size = table[f"{name}.txt"]
        assert (split.n_words, split.n_predicted, split.n_bytes) == (words, predicted, size)


def test_pydocs_is_split_by_document_without_shared_prose(pydocs: Corpus) -> None:
    found = texts(pydocs)
    paragraphs = {
        name: {part for text in documents for part in text.rstrip().split("\n\n") if len(part) >= 60}
        for name, documents in found.items()
    }
    assert not paragraphs["train"] & (paragraphs["validation"] | paragraphs["test"])
    assert not paragraphs["validation"] & paragraphs["test"]
    total = sum(split.n_bytes for split in splits(pydocs).values())
    assert 1_500_000 < total < 3_000_000
    for split, share in zip(splits(pydocs).values(), (0.90, 0.05, 0.05), strict=True):
        assert split.n_bytes / total == pytest.approx(share, abs=0.02)


def test_pydocs_holds_the_language_reference_and_docstrings(pydocs: Corpus) -> None:
    everything = "\n".join(text for documents in texts(pydocs).values() for text in documents)
    assert 'The "if" statement is used for conditional execution:' in everything
    assert "Pretty-print a Python object to a stream [default is sys.stdout]." in everything  # pprint.pprint


def test_pydocs_without_its_sources_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sysconfig, "get_paths", lambda: {"stdlib": str(tmp_path)})
    with pytest.raises(InputError, match="no sources of the standard library"):
        load_corpus("pydocs")
    monkeypatch.setitem(sys.modules, "pydoc_data.topics", None)
    with pytest.raises(InputError, match="no module pydoc_data"):
        load_corpus("pydocs")


# ---- the hub -------------------------------------------------------------------------------------------------------


def unreachable(*_: Any, **__: Any) -> Any:
    raise ConnectionError("Couldn't reach 'Salesforce/wikitext' on the Hub")


def test_unreachable_hub_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
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


# ---- the cache -----------------------------------------------------------------------------------------------------


def forbid_tokenizing(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: Any) -> None:
        raise AssertionError("tokenized again")

    for name in ("encode", "train_bpe", "train_words"):
        monkeypatch.setattr(module, name, forbidden)


def test_second_start_does_not_tokenize(text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = small(text_file)
    forbid_tokenizing(monkeypatch)
    second = small(text_file)
    assert texts(first) == texts(second)
    assert first.tokenizer.get_vocab() == second.tokenizer.get_vocab()


def test_pydocs_second_start_does_not_extract(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    documents = {name: ["Some prose."] for name in ("train", "validation", "test")}
    monkeypatch.setattr(module, "_read_pydocs", lambda _: documents)
    small("pydocs")
    monkeypatch.setattr(module, "_read_pydocs", None)
    assert texts(small("pydocs")) == documents


def test_changed_text_or_settings_are_tokenized_anew(text_file: Path) -> None:
    first = small(text_file)
    assert len(load_corpus(str(text_file), vocab_size=280).tokenizer) == 280
    assert len(load_corpus(str(text_file), tokenizer="word").train.tokens) != len(first.train.tokens)
    text_file.write_bytes(LINES.replace("says", "tells").encode())
    assert "tells" in texts(small(text_file))["train"][0]


@pytest.mark.parametrize("file", ["train.npy", "test.npy", "meta.json", "mu_sota_tokenizer.json"])
@pytest.mark.parametrize("damage", ["truncated", "empty", "garbage", "missing"])
def test_damaged_cache_is_rebuilt(text_file: Path, cache: Path, file: str, damage: str) -> None:
    expected = texts(small(text_file))
    [path] = cache.glob(f"*/{file}")
    content = path.read_bytes()
    path.unlink()  # the first corpus still maps the old file
    if damage != "missing":
        path.write_bytes({"truncated": content[: len(content) // 2], "empty": b"", "garbage": b"\xff{]" * 9}[damage])
    assert texts(small(text_file)) == expected
    assert path.read_bytes() == content


def test_cache_with_tokens_missing_is_rebuilt(text_file: Path, cache: Path) -> None:
    expected = texts(small(text_file))
    [path] = cache.glob("*/train.npy")
    tokens = np.load(path)
    path.unlink()
    np.save(path, tokens[:-5])  # a sound file, but not the whole split
    assert texts(small(text_file)) == expected


def test_racing_starts_build_once(text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = []

    def counting(documents: list[str], vocab_size: int) -> Any:
        trained.append(vocab_size)
        return train_bpe(documents, vocab_size)

    monkeypatch.setattr(module, "train_bpe", counting)
    with ThreadPoolExecutor(4) as pool:
        corpora = list(pool.map(small, [text_file] * 4))
    assert trained == [300]
    assert all(texts(corpus) == texts(corpora[0]) for corpus in corpora)


def test_failed_build_leaves_nothing_behind(text_file: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forbid_tokenizing(monkeypatch)
    with pytest.raises(AssertionError):
        small(text_file)
    assert [path for path in cache.iterdir() if path.suffix != ".lock"] == []


def test_unwritable_cache_is_named(text_file: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"The cache .*file/below cannot be written"):
        small(text_file, cache_dir=tmp_path / "file" / "below")


# ---- the same corpus in every version ------------------------------------------------------------------------------


def digest(array: np.ndarray) -> str:
    return hashlib.sha256(array.astype("<i8").tobytes()).hexdigest()[:16]


def test_corpus_of_an_old_run_has_the_same_fingerprint_tokens_and_windows(tiny_corpus: Path) -> None:
    old = Path(__file__).parents[1] / "fixtures" / "old_run"
    corpus = load_corpus(str(tiny_corpus), vocab_size=270)
    assert corpus.fingerprint == json.loads((old / "run.json").read_text())["data_fingerprint"]
    assert corpus.tokenizer.get_vocab() == load(old / "mu_sota_tokenizer.json").get_vocab()
    assert [digest(split.tokens) for split in splits(corpus).values()] == [
        "ee67d5a3465c3735",
        "6e2e733e8bf95c1a",
        "4906e99f771ce51d",
    ]
    for windows, expected in (
        (TrainWindows(corpus.train.tokens, 16, 16), "e3bb07c7f0adac8e"),
        (EvalWindows(corpus.validation.tokens, 16, 8), "22490fcf90d34d05"),
    ):
        items = [torch.stack([windows[i]["input_ids"], windows[i]["shift_labels"]]) for i in range(len(windows))]
        assert digest(torch.stack(items).numpy()) == expected


def test_fingerprint_and_splits_of_documents_stay_as_they_were(tmp_path: Path) -> None:
    source = write_jsonl(tmp_path / "a.jsonl", [f"Document {i}.\n" for i in range(400)])
    by_words, by_bpe = load_corpus(str(source), tokenizer="word"), small(source)
    assert by_words.fingerprint == "3db9a3901ea810392025ee295294a08463509f04a1cb79de3ef3dda6895ae873"
    assert by_bpe.fingerprint == "c7ce153c23431b11f73408c71128bdce279ebed8c56cde5c16f9436dc9286bdd"
    assert [digest(split.tokens) for split in splits(by_words).values()] == [
        "085d801a72c2dfa6",
        "4eb2e924c351a86f",
        "aeb872d28714c51a",
    ]


# ---- a given tokenizer ---------------------------------------------------------------------------------------------


def test_given_tokenizer_is_used_as_it_is(text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = train_bpe(["another text"], 270)
    corpus = load_corpus(str(text_file), tokenizer=tokenizer)
    assert corpus.tokenizer is tokenizer
    assert "".join(text for documents in texts(corpus).values() for text in documents) == LINES
    assert corpus.train.tokens.max() < len(tokenizer)
    forbid_tokenizing(monkeypatch)
    assert texts(load_corpus(str(text_file), tokenizer=tokenizer)) == texts(corpus)
    with pytest.raises(AssertionError, match="tokenized again"):
        load_corpus(str(text_file), tokenizer=train_bpe(["yet another"], 270))


def test_tokenizer_without_an_end_is_refused(text_file: Path) -> None:
    tokenizer = train_bpe(["text"], 270)
    tokenizer.eos_token = None
    with pytest.raises(InputError, match="no end-of-text token"):
        load_corpus(str(text_file), tokenizer=tokenizer)


def test_unknown_tokenizer_is_named(text_file: Path) -> None:
    with pytest.raises(InputError, match="Unknown tokenizer 'bytes': give bpe, word"):
        load_corpus(str(text_file), tokenizer="bytes")  # type: ignore[arg-type]


# ---- what users get wrong ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"", "holds no text"),
        ("a.txt", b" \n\t\n", "holds no text"),
        ("a.txt", b"one line", "empty validation split"),
        ("a.txt", b"ok\nno\xff\n", "a.txt, line 2: byte 0xff is not UTF-8"),
        ("a.csv", b"text", "a.csv is not a .txt, .jsonl, .parquet file"),
        ("a.jsonl", b'{"text": "a"}\n\n{"text": \n', "a.jsonl, line 3 is not JSON"),
        ("a.jsonl", b'{"text": "\xff"}\n', "a.jsonl, line 1 is not JSON"),
        ("a.jsonl", b'["text"]\n', "a.jsonl, line 1 is not a JSON object"),
        ("a.jsonl", b'{"body": "a", "id": 1}\n', r"line 1 has no field `text` \(fields: body, id\)"),
        ("a.jsonl", b'{"text": 3}\n', "line 1 has a field `text` of type int"),
        ("a.jsonl", b'{"text": "\\ud800"}\n', "line 1 escapes a lone surrogate"),
        ("a.parquet", b"no parquet", "a.parquet is not a readable parquet file"),
    ],
)
def test_bad_file_is_named(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        small(tmp_path / name)


def test_bad_parquet_columns_are_named(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"body": ["a"], "id": [1]}), path)
    with pytest.raises(InputError, match=r"no column `text` \(columns: body, id\)"):
        small(path)
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", None]}), path)
    with pytest.raises(InputError, match="row 2: `text` is of type NoneType"):
        small(path)


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


def test_file_without_permission_is_named(text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", denied)  # file modes do not bind root, as whom containers run
    with pytest.raises(InputError, match=r"text.txt cannot be read \(Permission denied\): check its permissions"):
        small(text_file)


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


# ---- windows -------------------------------------------------------------------------------------------------------


@given(n=st.integers(2, 80), window=st.integers(1, 40), stride=st.integers(1, 50))
def test_train_windows_are_the_slices_they_promise(n: int, window: int, stride: int) -> None:
    tokens = np.arange(n, dtype=np.uint16)
    if n < window + 1:
        with pytest.raises(InputError, match=f"{n} tokens, a window of {window} needs {window + 1}"):
            TrainWindows(tokens, window, stride)
        return
    windows = TrainWindows(tokens, window, stride)
    starts = [start for start in range(0, n, stride) if start + window + 1 <= n]
    assert [item["input_ids"].tolist() for item in (windows[i] for i in range(len(windows)))] == [
        list(range(start, start + window)) for start in starts
    ]
    for i in range(len(windows)):
        assert torch.equal(windows[i]["shift_labels"], windows[i]["input_ids"] + 1)


@given(n=st.integers(2, 120), window=st.integers(1, 40), data=st.data())
def test_eval_windows_score_every_target_once_with_its_context(n: int, window: int, data: st.DataObject) -> None:
    stride = data.draw(st.integers(1, window))
    tokens = np.arange(n, dtype=np.uint32)
    windows = EvalWindows(tokens, window, stride)
    scored = []
    for i in range(len(windows)):
        inputs, labels = windows[i]["input_ids"].tolist(), windows[i]["shift_labels"].tolist()
        assert len(inputs) == len(labels) == min(window, n - 1)
        for t, label in enumerate(labels):
            if label != -100:
                assert label == inputs[t] + 1
                context = inputs[: t + 1]
                assert context == list(range(label - len(context), label))
                assert len(context) >= min(label, window - stride)
                scored.append(label)
    assert sorted(scored) == list(range(1, n))


def test_windows_go_through_a_loader(text_file: Path) -> None:
    tokens = small(text_file).train.tokens
    batch = next(iter(DataLoader(TrainWindows(tokens, 32, 16), batch_size=4)))
    assert batch["input_ids"].shape == batch["shift_labels"].shape == (4, 32)
    assert batch["input_ids"].dtype == batch["shift_labels"].dtype == torch.int64
    loaded = list(DataLoader(EvalWindows(tokens, 32, 16), batch_size=1000))
    assert sum(int((batch["shift_labels"] != -100).sum()) for batch in loaded) == len(tokens) - 1


def test_windows_end() -> None:
    tokens = np.arange(100, dtype=np.uint16)
    for windows in (TrainWindows(tokens, 10, 5), EvalWindows(tokens, 10, 5)):
        assert torch.equal(windows[-1]["input_ids"], windows[len(windows) - 1]["input_ids"])
        with pytest.raises(IndexError):
            windows[len(windows)]


@pytest.mark.parametrize("kind", [TrainWindows, EvalWindows])
@pytest.mark.parametrize(("window", "stride", "message"), [(0, 1, "window is 0"), (4, 0, "stride is 0")])
def test_window_sizes_are_positive(kind: type, window: int, stride: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        kind(np.arange(9), window, stride)


def test_eval_windows_refuse_gaps_and_nothing_to_score() -> None:
    with pytest.raises(InputError, match="stride 5 is longer than the window 4"):
        EvalWindows(np.arange(9), 4, 5)
    with pytest.raises(InputError, match="has 1 tokens, and at least 2"):
        EvalWindows(np.arange(1))


def test_windows_of_wikitext2_are_as_many_as_the_arithmetic_says(wikitext2_words: Corpus) -> None:
    train = wikitext2_words.train.tokens
    assert len(train) == 2_088_628 + 1
    assert len(TrainWindows(train, 512, 256)) == (2_088_629 - 513) // 256 + 1 == 8157
    assert len(EvalWindows(train, 512, 512)) == -(-2_088_628 // 512) == 4080
