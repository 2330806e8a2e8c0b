"""The server of the page: for this machine alone, and with sentences where it cannot start."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from mu_sota import cli
from mu_sota.playground.callbacks import NO_TEXT
from mu_sota.playground.server import PAGES_KEPT

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

from playground_sessions import Visit


def answered(url: str, **headers: str) -> int:
    try:
        with urlopen(Request(url, headers=headers)) as response:
            return int(response.status)
    except HTTPError as error:
        return error.code


@pytest.mark.parametrize("path", ["", "/config", "/gradio_api/info", "/gradio_api/queue/data?session_hash=a"])
def test_requests_under_another_host_name_are_refused(served: str, path: str) -> None:
    """A page elsewhere may have its name lead here (DNS rebinding)."""
    port = served.rpartition(":")[2]
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", "0.0.0.0"):
        assert answered(served + path, Host=host) == 400
    if "queue" not in path:
        for host in (f"127.0.0.1:{port}", f"localhost:{port}", "localhost"):
            assert answered(served + path, Host=host) == 200


def test_no_function_of_the_page_is_offered_to_programs(served: str) -> None:
    with urlopen(f"{served}/gradio_api/info") as response:
        assert json.load(response)["named_endpoints"] == {}


# What the process of a playground runs; when it is sent SIGUSR1, it prints how many objects of a visitor it keeps.
COUNTING = """
import gc, signal
from gradio.state_holder import SessionState
from mu_sota.playground.session import Reading

def count(*_):
    gc.collect()
    kept = [type(each) for each in gc.get_objects()]
    print(kept.count(Reading), kept.count(SessionState), flush=True)

signal.signal(signal.SIGUSR1, count)
import mu_sota.__main__
"""


def test_the_texts_of_few_pages_are_kept(small_run: Path) -> None:
    """Those of the pages used last, also where older ones were never closed; such a page must read its text again."""
    command = [sys.executable, "-c", COUNTING, "playground", str(small_run), "--no-browser", "--port=0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as playground:
        assert playground.stdout is not None
        address = next(line.split()[4] for line in playground.stdout if "http://" in line)
        pages = [Visit(address) for _ in range(2 + 2 * PAGES_KEPT)]
        try:
            first, second, *others = pages
            for early in (first, second):
                early.do("on_read")
            for number, visit in enumerate(others):
                visit.do("on_generate")
                assert NO_TEXT not in second.do("on_pick", event_data={"index": 0})
                if number % 2:
                    visit.leave()
            assert NO_TEXT in first.do("on_pick", event_data={"index": 0})
            first.do("on_read")
            assert NO_TEXT not in first.do("on_pick", event_data={"index": 0})
            playground.send_signal(signal.SIGUSR1)
            assert playground.stdout.readline() == f"{PAGES_KEPT} {PAGES_KEPT}\n"
        finally:
            for visit in pages:
                visit.leave()
            playground.kill()


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    with pytest.raises(SystemExit) as left:
        cli.main(["playground", *arguments])
    assert left.value.code == 2
    return capsys.readouterr().err.strip()


def test_a_folder_without_a_model_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    assert "not a MU model" in refused(capsys, str(tmp_path), "--no-browser")
    assert "there is no folder" in refused(capsys, str(tmp_path / "none"), "--no-browser")


def test_without_gradio_an_error_says_how_to_install_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert (
        refused(capsys, str(tmp_path))
        == "mu-sota: the playground needs gradio, which is not installed: pip install 'gradio>=6.28'"
    )
