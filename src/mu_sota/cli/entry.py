"""The entry point: the commands in the order of `--help`, and one sentence for every error that a user can mend."""

import io
import sys
from typing import Annotated

import typer

from mu_sota.model.errors import InputError

from .compare import compare
from .errors import leave, sentence_of
from .evaluate import evaluate
from .export import export
from .generate import generate
from .info import info
from .inspect import inspect
from .leakcheck import leakcheck
from .playground import playground
from .prepare import prepare
from .train import train

app = typer.Typer(
    name="mu-sota",
    help="Train, evaluate and sample language models whose token state is a matrix of named semantic blocks.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("train", short_help="Train a model, or go on with a run")(train)
app.command("prepare", short_help="Tokenize a text into a folder to carry")(prepare)
app.command("evaluate", short_help="Perplexities and bits per byte of a text")(evaluate)
app.command("generate", short_help="Continue a text, or texts in a session")(generate)
app.command("export", short_help="Write a folder for transformers alone")(export)
app.command("playground", short_help="Look inside a model, in the browser")(playground)
app.command("inspect", short_help="Do blocks carry what they are named for?")(inspect)
app.command("leakcheck", short_help="Does a model see what it is to predict?")(leakcheck)
app.command("compare", short_help="MU beside standard Transformers")(compare)
app.command("info", short_help="Parameters, FLOPs, memory, settings")(info)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="print the version and exit")] = False) -> None:
    if version:
        from mu_sota import __version__

        print(__version__)
        raise typer.Exit


def main(arguments: list[str] | None = None) -> None:
    """Entry point. Exit status: 0 done, 1 a leak found, 2 something the user can fix, 130 interrupted."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Generated text can hold characters that the terminal's encoding lacks; that must not end a run.
            stream.reconfigure(errors="backslashreplace")
    try:
        app(arguments)
    except InputError as error:
        leave(2, str(error))
    except Exception as error:
        sentence = sentence_of(error)
        if sentence is None:
            raise
        leave(*sentence)
