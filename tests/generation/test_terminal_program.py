"""The session as a program: `mu-sota generate --interactive` in a pipe and in a terminal of its own."""

import codecs
import os
import re
import select
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from terminal_model import CORPUS, FEW, shown, small
from transformers import PreTrainedTokenizerFast

from mu_sota import MuForCausalLM, cli
from mu_sota.data.tokenizer import encode, train_bpe
from mu_sota.generation.continuation import continued, text_of
from mu_sota.generation.typed_lines import HISTORY_FILE


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return train_bpe([CORPUS], 300)


@pytest.fixture(scope="module")
def folder(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that goes on for longer than a test waits."""
    folder = tmp_path_factory.mktemp("model")
    small(tokenizer, 8000).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_prompt_and_interactive_exclude_each_other(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--prompt", "a", "--interactive"], []):
        with pytest.raises(SystemExit, match="2"):
            cli.main(["generate", str(folder), *arguments])
        assert "give either --prompt" in capsys.readouterr().err


def test_in_a_pipe_there_are_no_prompts_colours_or_history(folder: Path, tmp_path: Path) -> None:
    """No escape codes, no prompts, no history; a broken text gets its sentence."""
    done = subprocess.run(
        [sys.executable, "-m", "mu_sota", "generate", folder, "--interactive", "--max-new-tokens", "3"],
        input=b"one\n/set seed 3\n\xff\ntwo",
        capture_output=True,
        check=False,
        env=os.environ | {"TERM": "xterm", "MU_SOTA_CACHE": str(tmp_path), "PYTHONIOENCODING": "utf-8"},
    )
    assert done.returncode == 0, done.stderr
    assert re.fullmatch(
        r"[\d,]+ parameters.*\none.*\n\[seed 0, 3 tokens\]\n  seed +3 .*\ntwo.*\n\[seed 3, 3 tokens\]\n",
        done.stdout.decode(),
        re.DOTALL,
    )
    assert b"\x1b" not in done.stdout
    assert b"> " not in done.stdout
    assert re.fullmatch(rb"Loading PyTorch ...\nThe text has the lone surrogate '\\udcff'.*\n", done.stderr)
    assert not (tmp_path / HISTORY_FILE).exists()


class Terminal:
    """A program in a terminal of its own: type into it, wait for its output."""

    def __init__(self, arguments: list[str], cache: Path) -> None:
        import pty

        self.screen, inside = pty.openpty()
        # The child takes the terminal as its own, so that a typed Ctrl-C is a signal to it.
        # Under nohup, SIGINT is ignored, and a child would inherit that.
        code = (
            "import fcntl, signal, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0);"
            "signal.signal(signal.SIGINT, signal.default_int_handler); from mu_sota.cli import main; main()"
        )
        environment = os.environ | {"TERM": "xterm", "MU_SOTA_CACHE": str(cache), "LC_ALL": "C.UTF-8"}
        self.program = subprocess.Popen(
            [sys.executable, "-c", code, *arguments],
            stdin=inside,
            stdout=inside,
            stderr=inside,
            start_new_session=True,
            env={key: value for key, value in environment.items() if key not in ("NO_COLOR", "INPUTRC")},
        )
        os.close(inside)
        self.text = self.all = ""
        self.decoder = codecs.getincrementaldecoder("utf-8")()

    def type(self, keys: str) -> None:
        os.write(self.screen, keys.encode())

    def wait_for(self, pattern: str) -> re.Match[str]:
        """The first match; it and the text before it are dropped."""
        deadline = time.monotonic() + 60
        while not (found := re.search(pattern, self.text, re.DOTALL)):
            assert time.monotonic() < deadline, f"no {pattern!r} in {self.text!r}"
            if select.select([self.screen], [], [], 1)[0]:
                new = self.decoder.decode(os.read(self.screen, 65536))
                self.all += new
                self.text = re.sub(r"\x1b\[\?2004[hl]\r?", "", self.text + new).replace("\r\n", "\n")
        self.text = self.text[found.end() :]
        return found

    def close(self) -> None:
        self.program.kill()
        self.program.wait()
        os.close(self.screen)


@pytest.fixture
def terminal(folder: Path, tmp_path: Path) -> Iterator[Callable[..., Terminal]]:
    pytest.importorskip("pty")
    if "GNU" not in str(pytest.importorskip("readline").__doc__):
        pytest.skip("keys are tested with GNU readline")
    opened = []

    def open_one(*arguments: str) -> Terminal:
        opened.append(Terminal(["generate", str(folder), "--interactive", *arguments], tmp_path))
        return opened[-1]

    yield open_one
    for one in opened:
        one.close()


def test_ctrl_c_in_a_terminal(
    terminal: Callable[..., Terminal], folder: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    """Stops the text and keeps all that has come; at the prompt it says how to leave. Keys, colour, kept lines."""
    one = terminal("--max-new-tokens", "7000")
    one.wait_for("> ")
    made: list[int] = []
    for typed in ("the state", "/more"):
        one.type(typed + "\r")
        one.wait_for(r"\x1b\[2m[^\n]*.{0,60}\x1b\[22m.{30}")
        one.type("\x03")
        found = one.wait_for(r"\[seed (\d), (\d+) tokens, stopped\]\n.*> ")
        assert int(found[1]) == len(made)
        made.append(int(found[2]))
    one.type("/history 1\r")
    text = one.wait_for("/history 1\n(.*)\n> $")[1]
    ids, model = encode(tokenizer, "the state").tolist(), MuForCausalLM.from_pretrained(folder).eval()
    for seed, number in enumerate(made):
        ids = continued(model, tokenizer, ids, FEW, number, seed)
    assert text == shown(text_of(tokenizer, ids))

    one.type("half a line\x03")
    one.wait_for("\n/quit or Ctrl-D leaves\n.*> ")
    one.type("/se\ttemp\t0.5\r")
    one.wait_for("temperature +0.5 .*> ")
    one.type("\x04")
    assert one.program.wait(60) == 0
    kept = tmp_path / "typed_lines"
    assert kept.read_text() == "the state\n/more\n/history 1\n/set temperature 0.5\n"
    assert kept.stat().st_mode & 0o077 == 0, "nobody else's business"


def test_lines_of_earlier_sessions_come_back(terminal: Callable[..., Terminal], tmp_path: Path) -> None:
    """The last 1,000; a pasted text of several lines is one."""
    kept = tmp_path / "typed_lines"
    earlier = [*(f"/set seed {number}" for number in range(1004)), "/set top_k 7"]
    kept.write_text("".join(f"{line}\n" for line in earlier))
    one = terminal("--max-new-tokens", "1")
    one.wait_for("> ")
    one.type("\x1b[A\r")
    one.wait_for("top_k +7 .*> ")
    one.type("\x1b[A\x1b[A\x1b[A\r")
    one.wait_for("seed +1002 .*> ")
    assert "\x1b[?2004h" in one.all, "the terminal is asked to mark what is pasted"
    one.type("\x1b[200~one\ntwo\x1b[201~\r")
    one.wait_for(r"\x1b\[2mone\ntwo\x1b\[22m.*1 token\]")
    one.type("/quit\r")
    assert one.program.wait(60) == 0
    assert kept.read_text().splitlines() == [*earlier[-1000:], "/set top_k 7", "/set seed 1002", r"one\ntwo", "/quit"]
