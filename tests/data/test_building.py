"""Files of token ids: what is in them, and what a kill leaves."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import xxhash

from mu_sota.data import building
from mu_sota.data.building import TokenFiles
from mu_sota.data.overlap import line_overlap
from mu_sota.data.tokenizer import encode, train_bpe, train_words
from mu_sota.model.errors import InputError

TEXTS = [f"Document {i} has words,\nand é 💡 more {i * i}.\n" for i in range(60)]
LONG = "x" * 100
PIECES = [
    (split, piece, ends)
    for number, text in enumerate(TEXTS)
    for split in [("train", "train", "train", "validation", "test")[number % 5]]
    for piece, ends in ((text[: text.index(" has")], False), (text[text.index(" has") :], True))
]


@pytest.fixture(params=["bpe", "word"])
def tokenizer(request: pytest.FixtureRequest) -> object:
    return train_bpe(TEXTS, 300) if request.param == "bpe" else train_words(TEXTS)


@pytest.fixture(autouse=True)
def _small_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "_BATCH", 100)
    monkeypatch.setattr(building, "_SAVE_EVERY", 300)


def written(folder: Path, tokenizer: object, pieces: Iterator[tuple[str, str, bool]]) -> TokenFiles:
    folder.mkdir(exist_ok=True)
    files = TokenFiles(folder, tokenizer, lambda _: None)  # type: ignore[arg-type]
    files.write(pieces)
    return files


def test_streams_are_the_documents_with_their_ends(tmp_path: Path, tokenizer: object) -> None:
    """Held against each document encoded by itself."""
    files = written(tmp_path / "at_work", tokenizer, iter(PIECES))
    about = files.finish(tmp_path)
    for number, split in enumerate(("train", "validation", "test")):
        texts = [text for place, text in enumerate(TEXTS) if (0, 0, 0, 1, 2)[place % 5] == number]
        stream = [tokenizer.bos_token_id]  # type: ignore[attr-defined]
        for text in texts:
            stream += encode(tokenizer, text).tolist()  # type: ignore[arg-type]
            stream += [] if files.by_words else [tokenizer.eos_token_id]  # type: ignore[attr-defined]
        tokens = np.load(tmp_path / f"{split}.npy")
        assert tokens.tolist() == stream
        assert tokens.dtype == np.uint16
        assert about[split] == {
            "n_tokens": len(stream),
            "n_words": sum(len(text.split()) for text in texts),
            "n_bytes": sum(len(text.encode()) for text in texts),
            "n_documents": len(texts),
        }


@pytest.mark.parametrize("after", [1, 37, 90, 119])
@pytest.mark.parametrize("torn", [False, True], ids=["killed between writes", "killed within a write"])
def test_a_killed_call_is_gone_on_with(tmp_path: Path, tokenizer: object, after: int, torn: bool) -> None:
    """The files are those of a call that was not killed, and what was done is not done again."""

    def killed() -> Iterator[tuple[str, str, bool]]:
        yield from PIECES[:after]
        raise KeyboardInterrupt

    whole = written(tmp_path / "whole", tokenizer, iter(PIECES))
    with pytest.raises(KeyboardInterrupt):
        written(tmp_path / "killed", tokenizer, killed())
    if torn:
        with (tmp_path / "killed" / "train.ids").open("ab") as file:
            file.write(b"\x01\x02\x03")
    again = TokenFiles(tmp_path / "killed", tokenizer, lambda _: None)  # type: ignore[arg-type]
    done = again.state.pieces
    encoded: list[str] = []
    real = building.encode_batch

    def noted(known: Any, texts: list[str]) -> list[np.ndarray]:
        encoded.extend(texts)
        return real(known, texts)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(building, "encode_batch", noted)
        again.write(iter(PIECES))
    assert len(encoded) == len(PIECES) - done
    assert done >= after - 30
    assert again.state.as_dict() == whole.state.as_dict()
    for split in ("train", "validation", "test"):
        for kind in ("ids", "lines"):
            name = f"{split}.{kind}"
            assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


@pytest.mark.parametrize("damage", ["shorter", "missing", "state"])
def test_what_is_not_there_is_made_again(tmp_path: Path, tokenizer: object, damage: str) -> None:
    """A disk that lost a file's end, or the state: never a hole of zeros."""
    whole = written(tmp_path / "whole", tokenizer, iter(PIECES))
    again = written(tmp_path / "damaged", tokenizer, iter(PIECES))
    file = again.folder / ("state.json" if damage == "state" else "train.ids")
    if damage == "missing":
        file.unlink()
    else:
        file.write_bytes(file.read_bytes()[:-10])
    again = written(tmp_path / "damaged", tokenizer, iter(PIECES))
    assert again.state.as_dict() == whole.state.as_dict()
    assert (again.folder / "train.ids").read_bytes() == (whole.folder / "train.ids").read_bytes()


def test_long_lines_are_remembered_by_their_hash(
    tmp_path: Path, tokenizer: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(building, "_LINES_A_BLOCK", 1)
    pieces = [("train", f"short\n{LONG}\nshort\n{LONG}y", True), ("test", LONG + "\n", True)]
    files = written(tmp_path / "at_work", tokenizer, iter(pieces))
    assert files.lines("train").tolist() == [xxhash.xxh3_64_intdigest(line.encode()) for line in (LONG, LONG + "y")]
    assert files.lines("test").tolist() == [xxhash.xxh3_64_intdigest(LONG.encode())]
    assert files.lines("validation").tolist() == []
    assert [block.tolist() for block in files.line_blocks("train")] == [[line] for line in files.lines("train")]
    assert line_overlap(files.lines("test"), files.line_blocks("train")) == 1
    assert line_overlap(np.array([5, 7, 5, 8], np.uint64), iter(np.array([[7, 7], [1, 5]], np.uint64))) == 3


def test_a_large_vocabulary_takes_32_bits(tmp_path: Path) -> None:
    tokenizer = train_words([" ".join(f"w{i}" for i in range(70_000))])
    files = written(tmp_path / "at_work", tokenizer, iter([("train", "w69999 w1", True)]))
    files.finish(tmp_path)
    tokens = np.load(tmp_path / "train.npy")
    assert tokens.dtype == np.uint32
    assert tokenizer.decode(tokens.astype(int)) == "<eos> w69999 w1 <eos>"


def test_a_tokenizer_without_an_end_is_refused(tmp_path: Path) -> None:
    tokenizer = train_bpe(["text"], 270)
    tokenizer.eos_token = None
    with pytest.raises(InputError, match="no end-of-text token"):
        TokenFiles(tmp_path, tokenizer, lambda _: None)
