"""Files that cannot be read are named, with the line."""

from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from made_up_text import small

from mu_sota.model.errors import InputError

pytestmark = pytest.mark.usefixtures("cache")


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


def test_file_without_permission_is_named(text_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(Path, "read_bytes", denied)  # file modes do not bind root, as whom containers run
    with pytest.raises(InputError, match=r"text.txt cannot be read \(Permission denied\): check its permissions"):
        small(text_file)
