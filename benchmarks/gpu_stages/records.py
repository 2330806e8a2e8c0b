"""The records of the stages as files: read, and put right after a stage was cut off. Nothing here needs PyTorch."""

import json
import os
from pathlib import Path
from typing import Any

from mu_sota.common.files import write_json

CUT_OFF = {"left_out": "there was no time left for the rest of it"}


def read_record(path: Path) -> dict[str, Any]:
    """A record, or nothing where there is none."""
    try:
        record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return record


def after_a_kill(path: Path) -> None:
    """The part that was under way when the time was up is for the next call; without this it would count as broken."""
    record = read_record(path)
    if begun := record.pop("begun", None):
        record["parts"][begun] = CUT_OFF
        write_json(path, record)


def set_aside(path: Path, record: dict[str, Any]) -> None:
    """Keep the record of another device or other code under a name of its own."""
    device = "-".join("".join(c if c.isalnum() else " " for c in record.get("device", "unknown")).lower().split())
    os.replace(path, path.with_name(f"{path.stem}-{device}-{record.get('code', 'unknown')}.json"))
