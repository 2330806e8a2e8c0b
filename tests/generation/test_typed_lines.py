"""Line editing and the history file of the terminal session."""

import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from mu_sota.generation.typed_lines import edit_lines


def test_the_history_file_is_readable_by_its_owner_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the file is written anew, because it has grown too long."""
    readline = SimpleNamespace(__doc__="")
    for name in ("set_completer", "set_completer_delims", "parse_and_bind", "add_history"):
        setattr(readline, name, lambda _: None)
    monkeypatch.setitem(sys.modules, "readline", readline)
    monkeypatch.setenv("MU_SOTA_CACHE", str(tmp_path))
    before = os.umask(0o022)
    try:
        kept = edit_lines({})
        assert kept is not None
        kept.write_text("line\n" * 1005)
        assert kept.stat().st_mode & 0o777 == 0o600
        edit_lines({})
    finally:
        os.umask(before)
    assert kept.read_text() == "line\n" * 1000
    assert kept.stat().st_mode & 0o777 == 0o600


def test_without_readline_or_a_folder_for_the_history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("MU_SOTA_CACHE", str(tmp_path / "file"))
    monkeypatch.setitem(sys.modules, "readline", None)
    assert edit_lines({}) is None
    lines = SimpleNamespace(__doc__="libedit", bound=[])
    for name in ("set_completer", "set_completer_delims"):
        setattr(lines, name, lambda _: None)
    lines.parse_and_bind = lines.bound.append
    monkeypatch.setitem(sys.modules, "readline", lines)
    assert edit_lines({}) == tmp_path / "file" / "typed_lines"
    assert lines.bound == ["bind ^I rl_complete"]
