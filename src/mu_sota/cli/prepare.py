"""`mu-sota prepare`."""

import os
from pathlib import Path
from typing import Annotated

import typer

from mu_sota.data.sources import require_source
from mu_sota.model.errors import InputError
from mu_sota.settings.load import configure, merge_settings, parse_assignments
from mu_sota.settings.presets import DEFAULT_PRESET

from .app import DATA, PRESETS, TEXT_SETTINGS, TOKENIZER, load_libraries, path_of, say


def prepare(
    out: Annotated[
        Path,
        typer.Option(
            parser=path_of, metavar="PATH", help="new folder; --data takes it on any machine, without the text"
        ),
    ],
    data: Annotated[str, typer.Option(help=DATA)] = "pydocs",
    preset: Annotated[str, typer.Option(help=f"whose vocab_size: {PRESETS}")] = DEFAULT_PRESET,
    tokenizer: Annotated[str | None, typer.Option(help=TOKENIZER)] = None,
    assignments: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help=f"one of {', '.join(TEXT_SETTINGS)}; may be repeated"),
    ] = None,
) -> None:
    """Tokenize a text into a folder of tokens, which needs neither the text nor the hub to train on."""
    overrides = parse_assignments(assignments or []) | ({} if tokenizer is None else {"tokenizer": tokenizer})
    for key in overrides:
        if key not in TEXT_SETTINGS:
            raise InputError(
                f"--set {key} does not change a text's tokens; set one of {', '.join(TEXT_SETTINGS)}, or leave it out"
            )
    merged = merge_settings(preset, overrides=overrides)
    if os.path.lexists(out):
        raise InputError(f"{out} is there already; give --out a new folder, or remove that one")
    require_source(data)
    load_libraries()
    from mu_sota.data.corpus import load_corpus, save_corpus
    from mu_sota.data.description import describe
    from mu_sota.data.options import TextOptions

    run, model = configure(merged)
    corpus = load_corpus(
        data, tokenizer=run.tokenizer, vocab_size=model.vocab_size, options=TextOptions.of(run.model_dump())
    )
    save_corpus(corpus, out)
    say(f"{out} is ready: a {run.tokenizer} vocabulary of {len(corpus.tokenizer):,}, fingerprint {corpus.fingerprint}")
    say(f"  {'split':10} {'documents':>10} {'bytes':>14} {'tokens':>12}")
    for name in ("train", "validation", "test"):
        split = getattr(corpus, name)
        say(f"  {name:10} {split.n_documents:>10,} {split.n_bytes:>14,} {len(split.tokens):>12,}")
    for line in describe(corpus):
        say(line)
