"""What the commands share: their options, and the start of the libraries."""

import sys
from pathlib import Path
from typing import Annotated

import typer

PRESETS = (
    "quickstart (a laptop CPU), legible (blocks are taught their names), mu-small, mu-base (a GPU), "
    "or mu-sota (the form of the run instructions)"
)
DATA = "pydocs, wikitext-2, or the path of a .txt, .jsonl or .parquet file, of a folder of them or of a prepared one"

Assignments = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="change a setting; may be repeated")
]
SettingsFile = Annotated[Path | None, typer.Option("--config", help="YAML file of settings, one key: value a line")]
Folder = Annotated[Path, typer.Argument(help="the --out of a run, or a model in Hugging Face layout", metavar="DIR")]


def load_libraries() -> None:
    """Load PyTorch and transformers, which takes seconds, and say so; their own lines are switched off.

    Whatever can be refused without them is refused before.
    """
    print("Loading PyTorch ...", file=sys.stderr, flush=True)
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
