"""The MU model: states of 16 named blocks, its layers, and the loss; the room that an exported folder takes along.

In: token ids [B, T]. Out: logits, loss, hidden states, all as in `transformers`. Begin reading in `modeling.py`, then
`layers.py`; `blocks.py` says how the 16 blocks lie in a state. `cache.py` and `decoding.py` only make generation fast,
`kernels.cpp` and `triton_kernels.py` training. The room is flat, and imports only itself, torch and transformers.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
