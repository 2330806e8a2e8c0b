"""The model behind the page: it reads a text and continues it, as trained or with some blocks changed.

Legend: T tokens of the text.
"""

import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from queue import SimpleQueue
from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerFast, StoppingCriteriaList
from transformers.generation.streamers import BaseStreamer

from mu_sota.generation.continuation import continued, prompt_ids
from mu_sota.inspection.tracing import Trace, trace
from mu_sota.model.errors import InputError
from mu_sota.model.modeling import MuForCausalLM
from mu_sota.settings.sampling import Generation

from .change import NO_STEERING, Change
from .html_views import LIKELIEST

MAX_CHARACTERS = 20_000


@dataclass(frozen=True)
class Reading:
    """A text that the model has read, as one visitor of the page sees it."""

    ids: list[int]
    prompt_length: int  # tokens; the model wrote those after them
    generation: Generation
    nll_as_trained: Tensor  # [T - 1] nats
    continuation: list[int]  # of the prompt, by the model as trained
    trace: Trace  # of the model as it is changed
    change: Change = field(default_factory=Change)

    @property
    def nll_changed(self) -> Tensor | None:
        """[T - 1] nats of the model as it is changed, if it is."""
        return self.trace.nll if self.change else None

    @property
    def prompt(self) -> list[int]:
        """Token ids of the prompt."""
        return self.ids[: self.prompt_length]


class Step(NamedTuple):
    """A token that the model has just written, with the likeliest ones at its position."""

    token: int
    log_prob: float  # by the model's own prediction, before temperature, top k, top p and penalty
    top_ids: list[int]
    top_log_probs: list[float]


class Session:
    """The model and its tokenizer. It answers one question at a time, since hooks change the model for all visitors.

    Args:
        steering: of the record that `mu-sota inspect` made of the model.
    """

    def __init__(
        self, model: MuForCausalLM, tokenizer: PreTrainedTokenizerFast, steering: Mapping[str, Any] = NO_STEERING
    ) -> None:
        self.model = model
        self.tokenizer = tokenizer
        self.steering = steering
        self.positions = model.config.max_position_embeddings
        self.lock = threading.Lock()

    def ids(self, text: str, new: int) -> list[int]:
        """Token ids of a text that leaves `new` of the model's positions free.

        Raises:
            InputError: the text is too long, or not Unicode.
        """
        if len(text) > MAX_CHARACTERS:
            raise InputError(
                f"the text has {len(text):,} characters, but at most {MAX_CHARACTERS:,} are read here; shorten it"
            )
        return prompt_ids(self.tokenizer, text, new, self.positions)

    def write(
        self, ids: list[int], generation: Generation, stopped: threading.Event
    ) -> Iterator[list[Trace | Step | Reading]]:
        """Continue a text: a trace of the prompt, then every token as it comes, last a reading of the text.

        Tokens that come while the page is busy are yielded together, so that the page keeps up with a long text.
        The model works in a thread of its own and never waits for the page, which may have been closed.
        """
        arrived: SimpleQueue[Trace | Step | Reading | BaseException] = SimpleQueue()

        def work() -> None:
            try:
                self._write(ids, generation, stopped, arrived.put)
            except BaseException as error:
                arrived.put(error)

        threading.Thread(target=work, daemon=True).start()
        steps: list[Trace | Step | Reading] = []
        while not steps or not isinstance(steps[-1], Reading):
            steps = []
            while not steps or not arrived.empty():
                step = arrived.get()
                if isinstance(step, BaseException):
                    raise step
                steps.append(step)
            yield steps

    def read(self, ids: list[int], generation: Generation) -> Reading:
        """Read a text; its continuation, for comparison, has as many tokens as fit, up to those asked for."""
        with self.lock:
            return self._reading(ids, len(ids), generation, self._continued(ids, generation)[len(ids) :])

    def switch(self, reading: Reading, change: Change) -> Reading:
        """The same text, read with the model changed in another way."""
        with self.lock, change.applied(self.model, self.steering):
            return replace(reading, trace=trace(self.model, reading.ids), change=change)

    def continuation(self, reading: Reading) -> list[int]:
        """The continuation of the prompt by the model as it is changed; same settings, same seed."""
        with self.lock, reading.change.applied(self.model, self.steering):
            return self._continued(reading.prompt, reading.generation)[reading.prompt_length :]

    def _write(
        self,
        ids: list[int],
        generation: Generation,
        stopped: threading.Event,
        arrived: Callable[[Trace | Step | Reading], None],
    ) -> None:
        streamer = _Streamer(arrived)
        with self.lock:
            arrived(trace(self.model, ids))
            with self.model.register_forward_hook(streamer.keep_prediction):
                criteria = StoppingCriteriaList([_until(stopped)])
                text = self._continued(ids, generation, streamer=streamer, stopping_criteria=criteria)
            written = text[len(ids) :]
            if stopped.is_set():  # so that a continuation by the changed model is as long
                generation = generation.changed("max_new_tokens", len(written))
            arrived(self._reading(text, len(ids), generation, written))

    def _reading(self, ids: list[int], prompt_length: int, generation: Generation, continuation: list[int]) -> Reading:
        seen = trace(self.model, ids)
        return Reading(ids, prompt_length, generation, seen.nll, continuation, seen)

    def _continued(self, ids: list[int], generation: Generation, **more: Any) -> list[int]:
        new = min(generation.max_new_tokens, self.positions - len(ids))
        return continued(self.model, self.tokenizer, ids, generation, new, generation.seed, **more) if new else ids


class _Streamer(BaseStreamer):
    """Passes on every token as soon as it is drawn, with the prediction it was drawn from."""

    def __init__(self, arrived: Callable[[Step], None]) -> None:
        self.arrived = arrived
        self.prompt_is_next = True
        self.log_probs = torch.empty(0)

    def keep_prediction(self, module: torch.nn.Module, inputs: Any, output: Any) -> None:
        """A forward hook."""
        self.log_probs = output.logits[0, -1].float().log_softmax(-1)

    def put(self, value: Tensor) -> None:
        if self.prompt_is_next:
            self.prompt_is_next = False
            return
        token, top = int(value.item()), self.log_probs.topk(min(LIKELIEST, len(self.log_probs)))
        self.arrived(Step(token, float(self.log_probs[token]), top.indices.tolist(), top.values.tolist()))

    def end(self) -> None:
        """Every token has been passed on."""


def _until(stopped: threading.Event) -> Callable[..., Tensor]:
    def criterion(ids: Tensor, scores: Tensor, **kwargs: Any) -> Tensor:
        return torch.full((len(ids),), stopped.is_set(), device=ids.device)

    return criterion
