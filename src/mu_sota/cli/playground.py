"""`mu-sota playground`."""

from typing import Annotated

import typer

from mu_sota.model.errors import InputError
from mu_sota.saved.run_record import model_folder

from .app import ModelFolder, given_or_packaged, load_libraries


def playground(
    folder: ModelFolder = None,
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="if it is taken, the next free one; 0 for any that is free")
    ] = 7860,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="open the page in a browser")] = True,
) -> None:
    """Look at a trained model on a local page: its tokens, blocks, attentions, and its text with blocks changed.

    The page is at 127.0.0.1 alone, loads nothing from elsewhere, and ends with Ctrl-C.
    """
    from importlib.util import find_spec

    if find_spec("gradio") is None:
        raise InputError("the playground needs gradio, which is not installed: pip install 'gradio>=6.28'")
    folder = given_or_packaged(folder)
    model_folder(folder)
    load_libraries()
    from mu_sota.playground.page import serve

    serve(folder, port, browser)
