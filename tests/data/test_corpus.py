"""Three splits of token ids and their tokenizer, cached."""

import hashlib
import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from made_up_text import LINES, small, splits, texts, write_jsonl
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from mu_sota.common.files import checksum
from mu_sota.data import building
from mu_sota.data import corpus as module
from mu_sota.data import tokenizer as tokenizer_module
from mu_sota.data.corpus import Corpus, load_corpus, save_corpus
from mu_sota.data.tokenizer import encode, load_tokenizer, train_bpe
from mu_sota.data.windows import EvalWindows, TrainWindows
from mu_sota.model.errors import InputError

pytestmark = pytest.mark.usefixtures("cache")


@pytest.fixture(scope="module")
def wikitext2_words(wikitext2: Path, tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    return load_corpus(str(wikitext2), tokenizer="word", cache_dir=tmp_path_factory.mktemp("wikitext2"))


def test_counts_are_those_of_the_text(text_file: Path) -> None:
    corpus = small(text_file)
    for name, split in splits(corpus).items():
        [text] = texts(corpus)[name]
        assert (split.n_words, split.n_bytes, split.n_documents) == (len(text.split()), len(text.encode()), 1)
        assert split.n_predicted == len(encode(corpus.tokenizer, text)) + 1  # with <EOS>
        assert isinstance(split.tokens, np.memmap)
        assert split.tokens.dtype == np.uint16


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


def forbid_tokenizing(monkeypatch: pytest.MonkeyPatch) -> None:
    def forbidden(*_: Any) -> None:
        raise AssertionError("tokenized again")

    for name in ("survey", "train_bpe", "train_words"):
        monkeypatch.setattr(module, name, forbidden)
    monkeypatch.setattr(building, "encode_batch", forbidden)


def test_second_start_does_not_tokenize(text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = small(text_file)
    forbid_tokenizing(monkeypatch)
    second = small(text_file)
    assert texts(first) == texts(second)
    assert first.tokenizer.get_vocab() == second.tokenizer.get_vocab()


def test_changed_text_or_settings_are_tokenized_anew(text_file: Path) -> None:
    first = small(text_file)
    assert len(load_corpus(str(text_file), vocab_size=280).tokenizer) == 280
    assert len(load_corpus(str(text_file), tokenizer="word").train.tokens) != len(first.train.tokens)
    text_file.write_bytes(LINES.replace("says", "tells").encode())
    assert "tells" in texts(small(text_file))["train"][0]


def damaged(content: bytes, damage: str) -> bytes:
    middle = len(content) // 2
    flipped = content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :]
    header = content[:9] + bytes([content[9] ^ 1]) + content[10:]
    return {
        "truncated": content[:middle],
        "empty": b"",
        "garbage": b"\xff{]" * 9,
        "flipped": flipped,
        "header": header,
    }[damage]


@pytest.mark.parametrize("file", ["train.npy", "test.npy", "meta.json", "mu_sota_tokenizer.json"])
@pytest.mark.parametrize("damage", ["truncated", "empty", "garbage", "flipped", "header", "missing"])
@pytest.mark.usefixtures("settled")
def test_damaged_cache_is_rebuilt(text_file: Path, cache: Path, file: str, damage: str) -> None:
    expected = texts(small(text_file))
    [path] = cache.glob(f"*/{file}")
    content = path.read_bytes()
    path.unlink()  # the first corpus still maps the old file
    if damage != "missing":
        path.write_bytes(damaged(content, damage))
    assert texts(small(text_file)) == expected
    assert path.read_bytes() == content


def test_cache_that_lacks_tokens_is_rebuilt(text_file: Path, cache: Path) -> None:
    expected = texts(small(text_file))
    [path] = cache.glob("*/train.npy")
    tokens = np.load(path)
    path.unlink()
    np.save(path, tokens[:-5])  # a sound file that lacks the end of the split
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
    assert {path.suffix for path in cache.iterdir()} <= {".lock", ".building"}


def test_unwritable_cache_is_named(text_file: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"The cache .*file/below cannot be written"):
        small(text_file, cache_dir=tmp_path / "file" / "below")


def digest(array: np.ndarray) -> str:
    return hashlib.sha256(array.astype("<i8").tobytes()).hexdigest()[:16]


def test_corpus_of_an_old_run_has_the_same_fingerprint_tokens_and_windows(tiny_corpus: Path) -> None:
    old = Path(__file__).parents[1] / "fixtures" / "old_run"
    corpus = load_corpus(str(tiny_corpus), vocab_size=270)
    assert corpus.fingerprint == json.loads((old / "run.json").read_text())["data_fingerprint"]
    assert corpus.tokenizer.get_vocab() == load_tokenizer(old / "mu_sota_tokenizer.json").get_vocab()
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
    assert by_words.fingerprint == "b90a65bd61f3dca4e9de42c4cae775a6a5dcadc67e52dc19f6dc95a0ca869d79"
    assert by_bpe.fingerprint == "23e889e162dc256dd3ed53505fe00eea5dc428960eb1e9d1814ee909a0748fbe"
    assert [digest(split.tokens) for split in splits(by_words).values()] == [
        "fcf223051210c8d7",
        "9b8cb651f96d220c",
        "f9cb1a625c5b9368",
    ]


def test_trained_tokenizer_is_used_unchanged(text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer = train_bpe(["another text"], 270)
    corpus = load_corpus(str(text_file), tokenizer=tokenizer)
    assert corpus.tokenizer is tokenizer
    assert "".join(text for documents in texts(corpus).values() for text in documents) == LINES
    assert corpus.train.tokens.max() < len(tokenizer)
    forbid_tokenizing(monkeypatch)
    assert texts(load_corpus(str(text_file), tokenizer=tokenizer)) == texts(corpus)
    with pytest.raises(AssertionError, match="tokenized again"):
        load_corpus(str(text_file), tokenizer=train_bpe(["yet another"], 270))


def test_a_tokenizer_of_others_keeps_its_vocabulary_and_its_marks(text_file: Path, tmp_path: Path) -> None:
    """By the name of its folder; also prepared, and without a beginning of text."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320, special_tokens=["<|end|>"], initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    backend.train_from_iterator([LINES], trainer)
    theirs = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|end|>")
    theirs.save_pretrained(tmp_path / "theirs")
    corpus = load_corpus(str(text_file), tokenizer=str(tmp_path / "theirs"))
    end = theirs.convert_tokens_to_ids("<|end|>")
    assert len(corpus.tokenizer) == 320
    assert corpus.train.tokens[0] == corpus.train.tokens[-1] == end
    assert corpus.tokenizer.pad_token_id == corpus.tokenizer.eos_token_id == end
    text = str(theirs.decode(corpus.train.tokens[1:-1].astype(int)))
    assert LINES.startswith(text)
    assert len(text) > 0.8 * len(LINES)
    save_corpus(corpus, tmp_path / "prepared")
    again = load_corpus(str(tmp_path / "prepared"))
    assert (again.train.tokens == corpus.train.tokens).all()
    assert again.tokenizer.get_vocab() == theirs.get_vocab()
    assert again.asked == {"tokenizer": str(tmp_path / "theirs")}


def test_a_stopped_call_is_gone_on_with_and_says_so(
    text_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = texts(small(text_file, cache_dir=text_file.parent / "other"))
    real = building.encode_batch
    calls: list[int] = []

    def stopped(known: Any, batch: list[str]) -> Any:
        calls.append(len(batch))
        if len(calls) == 3:
            raise KeyboardInterrupt
        return real(known, batch)

    monkeypatch.setattr(building, "_BATCH", 1)
    monkeypatch.setattr(building, "_SAVE_EVERY", 1)
    monkeypatch.setattr(building, "encode_batch", stopped)
    with pytest.raises(KeyboardInterrupt):
        small(text_file)
    assert "the same command goes on from there" in capsys.readouterr().err
    monkeypatch.setattr(module, "train_bpe", None)  # the tokenizer is there already
    assert texts(small(text_file)) == expected
    assert len(calls) == 4  # the pieces of the three splits, the last one twice


def test_tokenizer_without_an_end_is_refused(text_file: Path) -> None:
    tokenizer = train_bpe(["text"], 270)
    tokenizer.eos_token = None
    with pytest.raises(InputError, match="no end-of-text token"):
        load_corpus(str(text_file), tokenizer=tokenizer)


def test_unknown_tokenizer_is_named(text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(name: str) -> Any:
        raise OSError(f"{name} is not a local folder and is not a valid model identifier")

    monkeypatch.setattr(tokenizer_module.AutoTokenizer, "from_pretrained", unreachable)
    with pytest.raises(InputError, match="no tokenizer 'bytes': give bpe, word, the folder of a trained tokenizer"):
        load_corpus(str(text_file), tokenizer="bytes")


# ---- prepared folders ----------------------------------------------------------------------------------------------


@pytest.fixture
def prepared(text_file: Path, tmp_path: Path) -> Path:
    save_corpus(small(text_file), tmp_path / "prepared")
    return tmp_path / "prepared"


@pytest.mark.usefixtures("settled")
def test_prepared_folder_gives_the_same_corpus_without_text_or_cache(
    text_file: Path, prepared: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    expected = small(text_file)
    text_file.unlink()
    forbid_tokenizing(monkeypatch)
    (tmp_path / "none").touch()  # no cache can be made there
    for options in ({}, {"tokenizer": "bpe"}, {"vocab_size": 300}, {"tokenizer": expected.tokenizer}):
        corpus = load_corpus(str(prepared), cache_dir=tmp_path / "none", **options)
        assert texts(corpus) == texts(expected)
        assert (corpus.fingerprint, corpus.asked) == (expected.fingerprint, {"tokenizer": "bpe", "vocab_size": 300})
        assert corpus.train.n_bytes == expected.train.n_bytes
    save_corpus(corpus, tmp_path / "again")
    assert (tmp_path / "again" / "meta.json").read_text() == (prepared / "meta.json").read_text()


@pytest.fixture
def summed(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The files that are read for their checksums."""
    read: list[Path] = []

    def noted(file: Path) -> str:
        read.append(file)
        return checksum(file)

    monkeypatch.setattr(module, "checksum", noted)
    return read


@pytest.mark.usefixtures("settled")
def test_checksums_are_read_once_and_of_what_has_changed(text_file: Path, tmp_path: Path, summed: list[Path]) -> None:
    """In the cache and in a prepared folder, which is read once wherever it comes to."""
    save_corpus(small(text_file), tmp_path / "prepared")
    small(tmp_path / "prepared")
    summed.clear()
    small(text_file)
    small(tmp_path / "prepared")
    assert summed == []
    (tmp_path / "prepared" / "test.npy").touch()
    small(tmp_path / "prepared")
    assert summed == [tmp_path / "prepared" / "test.npy"]
    summed.clear()
    shutil.copytree(tmp_path / "prepared", tmp_path / "carried")
    small(tmp_path / "carried")
    assert len(summed) == 4
    summed.clear()
    small(tmp_path / "carried", cache_dir=tmp_path / "of another")
    assert len(summed) == 4


@pytest.mark.usefixtures("settled")
def test_what_is_remembered_of_checksums_is_damaged(prepared: Path, cache: Path, summed: list[Path]) -> None:
    small(prepared)
    for memory in cache.glob("verified/*.json"):
        memory.write_text(memory.read_text().replace("npy", "npx"))
    summed.clear()
    small(prepared)
    assert len(summed) == 4


def test_checksums_of_what_was_written_to_lately_are_read_again(
    prepared: Path, summed: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two changes within one tick of the file system's clock: stamps do not tell them apart."""
    now = time.time_ns()
    monkeypatch.setattr(module, "stamp_of", lambda status: [status.st_size, now, now, 1])
    for _ in range(2):
        summed.clear()
        small(prepared)
        assert len(summed) == 4


def test_prepared_folder_knows_the_tokenizer_of_a_model_that_was_trained_on_it(prepared: Path, tmp_path: Path) -> None:
    """However it was saved."""
    load_corpus(str(prepared)).tokenizer.save_pretrained(tmp_path / "saved")
    assert load_corpus(str(prepared), tokenizer=load_tokenizer(tmp_path / "saved")).train.n_documents == 1
    with pytest.raises(InputError, match="prepared with another tokenizer than the given one: give the text itself"):
        load_corpus(str(prepared), tokenizer=train_bpe(["another text"], 270))


def test_prepared_folder_is_not_taken_for_another_vocabulary(text_file: Path, prepared: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"with vocab_size=300, and vocab_size=4096 is asked for: set vocab_size=300"):
        load_corpus(str(prepared), vocab_size=4096)
    with pytest.raises(InputError, match="with tokenizer=bpe, and tokenizer=word is asked for"):
        load_corpus(str(prepared), tokenizer="word")
    save_corpus(load_corpus(str(text_file), tokenizer="word"), tmp_path / "words")
    assert load_corpus(str(tmp_path / "words"), tokenizer="word", vocab_size=50_000).asked == {"tokenizer": "word"}
    with pytest.raises(InputError, match="with tokenizer=word, and tokenizer=bpe is asked for"):
        load_corpus(str(tmp_path / "words"), tokenizer="bpe", vocab_size=50_000)


@pytest.mark.parametrize("file", ["train.npy", "test.npy", "meta.json", "mu_sota_tokenizer.json"])
@pytest.mark.parametrize("damage", ["truncated", "empty", "garbage", "flipped", "header", "missing"])
@pytest.mark.usefixtures("settled")
def test_damaged_prepared_folder_is_named_and_never_taken_for_text(prepared: Path, file: str, damage: str) -> None:
    small(prepared)  # whose files are remembered as sound
    for split in ("train", "valid", "test"):
        (prepared / f"{split}.txt").write_text("some text")
    path = prepared / file
    content = path.read_bytes()
    path.unlink()
    if damage != "missing":
        path.write_bytes(damaged(content, damage))
    state = "missing" if damage == "missing" else "damaged"
    with pytest.raises(InputError, match=rf"prepared/{file} is {state}: copy the prepared folder again"):
        small(prepared)


@pytest.mark.parametrize("change", [lambda tokens: tokens[:-5], lambda tokens: tokens + 300])
def test_prepared_tokens_that_are_not_those_of_the_record_are_refused(prepared: Path, change: Any) -> None:
    tokens = np.load(prepared / "validation.npy")
    np.save(prepared / "validation.npy", change(tokens))
    with pytest.raises(InputError, match=r"validation\.npy is damaged"):
        small(prepared)


def test_what_cannot_be_prepared_is_said(text_file: Path, prepared: Path) -> None:
    with pytest.raises(InputError, match="prepared is there already"):
        save_corpus(small(text_file), prepared)
    with pytest.raises(InputError, match="trained tokenizer cannot be prepared"):
        save_corpus(load_corpus(str(text_file), tokenizer=train_bpe(["text"], 270)), prepared.parent / "new")
    assert not (prepared.parent / "new").exists()
