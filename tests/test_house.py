"""The rules of the house that a program can check: who may import whom, safe loading, nobody's own folders."""

import ast
import importlib.util
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "mu_sota"

# The rooms of the package, from top to bottom. A file imports its own room and rooms above it: this list is the rule.
ROOMS = [
    "model",  # first, since an exported folder holds it alone
    "common",
    "settings",
    "data",
    "evaluation",
    "saved",
    "generation",
    "leakcheck",
    "inspection",
    "training",
    "comparison",
    "playground",
    "cli",
]
FRONT_DOORS = {"__init__", "__main__", "causality"}  # the names by which users import

FILES = sorted(path for room in ROOMS for path in (PACKAGE / room).glob("*.py"))


def parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), filename=str(path))


def name_of(path: Path) -> str:
    """As a test's id: room/file.py."""
    return path.relative_to(PACKAGE).as_posix()


def imports(path: Path) -> Iterator[tuple[str, int]]:
    """(dotted name of a module, line) of every import, also inside functions; relative ones resolved."""
    package = path.relative_to(PACKAGE.parent).parent.parts
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, node.lineno
        elif isinstance(node, ast.ImportFrom):
            base = ".".join([*(package[: len(package) - node.level + 1] if node.level else ()), node.module or ""])
            for alias in node.names:
                module = base.strip(".")
                inside = PACKAGE.parent.joinpath(*module.split("."), f"{alias.name}.py").exists()
                yield f"{module}.{alias.name}" if inside else module, node.lineno


def test_every_file_is_in_a_room() -> None:
    assert {path.stem for path in PACKAGE.glob("*.py")} == FRONT_DOORS
    assert {path.parent.name for path in PACKAGE.glob("*/*.py")} == set(ROOMS)
    assert not list(PACKAGE.glob("*/*/*.py")), "a room is flat"


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_a_room_imports_only_rooms_above_it(path: Path) -> None:
    room = path.parent.name
    may = ROOMS[: ROOMS.index(room) + 1]
    for module, line in imports(path):
        if not module.startswith("mu_sota"):
            continue
        where = f"{name_of(path)}:{line}"
        parts = module.split(".")
        if parts == ["mu_sota"]:  # its __version__
            continue
        assert parts[1] in may, f"{where} imports {module}, but {room} may import only {', '.join(may)}"
        if path.stem != "__init__":
            assert len(parts) == 3, f"{where} imports {module}: import a name from the file that defines it"


@pytest.mark.parametrize("room", ROOMS)
def test_files_of_a_room_form_no_circle(room: str) -> None:
    files = {path.stem: path for path in (PACKAGE / room).glob("*.py") if path.stem != "__init__"}
    needs = {
        name: {module.split(".")[2] for module, _ in imports(path) if module.startswith(f"mu_sota.{room}.")}
        for name, path in files.items()
    }
    list(TopologicalSorter(needs).static_order())  # raises where there is a circle


@pytest.mark.parametrize("path", sorted((PACKAGE / "model").glob("*.py")), ids=name_of)
def test_the_model_can_be_exported(path: Path) -> None:
    """An exported folder has these files alone, beside torch and transformers and what these two bring."""
    brought = {"torch", "transformers", "huggingface_hub", "packaging", "mu_sota", *sys.stdlib_module_names}
    if path.stem == "triton_kernels":  # imported where there is a GPU alone, for which torch brings Triton
        brought.add("triton")
    if path.stem == "__init__":  # which is not exported
        return
    for module, line in imports(path):
        assert module.partition(".")[0] in brought, f"{name_of(path)}:{line} imports {module}"


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_has_a_public_face(room: str) -> None:
    """Its docstring says what it is for; all that its face names can be imported from it."""
    module = importlib.import_module(f"mu_sota.{room}")
    doc = " ".join(str(module.__doc__).split())
    assert "Begin reading in `" in doc
    for file in re.findall(r"`(\w+\.py)`", doc):
        assert (PACKAGE / room / file).is_file(), f"the docstring of {room} names {file}"
    for name in getattr(module, "__all__", ()):
        if room != "playground" or importlib.util.find_spec("gradio"):
            assert getattr(module, name) is not None


@pytest.mark.parametrize("path", FILES, ids=name_of)
def test_torch_load_takes_weights_only(path: Path) -> None:
    """A checkpoint from a stranger must not run code."""
    for node in ast.walk(parse(path)):
        if isinstance(node, ast.ImportFrom) and node.module == "torch":
            assert "load" not in {alias.name for alias in node.names}, f"{path}:{node.lineno}: write torch.load in full"
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert given.get("weights_only") == "True", f"{path}:{node.lineno}: torch.load without weights_only=True"


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


def test_public_imports_of_before_the_rooms_still_work() -> None:
    from mu_sota import InputError, MuConfig, MuForCausalLM, MuModel, causality

    assert causality.check is importlib.import_module("mu_sota.leakcheck").check
    report = causality.assert_causal(MuForCausalLM(MuConfig(vocab_size=50, num_hidden_layers=1)))
    assert isinstance(report, causality.Report)
    assert issubclass(causality.LeakError, Exception)
    assert issubclass(InputError, ValueError)
    assert MuModel.config_class is MuConfig
