"""Errors that are nobody's bug, as an exit status and a sentence."""

import errno
import sys
from typing import Any, NoReturn


def sentence_of(error: BaseException) -> tuple[int, str] | None:
    """Exit status and sentence of an error that is nobody's bug."""
    if type(error).__name__ == "Interrupted":
        return 130, f"interrupted: {error}; the same command with --resume goes on from there"
    causes: list[Any] = [error, error.__cause__, error.__context__]
    for cause in causes:
        if isinstance(cause, OSError) and cause.errno in (errno.ENOSPC, errno.EDQUOT):
            place = cause.filename or "the output folder"
            return 2, f"the disk is full, writing {place}; free some space, then go on with --resume"
        if isinstance(cause, OSError) and cause.errno == errno.ENAMETOOLONG:
            return 2, f"{str(cause.filename)[:40]}... is too long for the name of a file; give a shorter one"
        if isinstance(cause, PermissionError | NotADirectoryError | FileExistsError | IsADirectoryError):
            return 2, f"{cause.filename} cannot be used ({cause.strerror}); choose another folder, or change its rights"
    if "No space left on device" in str(error) or "os error 28" in str(error):
        return 2, "the disk is full; free some space, then go on with --resume"
    if "inline_container" in str(error) or "PytorchStreamWriter" in str(error):  # all that torch.save says of it
        return 2, "a model file could not be written whole, most likely to a full disk; free space, then use --resume"
    if isinstance(error, ImportError):
        return 2, f"a library is missing or of the wrong version ({error}); `pip install .` brings what is needed"
    return None


def leave(status: int, sentence: str) -> NoReturn:
    """End the program."""
    print(f"mu-sota: {sentence}", file=sys.stderr)
    sys.exit(status)
