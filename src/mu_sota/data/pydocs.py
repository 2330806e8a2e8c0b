"""The corpus `pydocs`: English prose that comes with Python itself."""

import ast
import hashlib
import inspect
import warnings
from collections.abc import Iterable
from pathlib import Path

from mu_sota.model.errors import InputError

from .options import SPLITS, Documents
from .raw_files import read_bytes

# With this salt the splits are near 90/5/5 % of the bytes too, in Python 3.10 to 3.13, uneven as the documents are.
_SALT = "pydocs 86 "
_SHORT_PARAGRAPH = 60  # characters

# Tests, vendored and deprecated copies, generated tables: no prose, or the same prose twice.
_NO_PROSE = {
    *("test", "tests", "idle_test", "turtledemo", "encodings", "pydoc_data", "__pycache__"),
    *("site-packages", "dist-packages", "_bundled", "lib2to3", "distutils"),
}


def read_pydocs(library: Path) -> Documents:
    """The topics of `pydoc` and the docstrings of each module of the standard library, split by document.

    Raises:
        InputError: this Python comes without its topics or its sources.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError as error:
        raise _no_pydocs("module pydoc_data") from error
    sources = sorted(
        path for path in library.rglob("*.py") if _NO_PROSE.isdisjoint(path.relative_to(library).parts[:-1])
    )
    if not sources:
        raise _no_pydocs(f"sources of the standard library in {library}")

    texts = {f"topic {name}": text.strip() for name, text in topics.items()}
    for path in sources:
        module = ".".join(path.relative_to(library).with_suffix("").parts)
        texts[f"module {module}"] = "\n\n".join(dict.fromkeys(_docstrings(path)))
    return _by_hash((_SALT + name, text) for name, text in _without_repeats(texts).items())


def _by_hash(documents: Iterable[tuple[str, str]]) -> Documents:
    """Split (key, text) pairs by a hash of the key, 90/5/5 %: a document keeps its split when others come or go."""
    splits: Documents = {split: [] for split in SPLITS}
    for key, text in documents:
        share = int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64
        splits[SPLITS[0 if share < 0.9 else 1 if share < 0.95 else 2]].append(text)
    return splits


def _without_repeats(texts: dict[str, str]) -> dict[str, str]:
    """Drop paragraphs that an earlier text has, which would leak between splits; longest text first.

    A fifth of the language reference is there twice, as a chapter and as a topic of its own. Lines too short to tell a
    leak from a coincidence ("For example:") stay, but do not make a text by themselves.
    """
    seen: set[str] = set()
    kept = {}
    for name, text in sorted(texts.items(), key=lambda item: (-len(item[1]), item[0])):
        paragraphs = [part for part in text.split("\n\n") if len(part) < _SHORT_PARAGRAPH or part not in seen]
        new = {part for part in paragraphs if len(part) >= _SHORT_PARAGRAPH}
        if new:
            seen |= new
            kept[name] = "\n\n".join(dict.fromkeys(paragraphs)) + "\n"
    return kept


def _no_pydocs(lacking: str) -> InputError:
    return InputError(f"This Python has no {lacking}, so `pydocs` cannot be made: give another text with --data.")


def _docstrings(path: Path) -> list[str]:
    """The docstrings of a module in the order of its source; the module is parsed, never imported."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # invalid escapes in old modules
        try:
            tree = ast.parse(read_bytes(path))
        except (SyntaxError, ValueError):  # templates and deliberately broken files
            return []
    nodes = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    nodes.sort(key=lambda node: getattr(node, "lineno", 0))
    docstrings = (ast.get_docstring(node, clean=False) for node in nodes)
    return [text for text in (inspect.cleandoc(docstring).strip() for docstring in docstrings if docstring) if text]
