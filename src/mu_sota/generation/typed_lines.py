"""The lines of standard input, with editing, completion and a history file where a person types them."""

import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from mu_sota.common.files import cache_folder, replacing

HISTORY_FILE = "typed_lines"
_HISTORY_LINES = 1000


def lines(typed: bool, completions: dict[str, list[str]]) -> Iterator[str]:
    """The lines of standard input; with a prompt, editing and history where a person types them.

    Args:
        typed: a person types the lines.
        completions: words that Tab completes, by what precedes them in the line.
    """
    history = edit_lines(completions) if typed and sys.stdout.isatty() else None
    while True:
        try:
            line = input("> " if typed else "")
        except EOFError:
            if typed:
                print()
            return
        except KeyboardInterrupt:
            if not typed:
                raise
            print("\n/quit or Ctrl-D leaves", flush=True)
            continue
        if history is not None and line.strip():
            # At once, so that a closed window loses nothing. A pasted line end is written as it could be typed.
            with suppress(OSError), history.open("a", encoding="utf-8", errors="surrogateescape") as file:
                file.write(line.replace("\n", "\\n") + "\n")
        yield line


def edit_lines(completions: dict[str, list[str]]) -> Path | None:
    """Give `input` line editing, completion and the lines of earlier sessions; return the history file.

    None without `readline`, as on Windows.
    """
    try:
        import readline
    except ImportError:
        return None
    history = cache_folder() / HISTORY_FILE
    with suppress(OSError):  # a session without history is better than none
        for line in _earlier_lines(history):
            with suppress(ValueError):  # it has characters that this terminal's encoding lacks
                readline.add_history(line)
    _complete_with_tab(readline, completions)
    return history


def _earlier_lines(history: Path) -> list[str]:
    """The last lines of the file, which is made if it is missing, and cut if it has grown too long."""
    history.parent.mkdir(parents=True, exist_ok=True)
    history.touch(0o600)
    kept = history.read_text(encoding="utf-8", errors="surrogateescape").split("\n")[:-1]
    if len(kept) > _HISTORY_LINES:
        kept = kept[-_HISTORY_LINES:]
        with replacing(history) as fresh:
            fresh.touch(0o600)
            fresh.write_text("\n".join([*kept, ""]), encoding="utf-8", errors="surrogateescape")
    return kept


def _complete_with_tab(readline: Any, completions: dict[str, list[str]]) -> None:
    def complete(word: str, state: int) -> str | None:
        before = readline.get_line_buffer()[: readline.get_begidx()]
        known = completions.get(before.strip(), [])
        return [*(f"{name} " for name in known if name.startswith(word)), None][state]

    readline.set_completer(complete)
    readline.set_completer_delims(" ")
    if "libedit" in (readline.__doc__ or ""):  # as on macOS
        readline.parse_and_bind("bind ^I rl_complete")
    else:
        readline.parse_and_bind("tab: complete")
        readline.parse_and_bind("set enable-bracketed-paste on")  # several pasted lines are one text
