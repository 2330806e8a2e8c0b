"""How the next token is drawn, and how one text is continued: the defaults of every sample."""

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import PydanticCustomError

from mu_sota.model.errors import InputError

from .sentences import no_such_setting, refuse_truth_value, sentence_of


class CheckedSettings(BaseModel):
    """Settings that refuse unknown names and truth values."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _no_truth_values(cls, values: dict[str, Any]) -> dict[str, Any]:
        """No setting is a truth value, and `true` would pass for 1."""
        for key, value in values.items():
            refuse_truth_value(key, value)
        return values


class Sampling(CheckedSettings):
    """How the next token is drawn. The defaults are the recipe of the run instructions."""

    temperature: float = Field(
        default=0.8, ge=0, le=100, description="below 1 plainer, above 1 wilder, 0 always the likeliest token"
    )

    @field_validator("temperature")
    @classmethod
    def _no_overflow(cls, temperature: float) -> float:
        """Logits are divided by it."""
        if 0 < temperature < 0.01:
            raise PydanticCustomError("temperature", "input should be 0, for the likeliest token, or at least 0.01")
        return temperature

    top_k: int = Field(default=50, ge=0, description="sample among so many tokens; 0 for all")
    top_p: float = Field(
        default=0.9, gt=0, le=1, description="sample among the most likely tokens of this total probability"
    )
    repetition_penalty: float = Field(
        default=1.2, ge=1, le=100, description="above 1, tokens already in the text become less likely"
    )


class Generation(Sampling):
    """How one text is continued."""

    max_new_tokens: int = Field(default=30, ge=1, description="tokens to add")
    seed: int = Field(default=0, ge=0, lt=2**31, description="same seed, same text")

    def with_changes(self, changes: dict[str, Any]) -> "Generation":
        """A copy with other values for some settings.

        Raises:
            InputError: no such setting, or a value is of the wrong type or out of range.
        """
        for key in changes:
            if key not in type(self).model_fields:
                raise InputError(no_such_setting(key, list(type(self).model_fields)))
        try:
            return type(self)(**{**self.model_dump(), **changes})
        except ValidationError as error:
            raise InputError(sentence_of(error)) from None

    def changed(self, key: str, value: Any) -> "Generation":
        """As `with_changes`, for one setting."""
        return self.with_changes({key: value})
