"""`generate` for MU models: both names of the cache, and an end at the last learned position."""

from functools import update_wrapper
from typing import Any

from torch import Tensor
from transformers import GenerationConfig, GenerationMixin
from transformers.utils import logging

from .arguments import CACHE_NAME, one_cache

logger = logging.get_logger(__name__)


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
