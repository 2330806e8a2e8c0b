"""Text from a trained model: a prompt and its sampled continuation."""

from contextlib import suppress
from typing import Any

import torch
from transformers import (
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from mu_sota.data.tokenizer import encode, is_word_level
from mu_sota.model.errors import InputError, cut
from mu_sota.model.generation import SeededDraw
from mu_sota.settings.sampling import Generation, Sampling


def sampling_of(model: PreTrainedModel) -> Generation:
    """The sampling settings saved with a model (`generation_config.json`), as a run's `--set` made them.

    A setting that is missing there, or out of range, has the default of `Generation`, as number of tokens and seed do.
    """
    saved, settings = model.generation_config, Generation()
    for key in Sampling.model_fields:
        with suppress(InputError):
            settings = settings.changed(key, getattr(saved, key, None))
    return settings.changed("temperature", 0) if getattr(saved, "do_sample", None) is False else settings


def prompt_ids(tokenizer: PreTrainedTokenizerFast, prompt: str, max_new_tokens: int, positions: int) -> list[int]:
    """Token ids of a prompt; for an empty one, the mark that begins a text.

    Raises:
        InputError: prompt and new tokens together exceed the model's positions.
    """
    ids: list[int] = encode(tokenizer, prompt).tolist() or [tokenizer.bos_token_id]
    if len(ids) + max_new_tokens > positions:
        raise InputError(
            f"the prompt {cut(prompt)!r} has {len(ids)} tokens and {max_new_tokens} more are asked for, but the model "
            f"has {positions} positions; shorten the prompt, or ask for fewer tokens"
        )
    return ids


def continued(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    ids: list[int],
    sampling: Sampling,
    max_new_tokens: int,
    seed: int,
    **more: Any,
) -> list[int]:
    """The ids and up to `max_new_tokens` more. The same seed gives the same ids; global random state is untouched.

    Args:
        ids: as `prompt_ids` gives them.
        more: for `model.generate`, such as a streamer.

    Raises:
        InputError: the model's predictions are not numbers.
    """
    inputs = torch.tensor([ids], device=model.device)
    try:
        output = model.generate(  # type: ignore[operator]
            inputs,
            attention_mask=torch.ones_like(inputs),
            max_new_tokens=max_new_tokens,
            do_sample=False,  # the last processor draws
            repetition_penalty=sampling.repetition_penalty,
            logits_processor=_drawing(sampling, seed, model.device),
            pad_token_id=tokenizer.pad_token_id,
            eos_token_id=tokenizer.eos_token_id,
            **more,
        )
    except RuntimeError as error:
        if "probability tensor contains" not in str(error):
            raise
        raise InputError(
            "the model's predictions are not numbers, so no token can be drawn; its weights are damaged, or its "
            "training diverged: use another checkpoint"
        ) from error
    return list(output[0].tolist())


def text_of(tokenizer: PreTrainedTokenizerFast, ids: list[int]) -> str:
    """Text of token ids, without the marks that begin and end a text."""
    # The word vocabulary's special tokens, <unk> and <eos>, are words of its text.
    return str(tokenizer.decode(ids, skip_special_tokens=not is_word_level(tokenizer)))


def sample(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    prompt: str,
    sampling: Sampling,
    max_new_tokens: int,
    seed: int,
) -> str:
    """The prompt and its sampled continuation, as `continued` makes it.

    Raises:
        InputError: prompt and new tokens together exceed the model's positions.
    """
    ids = prompt_ids(tokenizer, prompt, max_new_tokens, model.config.max_position_embeddings)
    return text_of(tokenizer, continued(model, tokenizer, ids, sampling, max_new_tokens, seed))


def _drawing(sampling: Sampling, seed: int, device: torch.device) -> LogitsProcessorList:
    """What `generate` does from scores to a drawn token, with a random state of its own; nothing at temperature 0."""
    processors: list[LogitsProcessor] = []
    if sampling.temperature:
        processors.append(TemperatureLogitsWarper(sampling.temperature))
        if sampling.top_k:
            processors.append(TopKLogitsWarper(sampling.top_k))
        if sampling.top_p < 1:
            processors.append(TopPLogitsWarper(sampling.top_p))
        processors.append(SeededDraw(seed, device))
    return LogitsProcessorList(processors)
