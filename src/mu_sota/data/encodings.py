"""The characters of a file of text, whatever encoding it was saved in."""

import codecs
import io
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from mu_sota.model.errors import InputError

_BYTE_ORDER_MARKS = {  # UTF-32 first: its mark begins with that of UTF-16
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_UTF8 = "utf-8-sig"  # drops the mark of a file that has one
_HEAD_BYTES = 4096
_SAMPLE_BYTES = 16_384
_BROKEN_UTF8 = 1 / 1000  # of all characters: with fewer it is UTF-8 with damage, with more another encoding
_BROKEN_OTHERWISE = 1 / 100
_NOT_CP1252 = (0x81, 0x8D, 0x8F, 0x90, 0x9D)

# Stands for what cannot be decoded until that is counted. No decoder gives it, while a file may well hold U+FFFD.
_BROKEN = "\udc80"
_MARK_BROKEN = "mu_sota.mark_broken"
codecs.register_error(_MARK_BROKEN, lambda error: (_BROKEN, error.end))  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Encoding:
    """What `decode` needs to know of a file, whether nothing but white space is in it, and a remark for the user."""

    name: str
    blank: bool
    remark: str | None


@dataclass(frozen=True)
class _Survey:
    """What one pass over the text finds; lines count from 1."""

    characters: int
    blank: bool
    broken: int
    line_of_broken: int

    def replacing(self) -> str:
        characters = "1 character" if self.broken == 1 else f"{self.broken:,} characters"
        return f"with {characters} that could not be read replaced" if self.broken else ""


def find_encoding(path: Path, read: Callable[[], Iterator[bytes]]) -> Encoding:
    """Find how the text of a file is encoded, with one pass over all of it if it is UTF-8 and two or three if not.

    Args:
        path: for the messages.
        read: begins to read the file, in blocks of bytes.

    Raises:
        InputError: it is not text: it holds NUL characters, or no encoding suits it.
    """
    head = _head(read())
    if name := _wide_encoding(head):
        survey = _survey(path, name, read)
        _require_plausible(path, survey)
        return Encoding(name, survey.blank, _sentence(f"{path} was read as {name.upper()}", survey.replacing()))
    survey = _survey(path, _UTF8, read)
    if not survey.broken:
        return Encoding(_UTF8, survey.blank, None)
    if survey.broken < _BROKEN_UTF8 * survey.characters:
        line = f"the first in line {survey.line_of_broken:,}"
        remark = f"{path} is not all UTF-8: it was read {survey.replacing()}, {line}."
        return Encoding(_UTF8, survey.blank, remark)
    name = _legacy_encoding(path, survey, read)
    survey = _survey(path, name, read)
    _require_plausible(path, survey)
    return Encoding(name, survey.blank, _sentence(f"{path} is not UTF-8: it was read as {name}", survey.replacing()))


def decode(blocks: Iterable[bytes], encoding: Encoding) -> Iterator[str]:
    r"""The text of blocks of bytes, none empty, with `\n` for every `\r\n` and `\r`, and U+FFFD for what is broken."""
    for text in _decode(blocks, encoding.name):
        yield text.replace(_BROKEN, "\ufffd")


def _decode(blocks: Iterable[bytes], name: str) -> Iterator[str]:
    characters = codecs.getincrementaldecoder(name)(_MARK_BROKEN)
    decoder = io.IncrementalNewlineDecoder(characters, translate=True)
    for block in blocks:
        if text := decoder.decode(block):
            yield text
    if text := decoder.decode(b"", final=True):
        yield text


def _survey(path: Path, name: str, read: Callable[[], Iterator[bytes]]) -> _Survey:
    characters = broken = lines = 0
    line_of_broken = 1
    blank = True
    for text in _decode(read(), name):
        if (nul := text.find("\0")) >= 0:
            line = lines + text.count("\n", 0, nul) + 1
            raise InputError(
                f"{path}, line {line:,} holds a NUL byte, which no text does: leave out this file, or save it as UTF-8 "
                "text."
            )
        if not broken and (first := text.find(_BROKEN)) >= 0:
            line_of_broken = lines + text.count("\n", 0, first) + 1
        broken += text.count(_BROKEN)
        blank = blank and text.isspace()
        characters += len(text)
        lines += text.count("\n")
    return _Survey(characters, blank, broken, line_of_broken)


def _require_plausible(path: Path, survey: _Survey) -> None:
    if survey.broken > _BROKEN_OTHERWISE * survey.characters:
        raise _no_text(path, survey)


def _no_text(path: Path, survey: _Survey) -> InputError:
    return InputError(
        f"{path}, line {survey.line_of_broken:,} is text in no known encoding: leave out this file, or save it as "
        "UTF-8 text."
    )


def _sentence(*parts: str) -> str:
    return f"{', '.join(filter(None, parts))}."


def _head(blocks: Iterable[bytes]) -> bytes:
    head = b""
    for block in blocks:
        head += block
        if len(head) >= _HEAD_BYTES:
            break
    return head[:_HEAD_BYTES]


def _wide_encoding(head: bytes) -> str | None:
    """UTF-32 or UTF-16, by the mark at the beginning, or, for UTF-16, by NULs as every other byte."""
    for mark, name in _BYTE_ORDER_MARKS.items():
        if head.startswith(mark):
            return name
    if len(head) % 2:
        return None
    pairs = len(head) // 2
    even, odd = head[::2].count(0), head[1::2].count(0)
    if odd > pairs / 2 and even < pairs / 20:
        return "utf-16-le"
    if even > pairs / 2 and odd < pairs / 20:
        return "utf-16-be"
    return None


def _legacy_encoding(path: Path, survey: _Survey, read: Callable[[], Iterator[bytes]]) -> str:
    from charset_normalizer import from_bytes

    sample = _sample(read())
    damage = sum(map(sample.count, _NOT_CP1252))
    if damage <= _BROKEN_OTHERWISE * len(sample.translate(None, bytes(range(128)))):  # one such byte would rule it out
        sample = sample.translate(None, bytes(_NOT_CP1252))
    found = from_bytes(sample)
    best = found.best()
    if best is None:
        raise _no_text(path, survey)
    # Several encodings of Western Europe suit such a text alike. This is the one that is in use.
    return "cp1252" if any("cp1252" in match.could_be_from_charset for match in found) else best.encoding


def _sample(blocks: Iterable[bytes]) -> bytes:
    """Lines that are not UTF-8, about `_SAMPLE_BYTES` in all."""
    sample, rest = b"", b""
    for block in blocks:
        *lines, rest = (rest + block).split(b"\n")
        if len(rest) > _SAMPLE_BYTES:
            lines, rest = [*lines, rest], b""
        for line in lines:
            if not _is_utf8(line):
                sample += line[:_SAMPLE_BYTES] + b"\n"
                if len(sample) > _SAMPLE_BYTES:
                    return sample
    return sample if _is_utf8(rest) else sample + rest


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
