"""The folder of a comparison: it holds what is decided and what is finished, so that a comparison can be resumed.

`plan.json` holds what was asked and decided; `trainings/` a folder for each training run, with `training.json` once it
is finished and `scores.json` once it is evaluated; `references.json` the n-gram models; `comparison.json` the record.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any, get_type_hints

from pydantic import TypeAdapter

from mu_sota.common.files import read_json, write_json
from mu_sota.common.locks import alone
from mu_sota.common.outside import in_one_sentence
from mu_sota.model.errors import InputError
from mu_sota.saved.run_record import LOCK_FILE

from .request import Request

PLAN_FILE = "plan.json"
RECORD_FILE = "comparison.json"
TRAINING_FILE = "training.json"
SCORES_FILE = "scores.json"
REFERENCES_FILE = "references.json"
_TRAININGS = "trainings"
_REMEDY = "give another --out"


class ComparisonFolder:
    """The files of one comparison.

    Args:
        path: of the folder, which need not exist.
        identity: what must be the same when the comparison is resumed, as `Inputs.identity` gives it.
        resume: True to go on with a comparison in the folder, if there is one.

    Attributes:
        start: the content of `plan.json`; empty if the comparison is not begun.

    Raises:
        InputError: the folder holds another comparison, or this one and `resume` is False.
    """

    def __init__(self, path: Path, identity: dict[str, Any], resume: bool) -> None:
        if path.exists() and not path.is_dir():
            raise InputError(f"--out is {path}, which is a file; give a folder")
        self.path = path
        if not resume:
            refuse_existing_comparison(path)
        self.start = read_json(path / PLAN_FILE, _REMEDY)
        if self.start:
            with in_one_sentence(f"{path / PLAN_FILE} is no plan of a comparison", _REMEDY):
                _require_same(self.start, identity, path)
        elif (path / _TRAININGS).exists():
            raise InputError(f"{path} holds trainings of a comparison, but not its {PLAN_FILE}; give another --out")

    def begin(self, start: dict[str, Any]) -> None:
        """Write `plan.json`, unless it says the same already."""
        if start != self.start:
            self.start = start
            write_json(self.path / PLAN_FILE, start)

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Keep other processes away until the block ends.

        Raises:
            InputError: one is at work in the folder.
        """

        def refuse(holder: str) -> None:
            raise InputError(f"{self.path} is at work ({holder}); wait for it to end, or give another --out")

        self.path.mkdir(parents=True, exist_ok=True)
        with alone(self.path / LOCK_FILE, refuse):
            yield

    def training(self, contender: str, run: str) -> Path:
        """The folder of one training run."""
        return self.path / _TRAININGS / contender / run

    def read(self, file: Path) -> dict[str, Any]:
        """The content that `write` gave a file, or nothing.

        Raises:
            InputError: the file is damaged, or belongs to another plan.
        """
        content = read_json(file, "remove it, and it is made again with --resume")
        if content and content.pop("plan", None) != self._plan_id:
            raise InputError(f"{file} belongs to another comparison than {self.path / PLAN_FILE}; give another --out")
        return content

    def write(self, file: Path, content: dict[str, Any]) -> None:
        """Write a file that belongs to this plan."""
        write_json(file, {"plan": self._plan_id, **content})

    @cached_property
    def _plan_id(self) -> str:
        return hashlib.sha256(json.dumps(self.start["plan"], sort_keys=True).encode()).hexdigest()[:16]


def recorded_request(path: Path) -> dict[str, Any]:
    """The request of the comparison in a folder, or nothing.

    Raises:
        InputError: it cannot be read, or holds what no request has.
    """
    with in_one_sentence(f"{path / PLAN_FILE} is no plan of a comparison", _REMEDY):
        request = dict(read_json(path / PLAN_FILE, _REMEDY).get("request", {}))
        for name, kind in get_type_hints(Request).items():
            if name in request:
                TypeAdapter(kind).validate_json(json.dumps(request[name]), strict=True)
        return request


def refuse_existing_comparison(path: Path) -> None:
    """A comparison is not overwritten.

    Raises:
        InputError: the folder holds a comparison.
    """
    if (path / PLAN_FILE).exists():
        raise InputError(f"{path} already holds a comparison; add --resume to go on with it, or give another --out")


def _require_same(begun: dict[str, Any], asked: dict[str, Any], path: Path) -> None:
    if begun.get("format") != asked["format"]:
        raise InputError(f"the comparison in {path} was started by another version of mu-sota; give another --out")
    if begun["data_fingerprint"] != asked["data_fingerprint"]:
        raise InputError(
            f"the comparison in {path} was started on other text or tokens than {asked['request']['data']!r} gives "
            f"now; resume it with its own data, or give another --out"
        )
    for part in ("request", "settings"):
        for key, new in asked[part].items():
            if key == "overrides":  # what they set is among the settings
                continue
            if (old := begun[part].get(key)) != new:
                key = {"questions": "match"}.get(key, key)
                raise InputError(
                    f"the comparison in {path} was started with {key} {old!r}, not {new!r}; resume it as it was "
                    f"started, or give another --out"
                )
