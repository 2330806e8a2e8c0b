"""Text from a trained model: one continuation, or a session in the terminal.

In: model, tokenizer, a prompt. Out: the prompt and its continuation. Begin reading in `continuation.py`; the session
is in `terminal.py`, with `typed_lines.py` and `token_stream.py` for its input and output.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
