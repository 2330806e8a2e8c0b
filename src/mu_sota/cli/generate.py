"""`mu-sota generate`."""

import sys
from typing import Annotated

import typer

from mu_sota.model.errors import InputError

from .app import Folder, load_libraries


def generate(
    folder: Folder,
    prompt: Annotated[str | None, typer.Option(help="text to continue")] = None,
    interactive: Annotated[
        bool, typer.Option("--interactive", help="ask for prompts, and stream what the model makes of them")
    ] = False,
    max_new_tokens: Annotated[int, typer.Option(help="tokens to add")] = 30,
    temperature: Annotated[float, typer.Option(help="below 1 plainer, above 1 wilder, 0 the likeliest token")] = 0.8,
    top_k: Annotated[int, typer.Option(help="sample among so many tokens; 0 for all")] = 50,
    top_p: Annotated[float, typer.Option(help="sample among this share of probability")] = 0.9,
    repetition_penalty: Annotated[float, typer.Option(help="above 1, repeats become less likely")] = 1.2,
    seed: Annotated[int, typer.Option(help="same seed, same text")] = 0,
) -> None:
    """Continue a prompt with a trained model, or several in a terminal session."""
    if (prompt is None) != interactive:
        raise InputError("give either --prompt with the text to continue, or --interactive")
    from mu_sota.settings.sampling import Generation

    settings = Generation()
    given = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "repetition_penalty": repetition_penalty}
    for key, value in {**given, "max_new_tokens": max_new_tokens, "seed": seed}.items():
        settings = settings.changed(key, value)
    from mu_sota.common.environment import default_device
    from mu_sota.generation.continuation import continued, prompt_ids, text_of
    from mu_sota.saved.load_save import load_trained

    load_libraries()
    model, tokenizer = load_trained(folder, default_device())
    if prompt is None:
        from mu_sota.generation.terminal import converse

        converse(model, tokenizer, settings)
    else:
        positions = model.config.max_position_embeddings
        ids = prompt_ids(tokenizer, prompt, 1, positions)
        new = min(settings.max_new_tokens, positions - len(ids))
        print(text_of(tokenizer, continued(model, tokenizer, ids, settings, new, settings.seed)))
        if new < settings.max_new_tokens:
            print(f"mu-sota: {new} new tokens are all that fit into the model's {positions} positions", file=sys.stderr)
