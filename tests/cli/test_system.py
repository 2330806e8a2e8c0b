"""What a system can refuse, and what a path can be: a sentence, and nothing that drives the terminal."""

import errno
import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import transformers

from mu_sota import cli
from mu_sota.cli.errors import sentence_of
from mu_sota.common.files import read_json, write_json
from mu_sota.common.text import as_word
from mu_sota.model.errors import InputError

ODD_NAMES = [
    "with space",
    "it's",
    '"quoted"',
    "$HOME;rm -x",
    "back\\slash",
    "-dash",
    "--out",
    "#x",
    "~",
    "new\nline",
    "\x1b[31mred",
    "tab\t",
    "é→😀",
    "\u202egnp",
    "*?[a]",
    "x" * 200,
]


@pytest.fixture(autouse=True)
def _library_output_as_before() -> Any:
    verbosity = transformers.logging.get_verbosity()
    yield
    transformers.logging.set_verbosity(verbosity)
    transformers.logging.enable_progress_bar()


def mu_sota(capsys: pytest.CaptureFixture[str], *arguments: str | Path) -> tuple[int, str, str]:
    """Exit status, output and error output of a command, run in this process."""
    with pytest.raises(SystemExit) as left:
        cli.main([str(argument) for argument in arguments])
    printed = capsys.readouterr()
    assert isinstance(left.value.code, int)
    return left.value.code, printed.out, printed.err


def shell(line: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """A line of bash, in which `mu-sota` is this package."""
    script = f'mu-sota() {{ {shlex.quote(sys.executable)} -m mu_sota "$@"; }}\nset -o pipefail\n{line}'
    environment = (
        os.environ
        | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "", "PYTHONPATH": str(Path(cli.__file__).parents[2])}
        | variables
    )
    return subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, check=False, env=environment, timeout=60
    )


@pytest.mark.parametrize("name", ODD_NAMES)
def test_a_shown_path_can_be_pasted(name: str, tmp_path: Path) -> None:
    """Into a shell, where it is this path and nothing else."""
    word = as_word(name)
    assert word.isprintable()
    done = subprocess.run(["bash", "-c", f"printf %s {word}"], capture_output=True, check=True, cwd=tmp_path)
    assert done.stdout.decode().removeprefix("./") == name
    assert done.stdout[:1] != b"-"


@pytest.mark.parametrize("name", ODD_NAMES)
def test_what_is_said_of_an_odd_path_drives_no_terminal(
    name: str, trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    for words in (
        ["generate", "--prompt", "a", "--", name],
        ["evaluate", "--data", f"{name}/x", "--", trained[1]],
        ["info", "--config", name],
        ["compare", "--resume", "--out", name],
        ["export", "--out", trained[1], "--", name],
    ):
        status, out, errors = mu_sota(capsys, *words)
        said = [line for line in errors.splitlines() if line != "Loading PyTorch ..."]
        assert (status, len(said), out) == (2, 1, ""), errors
        assert said[0].isprintable()
    for words in ([name], ["info", f"--x{name}"], ["playground", "x", "--port", name]):
        status, out, errors = mu_sota(capsys, *words)
        assert status == 2
        assert all(line.isprintable() for line in (out + errors).split("\n"))


@pytest.mark.parametrize("name", ["with space", "-dash", "\x1b[31mred\n", "é→😀"])
def test_the_commands_shown_after_an_export_name_its_folder(
    name: str, trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    Path(name).mkdir()
    status, out, _ = mu_sota(capsys, "export", trained[1], "--out", f"{name}/model")
    assert status == 0
    assert all(line.isprintable() for line in out.split("\n"))
    command = out.strip().splitlines()[-1].partition(": ")[2]
    done = subprocess.run(["bash", "-c", f'hf() {{ cd "$3"; ls; }}; {command}'], capture_output=True, check=True)
    assert b"config.json" in done.stdout


def test_a_name_that_is_no_utf8(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As an argument it is refused; in a folder above, it stands in records as JSON has it."""
    monkeypatch.chdir(tmp_path)
    odd = os.fsdecode(b"caf\xe9")
    for words in (["train", "--out", odd], ["generate", odd, "--prompt", "a"], ["evaluate", "x", "--data", odd]):
        status, _, errors = mu_sota(capsys, *words)
        assert status == 2
        assert errors.startswith("mu-sota: the argument caf\\udce9 is not in this system's encoding")
    (tmp_path / odd).mkdir()
    file = tmp_path / odd / "record.json"
    write_json(file, {"folder": str(file.parent)})
    assert read_json(file, "") == {"folder": str(file.parent)}
    file.read_bytes().decode("utf-8")


ON_LINUX = pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has /proc and /dev/full")


@ON_LINUX
@pytest.mark.parametrize("place", ["/dev/null", "/dev/full", "/dev/null/x", "/proc/x", "/proc/self/x", "/proc/version"])
def test_nothing_takes_the_place_of_a_device(place: str) -> None:
    before = Path(place).stat() if Path(place).exists() else None
    with pytest.raises((InputError, OSError)) as refused:
        write_json(place, {})
    assert isinstance(refused.value, InputError) or sentence_of(refused.value)
    assert before == (Path(place).stat() if Path(place).exists() else None)


@ON_LINUX
@pytest.mark.parametrize("place", ["/dev/null", "/proc/x"])
def test_places_where_no_command_can_write(
    place: str, trained: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    corpus, run = trained
    commands: list[list[str | Path]] = [
        ["prepare", "--data", corpus, "--out", place, "--set", "vocab_size=300"],
        ["export", run, "--out", place],
    ]
    for words in commands:
        status, _, errors = mu_sota(capsys, *words)
        assert status == 2, words
        assert sum(line.startswith("mu-sota: ") for line in errors.splitlines()) == 1, errors
        assert "Traceback" not in errors


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (OSError(errno.EFBIG, "File too large", "a.npy"), "a.npy became larger than this system allows (ulimit -f)"),
        (RuntimeError("I/O error: File too large (os error 27)"), "larger than this system allows"),
        (OSError(errno.EMFILE, "Too many open files"), "open no more files"),
        (OSError(errno.EROFS, "Read-only file system", "out"), "out cannot be used (Read-only file system)"),
        (OSError(errno.EIO, "Input/output error", b"out"), "out cannot be used (Input/output error)"),
        (OSError(errno.ELOOP, "Too many levels of symbolic links", "out"), "out cannot be used (Too many levels"),
        (OSError(errno.ENOMEM, "Cannot allocate memory"), "out of memory"),
        (MemoryError(), "out of memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"), "out of memory"),
        (ImportError("libtorch_cpu.so: failed to map segment from shared object"), "out of memory"),
        (RuntimeError("can't start new thread"), "no more threads"),
        (UnicodeEncodeError("utf-8", "caf\udce9", 3, 4, "surrogates not allowed"), "caf\udce9 is not valid UTF-8"),
    ],
)
def test_what_the_system_refuses_has_a_sentence(error: Exception, said: str) -> None:
    found = sentence_of(error)
    assert found is not None
    assert found[0] == 2
    assert said in found[1]


def test_an_error_of_ours_has_none() -> None:
    for error in (KeyError("a"), RuntimeError("boom"), OSError("what a library says"), ValueError("odd")):
        assert sentence_of(error) is None


@pytest.mark.parametrize(
    ("line", "status", "said"),
    [
        ("mu-sota train --help | head -1 >/dev/null", (0, 141), ""),  # by what the pipe holds
        ("mu-sota info | true", (141,), "Loading PyTorch ...\n"),
        ("mu-sota --version >&-", (0,), ""),
        ("mu-sota generate no-such-folder --prompt a 2>&-", (2,), ""),
        ("mu-sota generate no-such-folder --prompt a 2>/dev/full", (2,), ""),
        ("mu-sota --version >/dev/full", (2,), "mu-sota: the disk is full"),
        ("ulimit -v 400000; mu-sota info", (2,), "mu-sota: out of memory"),
        ("ulimit -n 4; mu-sota generate no-such-folder --prompt a", None, ""),  # Python itself may say it
        ("cd $(mktemp -d); rmdir $PWD; mu-sota prepare --data corpus --out x", (2,), "mu-sota: "),
        ("LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0 mu-sota generate 'é' --prompt a", (2,), "mu-sota: the argument"),
        ("LC_ALL=C PYTHONUTF8=0 PYTHONCOERCECLOCALE=0 mu-sota generate x --prompt a", (2,), "mu-sota: there is no"),
        ("env -u HOME TMPDIR=/no/such $PYTHON -m mu_sota evaluate no-such-folder", (2,), "mu-sota: there is no folder"),
    ],
)
def test_streams_limits_and_surroundings(line: str, status: tuple[int, ...] | None, said: str) -> None:
    done = shell(line, PYTHON=sys.executable)
    assert status is None or done.returncode in status, done
    assert said in done.stderr
    if status is not None:
        assert "Traceback" not in done.stderr
        assert "Exception ignored" not in done.stderr


def test_a_file_that_grows_too_large(trained: tuple[Path, Path], tmp_path: Path) -> None:
    """ulimit -f: the signal does not end the program, and no half of a model is left."""
    done = shell(f"ulimit -f 64; mu-sota export {shlex.quote(str(trained[1]))} --out {tmp_path}/out")
    assert done.returncode == 2, done
    assert "larger than this system allows (ulimit -f)" in done.stderr
    assert not list(tmp_path.iterdir())


def test_a_home_that_nobody_has(capsys: pytest.CaptureFixture[str], trained: tuple[Path, Path]) -> None:
    for words in (
        ["train", "--out", "x", "--data", "~no-such-user/x"],
        ["evaluate", trained[1], "--data", "~no-such-user/x y"],
    ):
        status, _, errors = mu_sota(capsys, *words)
        assert status == 2
        assert "mu-sota: " in errors


def test_json_stays_json_where_a_path_is_odd(
    trained: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "\x1b[31m\x9f\n"
    folder.symlink_to(trained[1])
    status, out, _ = mu_sota(capsys, "evaluate", folder, "--data", trained[0], "--json")
    assert status == 0
    assert json.loads(out)["model"] == str(folder)
