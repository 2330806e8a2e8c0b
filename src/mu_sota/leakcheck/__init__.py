"""Does a causal language model see the token that it is asked to predict?

In: any model, as a function from ids [B, T] to logits [B, T, V]. Out: a `Report`, or an error that names what leaks, by
how much, and in which module. Begin reading in `checks.py`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
