"""What the commands share: their options, and the start of the libraries."""

import sys
from pathlib import Path
from typing import Annotated

import typer

from mu_sota.common.text import visible
from mu_sota.saved.packaged import PACKAGED_MODEL
from mu_sota.settings.run import Text

PRESETS = (
    "quickstart (a laptop CPU), legible (blocks are taught their names), pocket (the same, small), mu-small, "
    "mu-base (a GPU), or mu-sota (the form of the run instructions)"
)
DATA = (
    "pydocs, wikitext-2, the path of a file or folder of texts or of a prepared one, or OWNER/NAME of the Hugging Face "
    "hub"
)
TOKENIZER = "same as --set tokenizer=...: bpe, word, or the folder or hub name of a trained fast tokenizer"
TEXT_SETTINGS = ("vocab_size", *Text.model_fields)


def path_of(text: str) -> Path:
    """The path that an option or argument names; an empty one (a variable without a value) is not the current folder.

    Raises:
        typer.BadParameter: it is empty, or no path.
    """
    if not text.strip():
        raise typer.BadParameter("it is empty (a variable without a value?); give a path, or . for this folder")
    if "\0" in text:
        raise typer.BadParameter("it has a zero character, which no path has")
    return Path(text)


def say(text: str) -> None:
    """Print a result in which a path or name may stand: none of it drives the terminal."""
    print(visible(text, spaces=False))


Assignments = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="change a setting; may be repeated")
]
SettingsFile = Annotated[
    Path | None,
    typer.Option("--config", parser=path_of, metavar="PATH", help="YAML file of settings, one key: value a line"),
]
_FOLDER = "the --out of a run, or a model in Hugging Face layout"
Folder = Annotated[Path, typer.Argument(parser=path_of, help=_FOLDER, metavar="DIR")]


ModelFolder = Annotated[
    Path | None,
    typer.Argument(
        parser=path_of,
        help=f"{_FOLDER}. Default: the model that comes with mu-sota",
        metavar="[DIR]",
    ),
]


def given_or_packaged(folder: Path | None) -> Path:
    """The folder that a `ModelFolder` names; without one that of the packaged model, which is said."""
    if folder is not None:
        return folder
    print(f"No DIR given: the model that comes with mu-sota, {PACKAGED_MODEL.name}", file=sys.stderr)
    return PACKAGED_MODEL


def load_libraries() -> None:
    """Load PyTorch and transformers, which takes seconds, and say so; their own lines are switched off.

    Whatever can be refused without them is refused before.
    """
    print("Loading PyTorch ...", file=sys.stderr, flush=True)
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
