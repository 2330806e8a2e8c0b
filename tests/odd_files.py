"""Files as they should not be: what a stranger, a full disk or a mistake leaves in the place of a small file."""

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

_DEEP = 100_000

JSON_TEXTS: dict[str, bytes] = {
    "empty": b"",
    "white space": b" \n",
    "no object": b"[]",
    "null": b"null",
    "true": b"true",
    "a number": b"3",
    "a text": b'"text"',
    "list of pairs": b'[["model_type", "mu_sota"]]',
    "no JSON": b"model_type: mu_sota",
    "cut off": b'{"model_type": "mu_',
    "no UTF-8": b'{"model_type": "\xff\xfe"}',
    "UTF-16": '{"model_type": "mu_sota"}'.encode("utf-16"),
    "zeros": b"\0" * 100,
    "deep lists": b"[" * _DEEP + b"]" * _DEEP,
    "deep objects": b'{"a":' * _DEEP + b"1" + b"}" * _DEEP,
    "deep, not closed": b'{"model_type": ' + b"[" * _DEEP,
    "a number of 5,000 digits": b'{"model_type": ' + b"9" * 5000 + b"}",
    "a key twice": b'{"model_type": "mu_sota", "model_type": "gpt2"}',
}
"""None of them is a record, a configuration or a plan."""

YAML_TEXTS: dict[str, bytes] = {
    "a list": b"- 1\n- 2\n",
    "a text": b"window",
    "no UTF-8": b"seed: \xff\n",
    "zeros": b"\0" * 100,
    "deep": b"[" * 10_000,
    "deep, closed": b"prompts: " + b"[" * 2000 + b"]" * 2000,
    "deep in blocks": b"\n".join(b" " * depth + b"a:" for depth in range(2000)),
    "aliases that multiply": b"a0: &a0 [lol, lol, lol, lol]\n"
    + b"".join(b"a%d: &a%d [%s]\n" % (n, n, b",".join([b"*a%d" % (n - 1)] * 9)) for n in range(1, 10))
    + b"prompts: *a9\n",
    "aliases of a setting": b"trackers: &t [x, x]\nprompts: [*t, *t]\n",
    "an alias": b"prompts: &p [x]\ntrackers: *p\n",
    "an alias of itself": b"prompts: &p [*p]\n",
    "a key twice": b"seed: 1\nseed: 2\n",
    "a number of 5,000 digits": b"seed: " + b"9" * 5000 + b"\n",
    "a hexadecimal number of 5,000 digits": b"seed: 0x" + b"f" * 5000 + b"\n",
    "a huge number of the model": b"matrix_size: 0x" + b"f" * 5000 + b"\n",
    "sexagesimal": b"seed: " + b":".join([b"59"] * 2000) + b"\n",
    "not a number": b"learning_rate: .nan\n",
    "infinite": b"learning_rate: .inf\n",
    "no such date": b"seed: 2020-13-45\n",
    "a date": b"seed: 2020-12-24\n",
    "code": b"seed: !!python/object/apply:os.system ['touch odd-file-was-run']\n",
    "bytes": b"seed: !!binary '@@@'\n",
    "a set": b"seed: !!set {1, 2}\n",
    "a list as key": b"? [1, 2]\n: 3\n",
    "an object as key": b"? {a: b}\n: 3\n",
    "null as key": b"null: 3\n",
    "a number as key": b"1: 3\n",
    "true as key": b"true: 3\n",
    "true as value": b"seed: true\n",
    "two documents": b"seed: 1\n---\nseed: 2\n",
    "tabs": b"\tseed:\t1\n",
    "unclosed": b"seed: 'one\n",
    "unknown alias": b"seed: *nothing\n",
    "a tag without name": b"seed: !<> 1\n",
}
"""None of them is a file of settings."""

ODD_VALUES: list[Any] = [
    *(None, True, -1, 0, 1, 10**12, 10**30, 10**400, -(10**400), 0.5, 1e308, float("nan"), float("inf")),
    *("", "8", "../../etc/passwd", "\ud800", "\x1b[31m\n", "x" * 10_000, [], [1], ["a"], {}, {"a": 1}, [[[[]]]]),
]
"""For any field of a JSON file."""


def _link(target: str) -> Callable[[Path], None]:
    return lambda path: path.symlink_to(target)


def _holes(path: Path) -> None:
    path.touch()
    os.truncate(path, 2**27)


PLACES: dict[str, Callable[[Path], Any]] = {
    "a folder": Path.mkdir,
    "a pipe": os.mkfifo,
    "a link to nothing": _link("nothing"),
    "a link to itself": lambda path: path.symlink_to(path.name),
    "endless zeros": _link("/dev/zero"),
    "nothing": _link("/dev/null"),
    "full": _link("/dev/full"),
    "endless memory": _link("/proc/self/mem"),
    "a file that waits": _link("/proc/kmsg"),
    "more than is read": _holes,
}
"""What can stand where a file should, on Linux."""


def changed(file: Path, field: str, value: Any) -> None:
    """Set a field of a JSON file; `a/b` is one within another."""
    content = part = json.loads(file.read_text(encoding="utf-8"))
    *outer, last = field.split("/")
    for key in outer:
        part = part[key]
    part[last] = value
    file.write_text(json.dumps(content), encoding="utf-8")
