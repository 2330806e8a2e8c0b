"""The bytes of a file, unfolded if it is compressed; what is no regular file, or unfolds without end, is refused."""

import gzip
import lzma
import stat
import tempfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import IO, Any

from mu_sota.model.errors import InputError

from .options import COMPRESSIONS

BLOCK_BYTES = 1 << 18

# A file that unfolds to more than both is a trap, not a text.
_MOST_TIMES_ITS_SIZE = 1000
_MOST_UNFOLDED = 1_000_000_000


def read_bytes(path: Path) -> bytes:
    """The content of a file, or the error that a user reads."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise unreadable(path, error) from error


def unreadable(path: Path, error: OSError) -> InputError:
    """The error of a file or folder that the system does not open."""
    return InputError(f"{path} cannot be read ({error.strerror or error}): check its permissions and its disk.")


def require_regular(path: Path) -> int:
    """The most bytes that the file may unfold to, from its size."""
    try:
        status = path.stat()
    except OSError as error:
        raise unreadable(path, error) from error
    if not stat.S_ISREG(status.st_mode):
        raise InputError(f"{path} is a folder, pipe, device or socket: give a regular file.")
    return max(_MOST_UNFOLDED, _MOST_TIMES_ITS_SIZE * status.st_size)


def require_sane(path: Path | str, unfolded: int, limit: int) -> None:
    if unfolded > limit:
        raise InputError(
            f"{path} unfolds to more than {limit:,} bytes, over {_MOST_TIMES_ITS_SIZE:,} times its size, which no text "
            "does: leave it out, or unpack it yourself."
        )


def blocks(path: Path) -> Iterator[bytes]:
    """The content of a file, unfolded."""
    limit, unfolded = require_regular(path), 0
    suffix = path.suffix.lower()
    try:
        with path.open("rb") as file:
            for block in _unfold(file, suffix):
                unfolded += len(block)
                require_sane(path, unfolded, limit)
                yield block
    except InputError:
        raise
    except (EOFError, ValueError, zlib.error, gzip.BadGzipFile, lzma.LZMAError) as error:
        raise InputError(f"{path} is no whole {suffix} file ({error}): compress it again, or get it again.") from error
    except OSError as error:
        raise unreadable(path, error) from error


def _unfold(file: IO[bytes], suffix: str) -> Iterator[bytes]:
    if suffix == ".zst":
        yield from _unfold_zst(file)
        return
    formats: dict[str, Callable[[IO[bytes]], AbstractContextManager[Any]]] = {".gz": gzip.open, ".xz": lzma.open}
    with formats.get(suffix, nullcontext)(file) as unfolded:
        while block := unfolded.read(BLOCK_BYTES):
            yield block


def _unfold_zst(file: IO[bytes]) -> Iterator[bytes]:
    """As `zstandard.open` reads, but a file that ends too early is an error."""
    import zstandard

    unfolder = None
    try:
        while block := file.read(4096):  # which unfold to 128 MiB at most
            while block:
                unfolder = unfolder or zstandard.ZstdDecompressor().decompressobj()
                yield unfolder.decompress(block)
                block = unfolder.unused_data if unfolder.eof else b""
                unfolder = None if unfolder.eof else unfolder
    except zstandard.ZstdError as error:
        raise ValueError(error) from error
    if unfolder:
        raise EOFError("it ends too early")


@contextmanager
def on_disk(path: Path) -> Iterator[str]:
    """The name of a file with the unfolded content, for readers that go back and forth in it."""
    if path.suffix.lower() not in COMPRESSIONS:
        yield str(path)
        return
    with tempfile.NamedTemporaryFile() as file:
        for block in blocks(path):
            file.write(block)
        file.flush()
        yield file.name
