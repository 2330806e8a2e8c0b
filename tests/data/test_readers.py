"""Files as users have them become their documents, or one sentence that names file and line."""

import csv
import gzip
import io
import json
import lzma
import os
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
import zstandard
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from mu_sota.data import raw_files, readers, tables
from mu_sota.data.options import TextOptions
from mu_sota.data.readers import read_documents
from mu_sota.model.errors import InputError

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "": bytes,
    ".gz": gzip.compress,
    ".xz": lzma.compress,
    ".zst": zstandard.compress,
}
WORDS = "Seven words, which are cut between them.\n"


def read(path: Path, column: str | None = None) -> list[str]:
    """The documents; nothing is told."""
    documents, told = read_and_told(path, column)
    assert told == []
    return documents


def read_and_told(path: Path, column: str | None = None) -> tuple[list[str], list[str]]:
    told: list[str] = []
    documents = []
    for document in read_documents(path, TextOptions(text_column=column), told.append):
        pieces = list(document)
        assert all(0 < len(piece) <= readers.PIECE_BYTES for piece in pieces)
        documents.append("".join(pieces))
    return documents, [remark.removeprefix(str(path)) for remark in told]


def refused(path: Path, column: str | None = None) -> str:
    """The sentence of the error, without the path that it must begin with."""
    with pytest.raises(InputError) as caught:
        read_and_told(path, column)
    message = str(caught.value)
    assert message.startswith(str(path))
    assert message.count("\n") == 0
    return message.removeprefix(str(path))


def write(path: Path, content: bytes | str) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8"))
    return path


def as_csv(rows: list[list[Any]], delimiter: str = ",") -> str:
    file = io.StringIO(newline="")
    csv.writer(file, delimiter=delimiter).writerows(rows)
    return file.getvalue()


def as_arrow(table: pyarrow.Table, new: Callable[..., Any] = pyarrow.ipc.new_stream) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with new(sink, table.schema) as writer:
        writer.write_table(table, 2)
    return bytes(sink.getvalue())


def as_parquet(table: pyarrow.Table, **options: Any) -> bytes:
    sink = pyarrow.BufferOutputStream()
    pyarrow.parquet.write_table(table, sink, **options)
    return bytes(sink.getvalue())


def as_table(texts: list[str | None]) -> pyarrow.Table:
    return pyarrow.table({"id": range(len(texts)), "text": pyarrow.array(texts, pyarrow.string())})


WRITERS: dict[str, Callable[[list[str]], bytes]] = {
    ".jsonl": lambda texts: "\n".join(json.dumps({"id": 1, "text": text}) for text in texts).encode(),
    ".ndjson": lambda texts: "".join(
        json.dumps({"text": text}, ensure_ascii=False) + "\r\n" for text in texts
    ).encode(),
    ".json": lambda texts: json.dumps([{"text": text, "meta": {"a": [1]}} for text in texts], indent=1).encode(),
    "-lines.json": lambda texts: "\n\n".join(json.dumps({"text": text}) for text in texts).encode(),
    "-object.json": lambda texts: json.dumps({"version": [1], "rows": [{"text": t} for t in texts], "n": 1}).encode(),
    ".csv": lambda texts: as_csv([["id", "text"], *([1, text] for text in texts)]).encode(),
    "-semicolons.csv": lambda texts: as_csv([["id", "text"], *([1, text] for text in texts)], ";").encode("utf-8-sig"),
    ".tsv": lambda texts: as_csv([["text", "id"], *([text, 1] for text in texts)], "\t").encode("utf-16"),
    ".parquet": lambda texts: as_parquet(as_table([*texts]), row_group_size=3),
    ".arrow": lambda texts: as_arrow(as_table([*texts])),
    "-file.arrow": lambda texts: as_arrow(as_table([*texts]), pyarrow.ipc.new_file),
}
no_fixture_check = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=40)
texts_of_any_kind = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))


@no_fixture_check
@given(
    text=st.text(st.sampled_from("ab \n\r\té\u2028😀")) | texts_of_any_kind,
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16"]),
    compression=st.sampled_from([*COMPRESS]),
)
@example(text="a\r\nb\rc ", encoding="utf-8", compression=".zst")
def test_text_is_one_document(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, encoding: str, compression: str
) -> None:
    monkeypatch.setattr(readers, "PIECE_BYTES", 3)
    monkeypatch.setattr(raw_files, "BLOCK_BYTES", 5)
    text = text.removeprefix("\ufeff")
    path = write(tmp_path / f"a.txt{compression}", COMPRESS[compression](text.encode(encoding)))
    documents, told = read_and_told(path)
    if text and not text.isspace():
        assert documents == [text.replace("\r\n", "\n").replace("\r", "\n")]
    else:
        assert documents == []
        assert told[-1] == " is blank and was left out."


@no_fixture_check
@given(
    texts=st.lists(st.text(st.sampled_from('a," \n\r\t;é\u2028😀[{\\')) | texts_of_any_kind, max_size=5),
    kind=st.sampled_from([*WRITERS]),
    compression=st.sampled_from([*COMPRESS]),
)
def test_rows_are_documents(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, texts: list[str], kind: str, compression: str
) -> None:
    monkeypatch.setattr(raw_files, "BLOCK_BYTES", 5)  # of every kind, much lies across the ends of blocks
    monkeypatch.setattr(tables, "_ROWS_A_BATCH", 2)
    path = write(tmp_path / f"a{kind}{compression}", COMPRESS[compression](WRITERS[kind](texts)))
    documents, told = read_and_told(path)
    kept = [text for text in texts if text and not text.isspace()]
    if kind.endswith(("csv", "tsv")):
        kept = [text.replace("\r\n", "\n").replace("\r", "\n") for text in kept]
    assert documents == kept
    left_out = len(texts) - len(kept)
    counted = [f": {left_out} blank {'row was' if left_out == 1 else 'rows were'} left out."] if left_out else []
    assert [remark for remark in told if "UTF-16" not in remark] == counted


def test_a_long_text_is_cut_before_white_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "PIECE_BYTES", 100)
    path = write(tmp_path / "a.txt", WORDS * 100)
    (pieces,) = [list(document) for document in read_documents(path, TextOptions(), print)]
    assert "".join(pieces) == WORDS * 100
    assert all(80 < len(piece) <= 100 for piece in pieces[:-1])
    assert all(piece[0] in " \n" and not before[-1].isspace() for before, piece in pairwise(pieces))

    path = write(tmp_path / "a.jsonl", json.dumps({"text": "x" * 99 + "\r\n" + "y" * 150}))
    (pieces,) = [list(document) for document in read_documents(path, TextOptions(), print)]
    assert pieces == ["x" * 99, "\r\n" + "y" * 98, "y" * 52]


def test_zst_may_have_several_frames(tmp_path: Path) -> None:
    content = zstandard.compress(b"one ") + zstandard.compress(b"two")
    assert read(write(tmp_path / "a.txt.zst", content)) == ["one two"]


def test_endings_are_those_of_the_options(tmp_path: Path) -> None:
    path = write(tmp_path / "a.srt", "some text")
    assert "is no file of text: give one that ends in .txt," in refused(path)
    options = TextOptions(text_suffixes=(".srt",))
    assert [list(document) for document in read_documents(path, options, print)] == [["some text"]]


CHAT = [{"role": "user", "content": "Hi!"}, {"role": "assistant", "content": "Yes?\nYes."}]
CHAT_TEXT = "user: Hi!\n\nassistant: Yes?\nYes."


@pytest.mark.parametrize("kind", [".jsonl", ".json", ".parquet", ".arrow"])
def test_chat_is_written_out(tmp_path: Path, kind: str) -> None:
    turns = [{"from": turn["role"], "value": turn["content"]} for turn in CHAT]
    rows: list[dict[str, Any]] = [{"messages": CHAT, "turns": turns, "id": "x"}] * 2
    table = pyarrow.Table.from_pylist(rows)
    content = {
        ".jsonl": "\n".join(map(json.dumps, rows)).encode(),
        ".json": json.dumps({"records": rows}, indent=1).encode(),
        ".parquet": as_parquet(table),
        ".arrow": as_arrow(table),
    }[kind]
    path = write(tmp_path / f"a{kind}", content)
    assert read(path) == [CHAT_TEXT] * 2
    assert read(path, "turns") == [CHAT_TEXT] * 2


def test_a_number_may_lie_across_blocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(raw_files, "BLOCK_BYTES", 1)
    assert read(write(tmp_path / "a.json", '{"n": 1234, "rows": [{"text": "a"}]}')) == ["a"]


def test_an_object_may_be_one_record(tmp_path: Path) -> None:
    path = write(tmp_path / "a.json", json.dumps({"messages": CHAT, "tags": ["a"]}, indent=1))
    assert read(path) == [CHAT_TEXT]


@pytest.mark.parametrize("kind", [".jsonl", ".csv", ".parquet"])
def test_the_only_column_with_texts_is_read(tmp_path: Path, kind: str) -> None:
    contents: dict[str, bytes | str] = {
        ".jsonl": '{"n": 1, "body": null}\n{"n": 2, "body": "b"}',
        ".csv": "n,body\n1,\n2,b\n",
        ".parquet": as_parquet(pyarrow.table({"n": [1, 2], "body": [None, "b"]})),
    }
    documents, told = read_and_told(write(tmp_path / f"a{kind}", contents[kind]))
    assert documents == ["b"]
    blank = "blank" if kind == ".csv" else "null"
    assert told == [
        " has no column `text`: column `body` was read, the only one with texts.",
        f": 1 {blank} row was left out.",
    ]


@pytest.mark.parametrize("kind", [".jsonl", ".csv", ".parquet"])
def test_columns_that_leave_open_what_to_read_are_named(tmp_path: Path, kind: str) -> None:
    contents: dict[str, bytes | str] = {
        ".jsonl": '{"n": 1, "title": "a", "body": "b"}',
        ".csv": "n,title,body\n1,a,b\n",
        ".parquet": as_parquet(pyarrow.table({"n": [1], "title": ["a"], "body": ["b"]})),
    }
    path = write(tmp_path / f"a{kind}", contents[kind])
    assert refused(path) == (
        " has no column `text`, only `n`, `title`, `body`, and `title`, `body` may hold the texts: say which to read "
        "with --set text_column=..."
    )
    assert refused(path, "txt") == (
        " has no column `txt`, only `n`, `title`, `body`: name one of these with --set text_column=..."
    )
    assert read(path, "body") == ["b"]


def test_nulls_and_blanks_are_counted(tmp_path: Path) -> None:
    for name, content in {
        "a.jsonl": "\n".join(json.dumps({"text": text}) for text in [None, " ", "a", None]).encode(),
        "a.parquet": as_parquet(as_table([None, " ", "a", None])),
        "a.arrow": as_arrow(as_table([None, " ", "a", None])),
    }.items():
        assert read_and_told(write(tmp_path / name, content)) == (["a"], [": 2 null and 1 blank rows were left out."])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.txt", b"a\0b", ", line 1 holds a NUL byte"),
        ("a.jsonl", b'{"text": "a"}\n\n{"text": \n', ", line 3 is not JSON (Expecting value"),
        ("a.jsonl", b'["text"]\n', ", line 1 is not a JSON object: give"),
        ("a.jsonl", b'{"text": "a"}\n{"body": "a", "id": 1}\n', ", line 2 has no `text`, only `body`, `id`: give"),
        ("a.jsonl", b'{"text": "a"}\n{}\n', ", line 2 has no `text`, only empty records: give"),
        ("a.jsonl", b'{"text": 3}\n', ", line 1: `text` is of type int: put the document there as a string"),
        ("a.jsonl", b'{"text": "\\ud800"}\n', r", line 1: `text` escapes the lone surrogate '\ud800'"),
        ("a.jsonl", b'{"text": ' + b"[" * 100_000, ", line 1 is not JSON (nested too deeply)"),
        ("a.jsonl", b'{"text": ' + b"1" * 5000 + b"}", ", line 1 is not JSON (Exceeds the limit"),
        ("a.jsonl", b'{"messages": [{"role": "user"}]}', ", line 1: message 1 of `messages` is no role and content"),
        ("a.json", b'[{"text": "a"},\n{"text": "b",}]', ", line 2 is not JSON ("),
        ("a.json", b'[{"text": "a"},\n{"text": "b"}', ", line 2 is not JSON (Expecting ',' delimiter"),
        ("a.json", b'[{"text": "a"}]\n[]', ", line 2 is not JSON (Extra data)"),
        ("a.json", b'[{"text": "a"},\n"b"]', ", record 2 is not a JSON object"),
        ("a.json", b'[{"text": "a"},\n{"text": "b', ", line 2 is not JSON (Unterminated string"),
        ("a.json", b"[" * 100_000, ", line 1 is not JSON (nested too deeply)"),
        ("a.json", b'{"text": ' + b"[" * 100_000, ", line 1 is not JSON (nested too deeply)"),
        ("a.json", b"[" + b"1" * 5000 + b"]", ", line 1 is not JSON (Exceeds the limit"),
        ("a.json", b'{"a": [{"text": "a"}],\n"b": [{"text": "b"}]}', "has no column `text`, only `a`, `b`"),
        ("a.json", b"text", ", line 1 is not JSON (Expecting value)"),
        ("a.csv", b"text,id\na,1\nb\n", ", line 3 has 1 cells where the first line has 2: give all rows as many"),
        ("a.csv", b'text,id\n"a\nb",1\nc,2,3\n', ", line 4 has 3 cells"),
        ("a.csv", b"text,text\na,b\n", " has more than one column `text`: rename all but one"),
        ("a.csv", b'text\na\n"b\nc\n', ", line 3 is not CSV (unexpected end of data)"),
        ("a.csv", b'text\n"a" b\n', ", line 2 is not CSV ("),
        ("a.csv", b"text\na\0b\n", ", line 2 holds a NUL byte"),
        ("a.parquet", b"", ", after row 0, is not a readable .parquet file ("),
        ("a.parquet", b"no parquet", ", after row 0, is not a readable .parquet file ("),
        ("a.arrow", b"", ", after row 0, is not a readable .arrow file ("),
        ("a.arrow", b"no arrow", ", after row 0, is not a readable .arrow file ("),
        ("a.txt.gz", b"no gzip", " is no whole .gz file (Not a gzipped file"),
        ("a.txt.xz", b"no xz", " is no whole .xz file ("),
        ("a.txt.zst", b"no zst", " is no whole .zst file ("),
    ],
)
def test_bad_file_is_named_with_the_line(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    assert message in refused(write(tmp_path / name, content))


def test_bad_columns_are_named(tmp_path: Path) -> None:
    doubled = pyarrow.table([pyarrow.array(["a"])] * 2, ["text", "text"])
    for name, content in {"a.parquet": as_parquet(doubled), "a.arrow": as_arrow(doubled)}.items():
        assert refused(write(tmp_path / name, content)).startswith(" has more than one column `text`: rename")
    path = write(tmp_path / "a.parquet", as_parquet(pyarrow.table({"text": [1, 2]})))
    assert refused(path).startswith(", row 1: `text` is of type int")
    path = write(tmp_path / "a.parquet", as_parquet(pyarrow.table({"n": [1, 2]})))
    assert ", only `n`, and none of its columns holds texts: say which" in refused(path)
    binary = pyarrow.table({"text": [b"ok", b"\xff"]})
    not_utf8 = pyarrow.StringArray.from_buffers(2, *binary["text"].chunk(0).buffers()[1:])
    path = write(tmp_path / "a.parquet", as_parquet(pyarrow.table({"text": not_utf8})))
    assert refused(path).startswith(", after row 0, is not a readable .parquet file (Invalid UTF8 sequence at string")


@pytest.mark.parametrize("compression", [".gz", ".xz", ".zst"])
@pytest.mark.parametrize("kind", [".txt", ".csv", ".parquet"])
def test_a_truncated_compressed_file_is_refused(tmp_path: Path, compression: str, kind: str) -> None:
    texts = [f"{WORDS} {number * number}" for number in range(300)]
    whole = COMPRESS[compression]("".join(texts).encode() if kind == ".txt" else WRITERS[kind](texts))
    for length in (len(whole) // 2, len(whole) - 1):
        path = write(tmp_path / f"a{kind}{compression}", whole[:length])
        assert f" is no whole {compression} file (" in refused(path)


@pytest.mark.parametrize("name", ["a.txt.gz", "a.txt.xz", "a.txt.zst", "a.parquet", "a.arrow", "a-file.arrow"])
def test_flipped_bits_never_give_a_traceback(tmp_path: Path, name: str) -> None:
    compression = Path(name).suffix
    texts = [f"{WORDS} {number}" for number in range(20)]
    if compression in (".gz", ".xz"):
        whole = COMPRESS[compression]("".join(texts).encode())
    elif compression == ".zst":
        whole = zstandard.ZstdCompressor(write_checksum=True).compress("".join(texts).encode())
    else:
        whole = WRITERS[name.removeprefix("a")](texts)
    found = 0
    for bit in range(0, 8 * len(whole), 8 * len(whole) // 300 + 1):
        content = bytearray(whole)
        content[bit // 8] ^= 1 << bit % 8
        try:
            read_and_told(write(tmp_path / name, bytes(content)))
        except InputError as error:
            found += 1
            assert str(error).startswith(str(tmp_path))  # noqa: PT017
    assert found > (100 if compression in (".gz", ".xz", ".zst") else 20)


def test_a_truncated_columnar_file_is_refused(tmp_path: Path) -> None:
    for kind in (".parquet", ".arrow", "-file.arrow"):
        whole = WRITERS[kind]([WORDS] * 50)
        for length in (4, 100, len(whole) // 2, len(whole) - 9):
            assert "is not a readable" in refused(write(tmp_path / f"a{kind}", whole[:length]))


@pytest.mark.parametrize("compression", [".gz", ".xz", ".zst"])
def test_what_unfolds_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compression: str) -> None:
    monkeypatch.setattr(raw_files, "_MOST_UNFOLDED", 3_000_000)
    monkeypatch.setattr(raw_files, "_MOST_TIMES_ITS_SIZE", 100)
    for kind in (".txt", ".jsonl", ".parquet"):
        path = write(tmp_path / f"a{kind}{compression}", COMPRESS[compression](b"a" * 4_000_000))
        assert " unfolds to more than 3,000,000 bytes, over 100 times its size" in refused(path)
    # What is not that much smaller than its text is none.
    path = write(tmp_path / f"a.txt{compression}", COMPRESS[compression](b"a" * 2_900_000))
    assert len(read(path)[0]) == 2_900_000


def test_a_parquet_that_unfolds_without_end_is_refused(tmp_path: Path) -> None:
    texts = pyarrow.array(["a" * 4_000_000]).dictionary_encode()
    repeated = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * 1000, pyarrow.int8()), texts.dictionary)
    path = write(tmp_path / "a.parquet", as_parquet(pyarrow.table({"text": repeated}), store_schema=False))
    assert path.stat().st_size < 400_000
    most = 0

    def exhaust() -> None:
        nonlocal most
        for document in read_documents(path, TextOptions(), print):
            assert len("".join(document)) == 4_000_000
            most = max(most, pyarrow.total_allocated_bytes())

    with pytest.raises(InputError, match="unfolds to more than 1,000,000,000 bytes"):
        exhaust()
    assert most < 250_000_000


@pytest.mark.parametrize("kind", [".parquet", ".arrow"])
def test_billions_of_empty_rows_are_refused(tmp_path: Path, kind: str) -> None:
    table = pyarrow.table({"text": pyarrow.nulls(20_000_000)})
    path = write(tmp_path / f"a{kind}", as_parquet(table) if kind == ".parquet" else as_arrow_at_once(table))
    assert " unfolds to more than 1,000,000,000 bytes" in refused(path)


def as_arrow_at_once(table: pyarrow.Table) -> bytes:
    sink = pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return bytes(sink.getvalue())


def test_a_line_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "_LONGEST_LINE", 1000)
    monkeypatch.setattr(raw_files, "BLOCK_BYTES", 100)
    for name, content, message in [
        ("a.jsonl", '{"text": "a"}\n{"text": "' + "a" * 2000, ", line 2 has more than 1,000 characters"),
        ("a.json", '[{"text": "a"},\n{"text": "' + "a" * 9000, "more than 1,000 characters"),
        ("a.csv", 'text\na\n"' + "line\n" * 2000, ", line 3 is not CSV (field larger than field limit"),
    ]:
        assert message in refused(write(tmp_path / name, content))


def test_what_is_no_regular_file_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.txt")  # to open it would wait for ever
    (tmp_path / "folder.txt").mkdir()
    for name in ("pipe.txt", "folder.txt"):
        assert refused(tmp_path / name) == " is a folder, pipe, device or socket: give a regular file."


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl.gz", "a.csv", "a.parquet", "a.arrow"])
def test_file_that_is_gone_or_forbidden_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    assert refused(tmp_path / name) == (
        " cannot be read (No such file or directory): check its permissions and its disk."
    )
    path = write(tmp_path / name, b"")
    for module in (readers, raw_files):
        monkeypatch.setattr(module, "require_regular", lambda path: path.unlink(missing_ok=True) or 10**9)
    assert " cannot be read (" in refused(path)  # it vanishes after the first look
