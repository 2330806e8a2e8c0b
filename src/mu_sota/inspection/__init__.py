"""What the blocks of a trained model hold and do.

In: a model and token ids. Out: a `Trace` of states, sensitivities and attention; the same with blocks switched off;
what each block does for the loss; how alike blocks are; what a layer, and each block alone, would say.
Begin reading in `tracing.py`; `ablation.py` switches blocks off, or gives them other values, by which `effects.py`
measures what they do; `similarity.py` compares blocks with each other; `lens.py` reads layers and blocks out.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
