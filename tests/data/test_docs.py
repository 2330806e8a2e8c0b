"""The tables of docs/data.md, row by row."""

import gzip
import json
import os
import random
import re
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from made_up_text import LINES, small

from mu_sota.data.folders import find_files
from mu_sota.data.options import SPLITS, TextOptions
from mu_sota.model.errors import InputError

pytestmark = pytest.mark.usefixtures("cache")
PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text(encoding="utf-8")


def rows(first_cell: str) -> list[list[str]]:
    """The rows of the table whose head begins with a word."""
    lines = PAGE[PAGE.index(f"| {first_cell} |") :].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def names(cell: str) -> list[str]:
    return cell.strip("`").split()


def made(folder: Path, cell: str) -> Path:
    for name in names(cell):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(name)
    return folder


@pytest.mark.parametrize("row", rows("files"), ids=lambda row: row[0])
def test_what_is_taken_as_what(tmp_path: Path, row: list[str]) -> None:
    found = find_files(made(tmp_path, row[0]), TextOptions()).files
    taken = {split: [file.relative_to(tmp_path).as_posix() for file in files] for split, files in found.items()}
    assert taken == {split: names(cell) for split, cell in zip(SPLITS, row[1:], strict=True) if cell}


@pytest.mark.parametrize("row", rows("refused"), ids=lambda row: row[0])
def test_what_is_refused(tmp_path: Path, row: list[str]) -> None:
    with pytest.raises(InputError, match=re.escape(row[1].strip("`"))):
        find_files(made(tmp_path, row[0]), TextOptions())


def broken_parquet() -> bytes:
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(pyarrow.table({"text": LINES.splitlines()}), sink)
    return bytes(sink.getvalue().to_pybytes()[:-100])


FILES: dict[str, tuple[str, Callable[[], bytes]]] = {
    "UTF-8 with a mark": ("a.txt", lambda: LINES.encode("utf-8-sig")),
    "UTF-16 without a mark": ("a.txt", lambda: LINES.encode("utf-16-le")),
    "Latin-1": ("a.txt", lambda: ("Déjà vu, à côté d'un château près de la forêt.\n" * 200).encode("latin-1")),
    "one line of 2 MB": ("a.txt", lambda: b"Some words. " * 170_000),
    "2 MB of ACGT": ("a.txt", lambda: "".join(random.Random(0).choices("ACGT", k=2_000_000)).encode()),
    "a program": ("a.txt", lambda: b"\x7fELF\x00" + bytes(range(256)) * 20),
    "a pipe in the folder": ("a.txt", LINES.encode),
    "a parquet file that ends too early": ("a.parquet", broken_parquet),
    "a gzip file that ends too early": ("a.txt.gz", lambda: gzip.compress(LINES.encode())[:-100]),
    "JSON nested too deeply": ("a.json", lambda: b"[" * 100_000),
    "two columns of one name": ("a.csv", lambda: b"text,text\na,b\n"),
    "no column of texts": ("a.csv", lambda: b"a,b\n1,2\n"),
    "a broken line of JSON": ("a.jsonl", lambda: json.dumps({"text": LINES}).encode() + b'\n{"text": "b"\n'),
}


@pytest.mark.parametrize("row", rows("what a user may bring"), ids=lambda row: row[0])
def test_what_a_user_may_bring(tmp_path: Path, row: list[str]) -> None:
    name, content = FILES[row[0]]
    (tmp_path / name).write_bytes(content())
    if row[0] == "a pipe in the folder":
        os.mkfifo(tmp_path / "b.txt")
    if row[1] == "read":
        corpus = small(tmp_path)
        assert "�" not in corpus.tokenizer.decode(corpus.train.tokens[1:200].astype(int))
        return
    with pytest.raises(InputError, match=re.escape(row[1].strip("`"))) as caught:
        small(tmp_path)
    assert str(caught.value).count("\n") == 0


def test_every_row_has_its_file() -> None:
    assert {row[0] for row in rows("what a user may bring")} == FILES.keys()
