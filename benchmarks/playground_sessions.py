"""The memory of the playground over many visits: each opens the page, generates a text, looks into it, and leaves.

    python benchmarks/playground_sessions.py runs/quickstart --visits 1000 --out docs/results/playground-sessions.json

The playground is started as a user starts it. A visit is what a browser asks for: the page, the connection by which it
is known to be open, and two events, whose answers are read to their end. So no browser is needed.
"""

import argparse
import json
import re
import sys
import time
import uuid
from importlib.metadata import version
from pathlib import Path
from subprocess import PIPE, Popen
from typing import Any
from urllib.request import ProxyHandler, Request, build_opener

import psutil

from mu_sota.common import environment
from mu_sota.common.files import write_json

DIRECT = build_opener(ProxyHandler({}))


class Visit:
    """An open page."""

    def __init__(self, address: str) -> None:
        self.address, self.name = f"{address}/gradio_api", uuid.uuid4().hex
        with DIRECT.open(f"{address}/config") as response:
            config = json.load(response)
        self.values = {part["id"]: part["props"].get("value") for part in config["components"]}
        self.events = {event["api_name"]: event for event in config["dependencies"]}
        self.open = DIRECT.open(f"{self.address}/heartbeat/{self.name}")

    def do(self, event: str, **data: Any) -> str:
        """One event with the values that the page began with, waited for until it is done; what it last changed."""
        asked = self.events[event]
        body = {
            "fn_index": asked["id"],
            "data": [self.values[part] for part in asked["inputs"]],
            "session_hash": self.name,
            **data,
        }
        request = Request(f"{self.address}/queue/join", json.dumps(body).encode(), {"Content-Type": "application/json"})
        DIRECT.open(request).close()
        with DIRECT.open(f"{self.address}/queue/data?session_hash={self.name}") as messages:
            answers = [json.loads(line.removeprefix(b"data: ")) for line in messages if line.strip()]
        done = next(answer for answer in answers if answer["msg"] == "process_completed")
        if not done["success"]:
            sys.exit(f"{event} failed: {done}")
        return str(done["output"])

    def leave(self) -> None:
        """As when the window is closed."""
        self.open.close()


def main() -> None:
    """Visit, and write down the server's memory after every tenth of the visits."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", help="of a run")
    parser.add_argument("--visits", type=int, default=1000)
    parser.add_argument("--out", type=Path, required=True, help="the record")
    arguments = parser.parse_args()
    command = [sys.executable, "-m", "mu_sota", "playground", arguments.folder, "--no-browser", "--port=0"]
    with Popen(command, stdout=PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            address = next(found.group() for line in server.stdout if (found := re.search(r"http://[\d.:]+", line)))
            process, rows, start = psutil.Process(server.pid), [], time.monotonic()
            for number in range(1, arguments.visits + 1):
                visit = Visit(address)
                visit.do("on_generate")
                visit.do("on_pick", event_data={"index": 1})
                visit.leave()
                if number == 1 or number % max(arguments.visits // 10, 1) == 0:
                    rows.append({"visits": number, "memory_mib": process.memory_info().rss / 2**20})
                    print(rows[-1], flush=True)
            seconds = time.monotonic() - start
        finally:
            server.terminate()
    record = {
        "command": f"python benchmarks/playground_sessions.py {arguments.folder} --visits {arguments.visits}",
        "machine": environment.describe(),
        "gradio": version("gradio"),
        "seconds_a_visit": seconds / arguments.visits,
        "memory": rows,
    }
    write_json(arguments.out, record)


if __name__ == "__main__":
    main()
