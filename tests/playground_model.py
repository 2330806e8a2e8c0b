"""A small model for the playground, the playground that serves it, and what a browser would make of some HTML."""

import asyncio
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import command_of, examples
from transformers import PreTrainedTokenizerFast

from mu_sota import MuConfig, MuForCausalLM
from mu_sota.common.files import write_json
from mu_sota.data.tokenizer import train_bpe
from mu_sota.model.blocks import BLOCKS
from mu_sota.saved.run_record import INSPECTION_FILE, inspection_folder

SENTENCES = [
    "the state of a token is a matrix of named blocks. ",
    "every block reads what the blocks before it have rest. ",
    "a small model of the state moves the blocks it keeps. ",
]
MARKUP = "<img src=x onerror=alert(1)>"
NAMES = [block.name for block in BLOCKS]


def _direction(block: str, away: str, towards: str, vector: list[float], moved: dict[str, float]) -> dict[str, Any]:
    classes = {"block": block, "away": away, "towards": towards}
    return {**classes, "vector": vector, "moved": {"P": 0.1, "E": 0, "A": 0, "M": 0} | moved, "loss_rise": 0.021}


INSPECTION: dict[str, Any] = {
    "blocks": [block._asdict() for block in BLOCKS],
    "legibility": {
        "tasks": [
            {
                "block": "E",
                "question": "is it <a name>",
                "selectivity": [{"E": 0.31, "S": 0.2}.get(name, 0.0) for name in NAMES],
            }
        ],
        "rank_at_own_task": dict.fromkeys(NAMES) | {"E": 1},
        "best_blocks": ["E"],
    },
    "effects": {"ranking": NAMES[::-1]},
    "steering": {
        "place": 1,
        "strength": 2.0,
        "directions": [
            _direction("E", "none", MARKUP, [1.0, -2.0, 0.5, 3.0], {"E": 1.31}),
            _direction("A", "negative", "positive", [-2.0, 1.0, 2.0, 0.5], {"A": -0.72}),
        ],
    },
}
"""What `mu-sota inspect` might record of the small model. Block E is read best, and E and A can be moved."""


class Tags(HTMLParser):
    """The elements, the attributes' names and the text that a browser finds in a piece of HTML."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[str] = []
        self.attributes: set[str] = set()
        self.open = 0
        self.text = ""
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append(tag)
        self.attributes |= {name for name, _ in attrs}
        self.open += 1

    def handle_endtag(self, tag: str) -> None:
        self.open -= 1

    def handle_data(self, data: str) -> None:
        self.text += data


@pytest.fixture(scope="session")
def small_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in Hugging Face layout: a small random model whose blocks matter, and a BPE of a few merges.

    Its name is markup. It holds a record of an inspection, too.
    """
    folder = tmp_path_factory.mktemp("playground") / MARKUP
    tokenizer = train_bpe(SENTENCES * 20, 320)
    torch.manual_seed(3)
    config = MuConfig(
        vocab_size=len(tokenizer),
        num_hidden_layers=3,
        max_position_embeddings=400,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = MuForCausalLM(config)
    with torch.no_grad():
        model.lm_head.weight.mul_(20)
        model.lm_head.bias[: tokenizer.eos_token_id + 1] = -50  # a text never ends early
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_json(inspection_folder(folder) / INSPECTION_FILE, INSPECTION)
    return folder


def built(model: MuForCausalLM, tokenizer: PreTrainedTokenizerFast, inspection: dict[str, Any]) -> Any:
    """The page of a model."""
    from mu_sota.playground.page import build

    async def page() -> Any:  # elsewhere, Gradio would leave an event loop open
        return build(model, tokenizer, MARKUP, inspection)

    return asyncio.run(page())


@pytest.fixture(scope="session")
def served(small_run: Path) -> Iterator[str]:
    """The address of a playground that was started as a user starts it; it must end with Ctrl-C, and be silent."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        (example,) = examples("bash", "mu-sota playground")
        _, playground, _ = command_of(example, "mu-sota playground")
        # As `python -m mu_sota`; but where this ignores Ctrl-C, as under nohup, the child must not.
        code = "import signal; signal.signal(signal.SIGINT, signal.default_int_handler); import mu_sota.__main__"
        command = [sys.executable, "-c", code, playground, str(small_run), "--no-browser", f"--port={port}"]
        # A call to anywhere else would be refused, and show in the output.
        nowhere = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "http_proxy", "https_proxy"), "http://127.0.0.1:9")
        server = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env={**os.environ, **nowhere}
        )
        try:
            assert server.stdout is not None
            loading, first, second = (server.stdout.readline() for _ in range(3))
            assert loading == "Loading PyTorch ...\n"
            assert first.startswith(f"Port {port} is taken, so this is port ")
            address = re.search(r"http://127\.0\.0\.1:\d+", second)
            assert address, second
            yield address.group()
            server.send_signal(signal.SIGINT)
            rest, _ = server.communicate(timeout=20)
            assert (server.returncode, rest) == (0, "")
        finally:
            server.kill()
            server.wait()
