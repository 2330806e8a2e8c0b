"""The rules of the house that a program can check: who may import whom, safe loading, nobody's own folders."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "mu_sota"

ANYTHING_ABOVE = "anything above"

# The package from top to bottom, and what each module may import of it: only modules above it. The one source of this
# order; docs and comments point here.
MAY_IMPORT: dict[str, set[str] | str] = {
    "versions": set(),
    "errors": set(),
    "files": set(),
    "layout": set(),
    "config": {"errors", "layout", "versions"},
    "attention": set(),
    "kernels": set(),
    "loss": {"kernels"},
    "model": {"config", "errors", "layout", "attention", "kernels", "loss"},
    "machine": {"kernels"},
    "loudness": set(),
    "state": set(),
    "subject": {"errors", "loudness", "state"},
    "locate": {"subject"},
    "leaks": {"errors", "locate"},
    "passes": {"errors", "subject"},
    "gradients": {"errors", "passes", "subject"},
    "decoding": {"errors", "passes", "subject"},
    "judge": {"errors", "leaks", "locate", "passes", "subject"},
    "causality": {"errors", "loudness", "subject", "leaks", "passes", "gradients", "decoding", "judge"},
    "uniform": {"errors", "leaks", "state", "subject"},
    "tokenizer": {"errors", "files"},
    "data": {"errors", "files", "loss", "tokenizer"},
    "settings": {"errors", "config"},
    "evaluate": {"errors", "data", "tokenizer", "loss"},
    "ngrams": {"errors", "data", "evaluate"},
    "sizes": {"kernels", "model", "settings"},
    "baselines": {"config", "errors", "loss", "model", "sizes"},
    "trained": {"config", "errors", "evaluate", "model", "settings", "tokenizer"},
    "interactive": {"errors", "files", "model", "settings", "tokenizer", "trained"},
    "export": {"errors", "evaluate", "files", "layout", "machine", "model", "settings", "tokenizer", "trained"},
    "targets": {"config", "errors", "model", "subject", "trained"},
    "trainer": {"data", "evaluate", "files", "loss", "model", "settings", "trained"},
    "verdict": set(),
    "train": ANYTHING_ABOVE,
    "significance": set(),
    "arms": {"baselines", "config", "errors", "machine", "settings"},
    "tuning": {"errors"},
    "course": {"baselines", "data", "evaluate", "files", "settings", "train", "trained", "trainer", "tuning"},
    "plan": {"arms", "baselines", "course", "data", "errors", "settings", "train", "tuning"},
    "findings": {"arms", "evaluate", "significance"},
    "inspect_blocks": ANYTHING_ABOVE,
    "plots": set(),
    "report": {"files", "plots", "tokenizer"},
    "compare": ANYTHING_ABOVE,
    "panels": {"evaluate", "layout", "tokenizer"},
    "playground": ANYTHING_ABOVE,
    "bars": {"passes"},
    "cli": ANYTHING_ABOVE,
}
FREE = {"__init__", "__main__"}  # the package's front door and `python -m mu_sota`
STDLIB_ONLY = {"errors", "files"}

MODULES = sorted(path.stem for path in PACKAGE.glob("*.py") if path.stem not in FREE)


def parse(module: str) -> ast.Module:
    return ast.parse((PACKAGE / f"{module}.py").read_text(encoding="utf-8"), filename=f"{module}.py")


def allowed(module: str) -> set[str]:
    rule = MAY_IMPORT[module]
    order = list(MAY_IMPORT)
    return set(order[: order.index(module)]) if isinstance(rule, str) else rule


def imports(tree: ast.Module) -> Iterator[tuple[str, str, int]]:
    """(top-level package, module or name inside it or "", line) of every import, also inside functions."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                package, _, inside = alias.name.partition(".")
                yield package, inside, node.lineno
        elif isinstance(node, ast.ImportFrom):
            name = ".".join(["mu_sota"] * bool(node.level) + [node.module] * bool(node.module))
            package, _, inside = name.partition(".")
            for alias in node.names:
                yield package, inside or (alias.name if package == "mu_sota" else ""), node.lineno


def test_the_table_only_looks_up() -> None:
    order = list(MAY_IMPORT)
    for module in MAY_IMPORT:
        wrong = allowed(module) - set(order[: order.index(module)])
        assert not wrong, f"the table lets {module} import {', '.join(sorted(wrong))}, which is not above it"


def test_the_package_is_flat() -> None:
    folders = sorted(path.parent.name for path in PACKAGE.glob("*/__init__.py"))
    assert not folders, f"{folders}: an exported model takes only sibling modules along, so there are no sub-packages"


@pytest.mark.parametrize("module", MODULES)
def test_a_module_imports_only_what_is_above_it(module: str) -> None:
    assert module in MAY_IMPORT, (
        f"src/mu_sota/{module}.py is not in the table of the house: put it at its place in MAY_IMPORT in "
        "tests/test_house.py, with what it may import"
    )
    for package, inside, line in imports(parse(module)):
        where = f"src/mu_sota/{module}.py:{line}"
        if package != "mu_sota":
            if module in STDLIB_ONLY:
                assert package in sys.stdlib_module_names, f"{where} imports {package}, but may use only the stdlib"
            continue
        target = inside.partition(".")[0]
        if target == "__version__":
            continue
        assert target in MAY_IMPORT, (
            f"{where} imports {target or 'the package itself'}: import a name from the module that defines it"
        )
        may = allowed(module)
        assert target in may, f"{where} imports {target}, but {module} may import only: {', '.join(sorted(may)) or '-'}"


@pytest.mark.parametrize("module", sorted([*MODULES, *FREE & {path.stem for path in PACKAGE.glob("*.py")}]))
def test_torch_load_takes_weights_only(module: str) -> None:
    """A checkpoint from a stranger must not run code."""
    for node in ast.walk(parse(module)):
        if isinstance(node, ast.ImportFrom) and node.module == "torch":
            assert "load" not in {alias.name for alias in node.names}, (
                f"{module}:{node.lineno}: write torch.load in full"
            )
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert given.get("weights_only") == "True", f"{module}:{node.lineno}: torch.load without weights_only=True"


def test_no_file_names_a_folder_of_one_machine() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        check=False,
    )
    if listed.returncode:
        pytest.skip("not a git checkout")
    # Written so that this file does not match itself.
    private = re.compile(r"(?<![\w.~-])/(?:work|tmp/dev|root)/[\w.]")
    found = []
    for name in sorted(set(listed.stdout.decode().split("\0")) - {""}):
        path = ROOT / name
        if not path.is_file():
            continue
        content = path.read_bytes()
        if b"\0" in content:
            continue
        for number, line in enumerate(content.decode("utf-8", errors="replace").splitlines(), start=1):
            if private.search(line):
                found.append(f"{name}:{number}: {line.strip()[:120]}")
    assert not found, "paths that exist on one machine only:\n" + "\n".join(found)
