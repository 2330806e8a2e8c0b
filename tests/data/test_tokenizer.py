"""Text survives the tokenizers, whatever it spells, and the word vocabulary is the published one."""

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from mu_sota.data import tokenizer as module
from mu_sota.data.tokenizer import (
    TOKENIZER_FILE,
    encode,
    is_word_level,
    load_tokenizer,
    save_tokenizer,
    train_bpe,
    train_words,
)
from mu_sota.model.errors import InputError

SPECIALS = ["<PAD>", "<UNK>", "<BOS>", "<EOS>"]
PROSE = "The <PAD> and the <EOS> stand here.\n\n  <unk> words, 3.14 of them \n and more words of the same kind.\n" * 5
SPELLINGS = st.lists(
    st.sampled_from([*SPECIALS, "<unk>", "<eos>", "<", ">", "EOS", " ", "\n", "\t", "the", "é"]), max_size=12
).map("".join)
# White space in the sense of any of the libraries, so that cuts and pre-tokens meet every kind.
SPACED = st.text(alphabet="a.'s1é \n\t\r\x0b\x1c\x85\u00a0\u2028\u3000", max_size=60)


def spelled(tokenizer: PreTrainedTokenizerFast, text: str) -> Any:
    return tokenizer.convert_ids_to_tokens(encode(tokenizer, text).tolist())


@pytest.fixture(scope="module")
def bpe() -> PreTrainedTokenizerFast:
    return train_bpe([PROSE], 400)


@pytest.fixture(scope="module", params=["trained", "json", "folder", "auto"])
def any_bpe(
    request: pytest.FixtureRequest, bpe: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory
) -> PreTrainedTokenizerFast:
    """The same tokenizer by every way it reaches a user."""
    folder = tmp_path_factory.mktemp("tokenizer")
    if request.param == "trained":
        return bpe
    if request.param == "json":
        save_tokenizer(bpe, folder / TOKENIZER_FILE)
        return load_tokenizer(folder / TOKENIZER_FILE)
    bpe.save_pretrained(folder)
    if request.param == "folder":
        return load_tokenizer(folder)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert isinstance(tokenizer, PreTrainedTokenizerFast)
    return tokenizer


@given(text=st.text() | SPELLINGS)
def test_every_text_survives(any_bpe: PreTrainedTokenizerFast, text: str) -> None:
    ids = encode(any_bpe, text)
    assert any_bpe.decode(ids, skip_special_tokens=True) == text
    assert any_bpe.decode(ids, skip_special_tokens=False) == text
    assert any_bpe(text)["input_ids"] == ids.tolist()
    assert not set(range(4)) & set(ids.tolist())


def test_every_text_survives_the_file_read_by_tokenizers_alone(bpe: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    save_tokenizer(bpe, tmp_path / TOKENIZER_FILE)
    plain = Tokenizer.from_file(str(tmp_path / TOKENIZER_FILE))
    text = "a <PAD><EOS> b"
    assert plain.decode(plain.encode(text).ids) == text


def test_special_tokens_are_the_first_ids(any_bpe: PreTrainedTokenizerFast) -> None:
    assert any_bpe.convert_tokens_to_ids(SPECIALS) == [0, 1, 2, 3]
    assert (any_bpe.pad_token_id, any_bpe.unk_token_id, any_bpe.bos_token_id, any_bpe.eos_token_id) == (0, 1, 2, 3)
    assert any_bpe.decode([2, *encode(any_bpe, "hi"), 3], skip_special_tokens=True) == "hi"
    assert not is_word_level(any_bpe)


def test_vocabulary_has_the_size_asked_for_or_less_when_merges_run_out() -> None:
    assert len(train_bpe([PROSE], 300)) == 300
    assert len(train_bpe(["ab"], 50_000)) == 4 + 256 + 1
    assert sorted(train_bpe(["ab"], 50_000).get_vocab().values()) == list(range(261))


@given(text=SPACED)
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_pieces_give_the_tokens_of_the_uncut_text(
    bpe: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setattr(module, "_PIECE_CHARACTERS", 1)
    words = train_words([PROSE + " a . 's a.'"])
    assert encode(bpe, text).tolist() == bpe.backend_tokenizer.encode(text).ids
    assert encode(words, text).tolist() == words.backend_tokenizer.encode(text).ids


@pytest.mark.parametrize("prefix", [False, True])
def test_other_tokenizers_encode_uncut_text_and_parse_no_special_tokens(
    monkeypatch: pytest.MonkeyPatch, prefix: bool
) -> None:
    monkeypatch.setattr(module, "_PIECE_CHARACTERS", 1)
    backend = Tokenizer.from_str(train_bpe([PROSE], 300).backend_tokenizer.to_str())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=prefix)
    other = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<EOS>")
    text = "the\n<EOS>\nand"
    assert str(other.decode(encode(other, text))).strip() == text
    backend.encode_special_tokens = True
    assert encode(other, text).tolist() == backend.encode(text).ids


def test_long_text_encodes_without_a_warning_or_a_cut(bpe: PreTrainedTokenizerFast) -> None:
    text = PROSE * 1000
    ids = encode(bpe, text)
    assert ids.dtype == np.uint32
    assert bpe.decode(ids) == text
    assert encode(bpe, "").shape == (0,)


@pytest.mark.parametrize("use", ["encode", "train_bpe", "train_words"])
def test_lone_surrogate_is_named(bpe: PreTrainedTokenizerFast, use: str) -> None:
    call = {"encode": lambda t: encode(bpe, t), "train_bpe": lambda t: train_bpe([t], 300)}
    with pytest.raises(InputError, match=r"lone surrogate '\\ud800' at character 2"):
        call.get(use, lambda t: train_words([t]))("ab\ud800")


def test_too_small_a_vocabulary_is_refused() -> None:
    with pytest.raises(InputError, match=r"259 entries is too small.*260"):
        train_bpe(["text"], 259)


def test_words_and_line_ends_are_the_tokens() -> None:
    words = train_words(["a b\nc d\n"])
    assert spelled(words, "a b\nc d\n") == ["a", "b", "<eos>", "c", "d", "<eos>"]
    assert spelled(words, "  a\tnew\n\n") == ["a", "<unk>", "<eos>", "<eos>"]
    assert words.decode(encode(words, "a b\nc")) == "a b <eos> c"
    assert is_word_level(words)


@pytest.mark.parametrize("text", ["a b", "a <unk> b\n", "<eos> a\n"])
def test_word_vocabulary_has_no_holes_and_no_additional_entries(text: str) -> None:
    words = train_words([text])
    assert set(words.get_vocab()) == {*text.split(), "<unk>", "<eos>"}
    assert sorted(words.get_vocab().values()) == list(range(len(words)))
    eos = words.convert_tokens_to_ids("<eos>")
    assert (words.bos_token_id, words.eos_token_id, words.pad_token_id) == (eos, eos, eos)
    assert words.unk_token_id == words.convert_tokens_to_ids("<unk>")


@pytest.mark.parametrize("form", ["json", "folder"])
def test_words_survive_saving(form: str, tmp_path: Path) -> None:
    words = train_words(["a <unk> b\n" * 3])
    if form == "json":
        save_tokenizer(words, tmp_path / TOKENIZER_FILE)
    else:
        words.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    text = "a c <unk> <eos>\n b<eos>\n"
    expected = ["a", "<unk>", "<unk>", "<eos>", "<eos>", "<unk>", "<eos>"]
    assert spelled(loaded, text) == expected
    assert loaded.convert_ids_to_tokens(loaded(text)["input_ids"]) == expected
    assert loaded.get_vocab() == words.get_vocab()


def test_missing_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"No tokenizer at .*mu_sota_tokenizer.json"):
        load_tokenizer(tmp_path)
    with pytest.raises(InputError, match=r"No tokenizer at .*nowhere"):
        load_tokenizer(tmp_path / "nowhere")


@pytest.mark.parametrize("name", [TOKENIZER_FILE, "tokenizer.json"])
def test_damaged_tokenizer_is_named(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_text('{"version": "1.0"', encoding="utf-8")
    with pytest.raises(InputError, match=re.escape(str(tmp_path))):
        load_tokenizer(tmp_path)


def test_foreign_vocabulary_is_refused(tmp_path: Path) -> None:
    Tokenizer(models.BPE({"a": 0}, [])).save(str(tmp_path / TOKENIZER_FILE))
    with pytest.raises(InputError, match="lacks <PAD>, <UNK>, <BOS>, <EOS>"):
        load_tokenizer(tmp_path)


def test_wikitext2_survives_the_bpe_and_pieces_equal_the_uncut_text(wikitext2: Path) -> None:
    texts = {split: (wikitext2 / f"{split}.txt").read_bytes().decode() for split in ("train", "valid", "test")}
    bpe = train_bpe([texts["train"]], 50_000)
    assert 40_000 < len(bpe) < 50_000  # merges run out
    for text in texts.values():
        assert bpe.decode(encode(bpe, text), skip_special_tokens=True) == text
    assert encode(bpe, texts["valid"]).tolist() == bpe.backend_tokenizer.encode(texts["valid"]).ids


def test_wikitext2_words_are_the_published_vocabulary_and_counts(wikitext2: Path) -> None:
    train = (wikitext2 / "train.txt").read_text(encoding="utf-8")
    words = train_words([train])
    reference = Counter(train.split())
    reference["<eos>"] += train.count("\n")
    assert len(words) == 33_278
    assert set(words.get_vocab()) == set(reference)
    ids = encode(words, train)
    counted = np.bincount(ids, minlength=len(words))
    assert {word: counted[i] for word, i in words.get_vocab().items()} == dict(reference)
    assert len(ids) == 2_088_628
    assert len(encode(words, (wikitext2 / "valid.txt").read_text(encoding="utf-8"))) == 217_646
    assert len(encode(words, (wikitext2 / "test.txt").read_text(encoding="utf-8"))) == 245_569


def test_file_is_plain_json_in_the_tokenizers_format(bpe: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    save_tokenizer(bpe, tmp_path / TOKENIZER_FILE)
    content = json.loads((tmp_path / TOKENIZER_FILE).read_text(encoding="utf-8"))
    assert content["model"]["type"] == "BPE"
    assert [path.name for path in tmp_path.iterdir()] == [TOKENIZER_FILE]
