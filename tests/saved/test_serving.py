"""`transformers serve` on an exported model: an OpenAI-compatible endpoint, from the folder alone."""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import transformers
from conftest import command_of, examples
from packaging.version import Version
from transformers.utils.import_utils import is_rich_available, is_serve_available

pytestmark = [
    pytest.mark.skipif(
        not (is_serve_available() and is_rich_available()),
        reason="transformers serve lacks a package: pip install 'transformers[serving]'",
    ),
    pytest.mark.skipif(
        Version(transformers.__version__) < Version("5.23"), reason="before 5.23 it serves no code of a folder"
    ),
]

PATIENCE = 180  # seconds, on a slow machine; usually it takes 10
PROMPT = "the state of a token"
NO_PROXY = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Server:
    """A running server, asked as any client would."""

    def __init__(self, address: str, model: str) -> None:
        self.address, self.model = address, model

    def ask(self, path: str, **body: Any) -> str:
        """What is answered to the body as JSON, or to none."""
        data = json.dumps({"model": self.model, **body}).encode() if body else None
        request = urllib.request.Request(self.address + path, data, {"Content-Type": "application/json"})
        with NO_PROXY.open(request, timeout=PATIENCE) as answer:
            return str(answer.read().decode())

    def complete(self, prompt: str = PROMPT, **settings: Any) -> tuple[str, dict[str, Any]]:
        """The text that follows the prompt, and the whole answer."""
        answer = json.loads(self.ask("/v1/completions", prompt=prompt, **settings))
        return answer["choices"][0]["text"], answer


@pytest.fixture(scope="module")
def server(tiny_export: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """The server of the tiny model, started with the documented command, in the folder where the model lies."""
    place = tmp_path_factory.mktemp("serving")
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    environment |= {"HF_HUB_OFFLINE": "1", "HF_HOME": str(place)}
    (example,) = examples("bash", "transformers serve")
    _, *words = command_of(example, "transformers serve")
    words[words.index("my-model")] = tiny_export.name
    command = [sys.executable, "-m", "transformers.cli.transformers", *words, "--device=cpu", f"--port={port}"]
    log = place / "log"
    with log.open("w") as output:
        process = subprocess.Popen(
            command,
            cwd=tiny_export.parent,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    try:
        served = Server(f"http://localhost:{port}", tiny_export.name)
        deadline = time.monotonic() + PATIENCE
        while True:
            try:
                assert json.loads(served.ask("/health")) == {"status": "ok"}
                break
            except urllib.error.URLError:  # not listening yet
                assert process.poll() is None, log.read_text()
                assert time.monotonic() < deadline, log.read_text()
                time.sleep(0.2)
        yield served
    finally:
        process.terminate()
        try:
            process.wait(timeout=30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def test_the_documented_clients_get_an_answer(server: Server) -> None:
    """The words after `curl`, asked here; and the Python example, with the address of this server."""
    (example,) = examples("bash", "curl")
    _, address, *_, body = command_of(example, "curl")
    assert json.loads(server.ask(address.removeprefix("localhost:8000"), **json.loads(body)))["choices"][0]["text"]
    (code,) = examples("python", "openai")
    assert "my-model" in code
    code = code.replace("http://localhost:8000", server.address).replace("my-model", server.model)
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "NO_PROXY": "localhost"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


def test_a_completion_follows_its_seed(server: Server) -> None:
    text, answer = server.complete(max_tokens=8, seed=1)
    assert text
    assert answer["usage"]["completion_tokens"] == 8
    assert answer["choices"][0]["finish_reason"] == "length"
    assert server.complete(max_tokens=8, seed=1)[0] == text
    assert {server.complete(max_tokens=8, seed=seed)[0] for seed in range(2, 6)} != {text}


def test_parallel_requests_give_the_texts_of_their_seeds(server: Server) -> None:
    """Where the generation config has the seed, as documented; the text is that of `seed` in a request alone."""
    alone = [server.complete(max_tokens=12, seed=seed)[0] for seed in range(16)]
    assert len(set(alone)) > 8
    with ThreadPoolExecutor(8) as pool:
        configs = [json.dumps({"sampling_seed": seed}) for seed in range(16)]
        together = pool.map(lambda config: server.complete(max_tokens=12, generation_config=config)[0], configs)
        assert list(together) == alone


def test_temperature_and_stop_are_heeded(server: Server) -> None:
    likeliest, _ = server.complete(max_tokens=12, temperature=0, seed=1)
    assert server.complete(max_tokens=12, temperature=0, seed=2)[0] == likeliest
    assert server.complete(max_tokens=12, top_p=1e-6, seed=3)[0] == likeliest
    stop = likeliest[len(likeliest) // 4 :][:2]
    stopped, answer = server.complete(max_tokens=12, temperature=0, stop=[stop])
    assert likeliest.startswith(stopped)
    assert stop in stopped
    assert answer["usage"]["completion_tokens"] < 12
    assert answer["choices"][0]["finish_reason"] == "stop"


def test_a_chat_is_streamed_as_the_continuation_of_its_messages(server: Server) -> None:
    """The chat template joins the messages; the stream's pieces are the text of a completion of them."""
    messages = [{"role": "system", "content": "the state"}, {"role": "user", "content": "of a token"}]
    stream = server.ask("/v1/chat/completions", messages=messages, max_tokens=8, temperature=0, stream=True)
    chunks = [json.loads(line.removeprefix("data: ")) for line in stream.splitlines() if line]
    assert len(chunks) > 4  # not all at once
    text = "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks)
    expected, answer = server.complete("the state\nof a token", max_tokens=8, temperature=0)
    assert text == expected
    assert chunks[-1]["usage"] == answer["usage"]
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"


def test_a_text_ends_at_the_last_position(server: Server) -> None:
    """A client that names no `max_tokens` asks for 1,024; the model has 32 positions."""
    usage = server.complete(temperature=0)[1]["usage"]
    assert usage["total_tokens"] <= 32
    assert usage["completion_tokens"] > 8


@pytest.mark.parametrize("prompt", ["", "the state of a token " * 20])
def test_a_prompt_it_cannot_take_is_an_error_and_no_more(server: Server, prompt: str) -> None:
    with pytest.raises(urllib.error.HTTPError) as error:
        server.complete(prompt)
    assert error.value.code == 500
    error.value.close()
    assert server.complete(max_tokens=2)[0]
