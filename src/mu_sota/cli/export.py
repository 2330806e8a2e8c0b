"""`mu-sota export`."""

from pathlib import Path
from typing import Annotated

import typer

from mu_sota.common.text import as_word
from mu_sota.saved.run_record import model_folder

from .app import Folder, load_libraries, path_of, say


def export(
    folder: Folder,
    out: Annotated[Path, typer.Option(parser=path_of, metavar="PATH", help="new folder, also the name of the model")],
) -> None:
    """Write a folder that transformers loads without mu-sota, with a model card: ready for the Hugging Face hub."""

    model_folder(folder)
    load_libraries()
    from mu_sota.saved.export import export_model

    written = export_model(folder, out)
    say(
        f"{written} is ready. With transformers alone:\n"
        f"  AutoModelForCausalLM.from_pretrained({str(written)!r}, trust_remote_code=True)\n"
        f"Read its README.md before you publish it: hf upload {as_word(f'USER/{written.name}')} {as_word(written)}"
    )
