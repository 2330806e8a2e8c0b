"""A file or folder is replaced by a complete one or not at all, and JSON is JSON."""

import json
import math
import threading
from pathlib import Path
from typing import Any

import pytest

from mu_sota.common.files import as_json, cache_folder, replacing, write_json


def write(target: Path, kind: str, content: str) -> None:
    if kind == "folder":
        target.mkdir()
        target /= "inside"
    target.write_text(content, encoding="utf-8")


def read(target: Path) -> str:
    return (target / "inside" if target.is_dir() else target).read_text(encoding="utf-8")


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_replacing_puts_the_new_one_there_and_leaves_no_temporary(tmp_path: Path, kind: str) -> None:
    target = tmp_path / "made" / "on the way" / "target"
    for content in ("first", "second"):
        with replacing(target) as temporary:
            write(temporary, kind, content)
            assert not target.exists() or read(target) == "first"
        assert read(target) == content
        assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("kind", ["file", "folder"])
@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_replacing_leaves_the_old_one_on_an_exception(tmp_path: Path, kind: str, error: type[BaseException]) -> None:
    target = tmp_path / "target"
    write(target, kind, "old")

    def interrupted() -> None:
        with replacing(target) as temporary:
            write(temporary, kind, "half of the new")
            raise error

    with pytest.raises(error):
        interrupted()
    assert read(target) == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_replacing_with_nothing_written_is_an_error_and_leaves_the_old_one(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("old")
    with pytest.raises(FileNotFoundError), replacing(target):
        pass
    assert read(target) == "old"
    assert list(tmp_path.iterdir()) == [target]


def test_replacing_drops_files_of_the_old_folder(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    (target / "old file").touch()
    with replacing(target) as temporary:
        write(temporary, "folder", "new")
    assert [path.name for path in target.iterdir()] == ["inside"]


def test_reader_never_sees_half_a_file(tmp_path: Path) -> None:
    target = tmp_path / "target.json"
    contents = [["a"] * 50_000, ["b"] * 50_000]
    write_json(target, contents[0])
    done = threading.Event()
    seen = []

    def keep_reading() -> None:
        while not done.is_set():
            seen.append(json.loads(target.read_text()))

    reader = threading.Thread(target=keep_reading)
    reader.start()
    try:
        for number in range(20):
            write_json(target, contents[number % 2])
    finally:
        done.set()
        reader.join()
    assert seen
    assert all(content in contents for content in seen)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (math.nan, None),
        ([1.5, math.inf, -math.inf], [1.5, None, None]),
        ({"loss": math.nan, "rows": ({"loss": math.inf}, 2)}, {"loss": None, "rows": [{"loss": None}, 2]}),
        ({"none": None, "true": True, "int": 2**70}, {"none": None, "true": True, "int": 2**70}),
    ],
)
def test_json_has_null_for_numbers_that_are_not_finite(tmp_path: Path, value: Any, expected: Any) -> None:
    def forbidden(constant: str) -> None:
        raise AssertionError(f"{constant} is not JSON")

    write_json(tmp_path / "a.json", value)
    written = (tmp_path / "a.json").read_text(encoding="utf-8")
    assert written == as_json(value, indent=2) + "\n"
    for text in (written, as_json(value)):
        assert json.loads(text, parse_constant=forbidden) == expected


def test_json_keeps_letters_and_every_digit() -> None:
    assert as_json({"é": 0.1 + 0.2}) == '{"é": 0.30000000000000004}'


def test_value_that_json_cannot_hold_leaves_the_old_file(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", 1)
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"path": tmp_path})
    assert (tmp_path / "a.json").read_text() == "1\n"
    assert list(tmp_path.iterdir()) == [tmp_path / "a.json"]


def test_cache_folder_is_that_of_the_variable_or_of_the_user(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MU_SOTA_CACHE", "~/somewhere")
    assert cache_folder() == Path.home() / "somewhere"
    monkeypatch.setenv("MU_SOTA_CACHE", "")
    of_user = cache_folder()
    assert of_user.name == "mu_sota"
    monkeypatch.delenv("MU_SOTA_CACHE")
    assert cache_folder() == of_user
