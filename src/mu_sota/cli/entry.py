"""The entry point: the commands in the order of `--help`, and one sentence for every error that a user can mend."""

import io
import sys
from typing import Annotated, Any

import typer

from mu_sota.common.text import visible
from mu_sota.model.errors import InputError

from .compare import compare
from .errors import drop_output, leave, sentence_of
from .evaluate import evaluate
from .export import export
from .generate import generate
from .info import info
from .inspect import inspect
from .leakcheck import leakcheck
from .playground import playground
from .prepare import prepare
from .train import train

_NOBODY_READS = 141  # what a shell says of other programs, which the signal SIGPIPE ends
_UsageError: Any = typer.BadParameter.__base__  # of all mistakes in the words of a command

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
    """Entry point.

    Exit status: 0 done, 1 a leak found, 2 something the user can fix, 130 interrupted, 141 nobody reads the output.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # Generated text can hold characters that the terminal's encoding lacks; that must not end a run.
            stream.reconfigure(errors="backslashreplace")
    words = sys.argv[1:] if arguments is None else arguments
    try:
        _refuse_undecoded(words)
        status = app(words, standalone_mode=False)
        if sys.stdout is not None:
            sys.stdout.flush()  # what cannot be written is said here
    except InputError as error:
        leave(2, str(error))
    except typer.Abort:
        leave(130, "interrupted")
    except _UsageError as error:
        error.message = visible(error.message, spaces=False)
        error.show()
        status = error.exit_code
    except BrokenPipeError:
        status = _NOBODY_READS
    except SystemExit as end:  # typer ends the program by itself where nobody reads its output
        status = _NOBODY_READS if isinstance(end.__context__, BrokenPipeError) else end.code
    except Exception as error:
        sentence = sentence_of(error)
        if sentence is None:
            raise
        leave(*sentence)
    finally:
        drop_output()
    sys.exit(status or 0)


def _refuse_undecoded(words: list[str]) -> None:
    """A word of the command line that is no text, such as a name of a file in another encoding.

    Files of tokenizers and records are UTF-8, and could not hold it.

    Raises:
        InputError: there is one.
    """
    for word in words:
        try:
            word.encode("utf-8")
        except UnicodeEncodeError:
            raise InputError(
                f"the argument {word} is not in this system's encoding ({sys.getfilesystemencoding()}); rename the "
                f"file or folder, or write the text in that encoding"
            ) from None
