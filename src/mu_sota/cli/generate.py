"""`mu-sota generate`."""

import math
import sys
from typing import Annotated, Any

import typer

from mu_sota.common.outside import in_one_sentence
from mu_sota.common.text import as_word
from mu_sota.model.errors import InputError
from mu_sota.saved.run_record import inspection_of, model_folder
from mu_sota.settings.sampling import Generation

from .app import ModelFolder, given_or_packaged, load_libraries


def _option(key: str) -> Any:
    """The option of a sampling setting, with the sentence that `Generation` has for it."""
    field = Generation.model_fields[key]
    unset = "" if key in ("max_new_tokens", "seed") else "as saved with the model, else "
    return typer.Option(help=f"{field.description}. Default: {unset}{field.default}")


def generate(
    folder: ModelFolder = None,
    prompt: Annotated[
        str | None, typer.Option(help="text to continue, as it is: no mark of a beginning is put before it")
    ] = None,
    interactive: Annotated[
        bool, typer.Option("--interactive", help="ask for prompts, and stream what the model makes of them")
    ] = False,
    max_new_tokens: Annotated[int | None, _option("max_new_tokens")] = None,
    temperature: Annotated[float | None, _option("temperature")] = None,
    top_k: Annotated[int | None, _option("top_k")] = None,
    top_p: Annotated[float | None, _option("top_p")] = None,
    repetition_penalty: Annotated[float | None, _option("repetition_penalty")] = None,
    seed: Annotated[int | None, _option("seed")] = None,
    steer: Annotated[
        list[str] | None,
        typer.Option(metavar="BLOCK=STRENGTH", help="move a block, as in E=+2, after mu-sota inspect; may be repeated"),
    ] = None,
) -> None:
    """Continue a prompt with a trained model, or several in a terminal session."""
    if (prompt is None) != interactive:
        raise InputError("give either --prompt with the text to continue, or --interactive")
    options = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "repetition_penalty": repetition_penalty}
    options |= {"max_new_tokens": max_new_tokens, "seed": seed}
    chosen = {key: value for key, value in options.items() if value is not None}
    Generation().with_changes(chosen)  # refuses what is out of range, before anything is loaded
    moves = _moves(steer or [])
    folder = given_or_packaged(folder)
    model_folder(folder)
    steering: dict[str, Any] | None = {"place": 0, "directions": []}
    if moves:
        steering = inspection_of(folder).get("steering")
    if steering is None:
        raise InputError(
            f"{folder} has no record of where its blocks can be steered; first: mu-sota inspect {as_word(folder)}"
        )
    load_libraries()
    from mu_sota.common.environment import default_device
    from mu_sota.generation.continuation import continued, prompt_ids, sampling_of, text_of
    from mu_sota.inspection.steering import recorded_directions, steered
    from mu_sota.saved.load_save import load_trained

    model, tokenizer = load_trained(folder, default_device())
    settings = sampling_of(model).with_changes(chosen)
    with in_one_sentence(f"the inspection of {folder} is damaged", "inspect the model again"):
        place, known = int(steering["place"]), recorded_directions(steering)
    with steered(model, place, known, moves):
        if prompt is None:
            from mu_sota.generation.terminal import converse

            converse(model, tokenizer, settings)
            return
        positions = model.config.max_position_embeddings
        ids = prompt_ids(tokenizer, prompt, 1, positions)
        new = min(settings.max_new_tokens, positions - len(ids))
        print(text_of(tokenizer, continued(model, tokenizer, ids, settings, new, settings.seed)))
    if new < settings.max_new_tokens:
        print(f"mu-sota: {new} new tokens are all that fit into the model's {positions} positions", file=sys.stderr)


def _moves(steer: list[str]) -> dict[str, float]:
    """`["E=+2", ...]` as strengths by block.

    Raises:
        InputError: one is something else.
    """
    moves = {}
    for move in steer:
        block, _, strength = move.partition("=")
        try:
            moves[block.strip().upper()] = float(strength)
        except ValueError:
            raise InputError(f"--steer is {move!r}; give a block and a strength, as in E=+2 or A=-1.5") from None
        if not math.isfinite(moves[block.strip().upper()]):
            raise InputError(f"--steer is {move!r}; give a strength that is a number, as in E=+2")
    return moves
