"""`generate` for MU models: both names of the cache, an end at the last learned position, a seed for one call."""

from functools import update_wrapper
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin, LogitsProcessor
from transformers.utils import logging

from .arguments import CACHE_NAME, one_cache

logger = logging.get_logger(__name__)


class SeededDraw(LogitsProcessor):
    """Draws the next token with a random generator of its own, so that nothing drawn elsewhere changes a text.

    `generate` draws from the process's one random state, which its threads share. The same seed gives the same token
    there, if nothing else draws. To be the last of the processors, with `do_sample=False`: it leaves one token to take.
    """

    def __init__(self, seed: int, device: torch.device) -> None:
        self.generator = torch.Generator(device).manual_seed(seed)

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        drawn = torch.multinomial(scores.softmax(-1), 1, generator=self.generator)
        return torch.full_like(scores, float("-inf")).scatter_(-1, drawn, 0.0)


class MuGenerationMixin(GenerationMixin):
    """`generate` of `transformers` for a model with a last position and two cache layers a layer."""

    config: Any  # a `MuConfig`

    def generate(self, *args: Any, **kwargs: Any) -> Any:
        for name in {"cache", "past_key_values"} & kwargs.keys() - {CACHE_NAME}:
            kwargs[CACHE_NAME] = one_cache(kwargs.pop(name), kwargs.get(CACHE_NAME))
        return super().generate(*args, **kwargs)

    update_wrapper(generate, GenerationMixin.generate)

    def init_continuous_batching(self, *args: Any, **kwargs: Any) -> Any:
        """Refused: its pages of keys and values do not reach these attentions, which would see only the last token.

        Raises:
            NotImplementedError: always.
        """
        raise NotImplementedError("continuous batching does not work with this model: use generate")

    def _prepare_generated_length(self, generation_config: GenerationConfig, *args: Any, **kwargs: Any) -> Any:
        """As in `generate` of `transformers`, and a text ends at the last learned position.

        After a prompt that fills all positions, as `truncation=True` leaves it, comes one more token, which the model
        need not read.

        Raises:
            ValueError: the prompt is longer than the model has positions.
        """
        prepared = super()._prepare_generated_length(generation_config, *args, **kwargs)  # type: ignore[misc]
        positions = self.config.max_position_embeddings
        prompt = kwargs["input_ids_length"]
        if prompt > positions:
            raise ValueError(
                f"the prompt has {prompt} tokens, but this model has {positions} positions: give at most the "
                f"last {positions}, as with truncation=True, or in a pipeline with handle_long_generation='hole'"
            )
        longest = max(positions, prompt + 1)
        if prepared.max_length > longest:
            logger.warning(
                f"{prepared.max_length - prompt} new tokens were asked for after a prompt of {prompt}, but this model "
                f"has {positions} positions: generation ends after {longest - prompt}"
            )
            prepared.max_length = longest
        return prepared

    def _sample(self, input_ids: Any, *args: Any, **kwargs: Any) -> Any:
        """As in `transformers`; with a `sampling_seed` in the generation config, by a `SeededDraw`."""
        config = kwargs["generation_config"]
        seed = getattr(config, "sampling_seed", None)  # `seed` stands in those of trained models, for their training
        if config.do_sample and seed is not None:
            config.do_sample = False
            kwargs["logits_processor"].append(SeededDraw(seed, input_ids.device))
        return super()._sample(input_ids, *args, **kwargs)  # type: ignore[misc]

    def _get_candidate_generator(self, *args: Any, **kwargs: Any) -> Any:
        """As in `transformers`; what prompt lookup proposes ends at the last learned position."""
        generator: Any = super()._get_candidate_generator(*args, **kwargs)  # type: ignore[misc]
        propose = generator.get_candidates

        def within_positions(input_ids: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor | None]:
            ids, logits = propose(input_ids, *args, **kwargs)
            return ids[:, : self.config.max_position_embeddings], logits

        generator.get_candidates = within_positions
        return generator

    def _get_static_cache_init_shape(self) -> None:
        """No cache layer is allocated before its first use: those of the two attentions have different shapes."""
