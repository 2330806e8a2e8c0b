"""Text from a trained model: one continuation, or a session in the terminal.

In: model, tokenizer, a prompt. Out: the prompt and what the model adds. Begin reading in `continuation.py`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
