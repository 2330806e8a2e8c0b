"""Generated text on the screen, token by token, and Ctrl-C between two tokens."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import Tensor
from transformers import PreTrainedTokenizerFast
from transformers.generation.streamers import BaseStreamer

from mu_sota.common.text import visible

from .continuation import text_of

_CUT_CHARACTER = "\N{REPLACEMENT CHARACTER}"  # an incomplete UTF-8 character decodes to it


class TokenStream(BaseStreamer):
    """Prints each token's text as soon as its characters are complete.

    The library's `TextStreamer` waits for spaces, which code and some scripts seldom have, and loses the text it holds
    back when the generation is interrupted.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast, start: list[int]) -> None:
        self.tokenizer = tokenizer
        self.ids = list(start)
        self.text = text_of(tokenizer, start)
        self.shown = len(self.text.removesuffix(_CUT_CHARACTER))
        self.stopping = False

    def put(self, value: Tensor) -> None:
        if value.dim() == 1:  # the prompt comes first, as a batch
            self.ids += value.tolist()
            self.text = text_of(self.tokenizer, self.ids)
            self._show(self.text.removesuffix(_CUT_CHARACTER))
        if self.stopping:
            raise KeyboardInterrupt

    def end(self) -> None:
        self._show(self.text)

    def _show(self, text: str) -> None:
        new, self.shown = text[self.shown :], max(self.shown, len(text))
        print(visible(new, spaces=False), end="", flush=True)


@contextmanager
def ctrl_c_between_tokens(stream: TokenStream) -> Iterator[None]:
    """The first Ctrl-C stops the generation after the token in progress, so that none is lost; a second one at once."""

    def stop(*_: Any) -> None:
        if stream.stopping:
            raise KeyboardInterrupt
        stream.stopping = True

    before = signal.signal(signal.SIGINT, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
