"""What the blocks of a trained model hold and do.

In: a model and token ids. Out: a `Trace` of states, sensitivities and attention; the same with blocks switched off.
Begin reading in `tracing.py`; `ablation.py` switches blocks off.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
