"""Errors that are nobody's bug, as an exit status and a sentence; and how the program ends with it."""

import errno
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn

from mu_sota.common.outside import reason_of
from mu_sota.common.text import visible
from mu_sota.model.errors import cut

_NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_LONGEST = 1000  # characters of a sentence, in which a value may stand that is a book
_TOO_MUCH_OPEN = (errno.EMFILE, errno.ENFILE)
_NO_MEMORY = ("allocate memory", "out of memory", "failed to map segment")  # of PyTorch, of CUDA, of the linker
_MEMORY = "out of memory: close other programs, allow more (ulimit -v), or take a smaller model, window or batch"
_GO_ON = "then go on with --resume"


def sentence_of(error: BaseException) -> tuple[int, str] | None:
    """Exit status and sentence of an error that is nobody's bug: of what the system refuses, whatever that is."""
    if type(error).__name__ == "Interrupted":
        return 130, f"interrupted: {error}; the same command with --resume goes on from there"
    causes: list[Any] = [error, error.__cause__, error.__context__]
    for cause in causes:
        if isinstance(cause, OSError) and cause.errno is not None:
            return 2, _refused_by_the_system(cause)
        if isinstance(cause, UnicodeEncodeError) and "surrogates" in cause.reason:
            return (
                2,
                f"{_shown(cause.object)} is not valid UTF-8, as a name of a file can be; rename the file or folder",
            )
    said = " ".join(str(error).split())
    # What libraries in Rust and C++ say of the same.
    if "No space left on device" in said or "os error 28" in said:
        return 2, f"the disk is full; free some space, {_GO_ON}"
    if "File too large" in said or "os error 27" in said:
        return 2, f"a file became larger than this system allows (ulimit -f); allow more, {_GO_ON}"
    if "inline_container" in said or "PytorchStreamWriter" in said:  # all that torch.save says of it
        return 2, f"a model file could not be written whole, most likely to a full disk; free space, {_GO_ON}"
    if isinstance(error, MemoryError) or any(phrase in said for phrase in _NO_MEMORY):
        return 2, _MEMORY
    if "can't start new thread" in said:
        return 2, "the system allows no more threads (ulimit -u); close other programs, or set OMP_NUM_THREADS=1"
    if isinstance(error, ImportError):
        return 2, f"a library is missing or of the wrong version ({error}); `pip install .` brings what is needed"
    return None


def _refused_by_the_system(error: OSError) -> str:
    if error.errno == errno.ENOENT and _left_nowhere():
        return "the folder in which this was started is gone; change to another one"
    place = _shown(error.filename) if error.filename is not None else "a file, or the output"
    if error.errno == errno.EFBIG:
        return f"{place} became larger than this system allows (ulimit -f); allow more, {_GO_ON}"
    if error.errno in _NO_ROOM:
        return f"the disk is full, writing {place}; free some space, {_GO_ON}"
    if error.errno in _TOO_MUCH_OPEN:
        return "the system lets this program open no more files; allow more, as with ulimit -n 1024"
    if error.errno == errno.ENOMEM:
        return _MEMORY
    if error.errno == errno.ENAMETOOLONG:
        return f"{place} is too long for the name of a file; give a shorter one"
    return f"{place} cannot be used ({reason_of(error)}); choose another file or folder, or change its rights"


def _left_nowhere() -> bool:
    """True if the current folder has been removed."""
    try:
        Path.cwd()
    except FileNotFoundError:
        return True
    return False


def _shown(name: Any) -> str:
    """A name in a sentence, cut if it is long."""
    text = os.fsdecode(name) if isinstance(name, str | bytes) else str(name)
    return text if len(text) <= 300 else f"{text[:40]}..."


def leave(status: int, sentence: str) -> NoReturn:
    """End the program. Whatever stands in the sentence, it is one line, and drives no terminal."""
    with suppress(OSError):  # there may be nobody to read it
        line = visible(cut(sentence, _LONGEST), spaces=False).replace("\n", r"\n").replace("\t", r"\t")
        print(f"mu-sota: {line}", file=sys.stderr, flush=True)
    sys.exit(status)


def drop_output() -> None:
    """What could not be written is given up; or Python would try again at its end, and complain."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError, AttributeError):  # it is closed, in memory, or None
            stream.flush()
            continue
        with suppress(OSError, ValueError, AttributeError):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, stream.fileno())
            os.close(nowhere)
