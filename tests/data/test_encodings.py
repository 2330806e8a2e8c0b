"""Text is read whatever encoding it was saved in, and the user is told what was done to it."""

import codecs
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mu_sota.data.encodings import decode, find_encoding
from mu_sota.model.errors import InputError

FRENCH = "Été à la plage, où les élèves ont déjà mangé des crêpes; ça va très bien.\n"
RUSSIAN = "Привет, как дела? Это обычный русский текст, который читают.\n"
ENGLISH = "A line of plain text, as there are many.\n"


def read(content: bytes, block: int = 7) -> tuple[str, str | None]:
    """Text and remark, from blocks of a few bytes: characters lie across their ends."""

    def blocks() -> Iterator[bytes]:
        return (content[start : start + block] for start in range(0, len(content), block))

    encoding = find_encoding(Path("notes.txt"), blocks)
    pieces = list(decode(blocks(), encoding))
    assert all(pieces)
    text = "".join(pieces)
    assert encoding.blank == (not text or text.isspace())
    return text, encoding.remark


@given(
    text=st.text(st.characters(exclude_characters="\0\ufeff", exclude_categories=["Cs"])),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "utf-16", "utf-32"]),
    block=st.integers(1, 9),
)
@example(text="a\r\nb\rc\n\r", encoding="utf-16", block=1)
@example(text="\ufffd is a character, too", encoding="utf-8", block=2)
def test_every_unicode_text_is_read_as_it_is(text: str, encoding: str, block: int) -> None:
    told = {"utf-16": "notes.txt was read as UTF-16.", "utf-32": "notes.txt was read as UTF-32."}.get(encoding)
    expected = text.replace("\r\n", "\n").replace("\r", "\n")
    assert read(text.encode(encoding), block) == (expected, told)


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf16_without_a_mark_is_seen_by_its_nuls(encoding: str) -> None:
    text = FRENCH * 100
    assert read(text.encode(encoding)) == (text, f"notes.txt was read as {encoding.upper()}.")


@pytest.mark.parametrize(
    ("text", "encoding", "name"),
    [
        (FRENCH, "latin-1", "cp1252"),
        ("“Naïve”, she said – a café.\n", "cp1252", "cp1252"),
        (RUSSIAN, "cp1251", "cp1251"),
        (RUSSIAN * 20, "koi8-r", "koi8_r"),
        ("吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。\n" * 5, "shift_jis", "cp932"),
    ],
)
def test_older_encodings_are_found(text: str, encoding: str, name: str) -> None:
    # What is not UTF-8 begins far behind the first blocks.
    assert read(("plain\n" * 200 + text).encode(encoding), 1000) == (
        "plain\n" * 200 + text,
        f"notes.txt is not UTF-8: it was read as {name}.",
    )


def test_what_another_encoding_lacks_is_replaced_and_counted() -> None:
    content = FRENCH.encode("cp1252") * 20 + b"\x81\x81\n" + FRENCH.encode("cp1252") * 20 + b"\x8d"
    text, remark = read(b"x" * 20_000 + b"\n" + content[: len(FRENCH) * 20] + content, 999)
    assert text.count("\ufffd") == 3
    assert FRENCH in text
    assert remark == (
        "notes.txt is not UTF-8: it was read as cp1252, with 3 characters that could not be read replaced."
    )


def test_a_few_broken_bytes_leave_utf8() -> None:
    content = (ENGLISH * 100 + "déjà \ufffd\n").encode() + b"bro\xe2\x82ken\xff\n" + FRENCH.encode() * 100
    text, remark = read(content)
    assert text == ENGLISH * 100 + "déjà \ufffd\nbro\ufffdken\ufffd\n" + FRENCH * 100
    assert remark == (
        "notes.txt is not all UTF-8: it was read with 2 characters that could not be read replaced, the first in line "
        "102."
    )


def test_damaged_utf16_is_replaced_and_counted() -> None:
    content = codecs.BOM_UTF16_LE + ENGLISH.encode("utf-16-le") * 10 + b"\x00\xd8" + ENGLISH.encode("utf-16-le")
    text, remark = read(content)
    assert text == ENGLISH * 10 + "\ufffd" + ENGLISH
    assert remark == "notes.txt was read as UTF-16, with 1 character that could not be read replaced."


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"text\nand\0more\n", "notes.txt, line 2 holds a NUL byte"),
        (b"\x7fELF\x02\x01\x01" + bytes(range(256)) * 20, "holds a NUL byte"),
        (codecs.BOM_UTF16_LE + b"\x00\xd8" * 50, "notes.txt, line 1 is text in no known encoding: leave out"),
        (bytes(range(1, 256)) * 40, "is text in no known encoding"),
    ],
)
def test_what_is_no_text_is_refused(content: bytes, message: str) -> None:
    with pytest.raises(InputError, match=message):
        read(content)
