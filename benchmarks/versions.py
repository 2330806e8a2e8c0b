"""Record the releases that the tests have just passed on; `make test-versions` calls it after them.

python benchmarks/versions.py lowest --out docs/results/versions.json
"""

import argparse
import json
import re
from datetime import date
from importlib import metadata
from pathlib import Path

from mu_sota.common import environment
from mu_sota.common.files import write_json


def asked_for() -> list[str]:
    """The packages that `pyproject.toml` names, but for tools of development."""
    wanted = [line for line in metadata.requires("mu-sota") or [] if "extra" not in line or "playground" in line]
    return sorted({re.split(r"[^\w.-]", line)[0] for line in wanted} | {"peft", "torchao"})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("which", choices=["lowest", "newest"])
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    record = json.loads(arguments.out.read_text(encoding="utf-8")) if arguments.out.exists() else {}
    here = environment.describe()
    record[arguments.which] = {
        "command": f"make test-{arguments.which}",
        "date": date.today().isoformat(),
        "python": here["python"],
        "platform": here["platform"],
        "commit": here["commit"],
        "releases": {name: environment.version(name) for name in asked_for()},
    }
    write_json(arguments.out, record)
    print(f"{arguments.out}: {arguments.which} releases recorded")


if __name__ == "__main__":
    main()
