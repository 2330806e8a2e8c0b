"""What the blocks of a trained model hold and do.

In: a model and token ids, or labelled texts. Out: a `Trace` of states, sensitivities and attention; the same with
blocks switched off; what each block does for the loss; how alike blocks are; what a layer, and each block alone, would
say; what linear probes read off each block, and whether that is what its name says.

Begin reading in `tracing.py` for one text, and in `record.py` for all that `mu-sota inspect` measures. `ablation.py`
switches blocks off, or gives them other values, by which `effects.py` measures what they do; `similarity.py` compares
blocks; `lens.py` reads layers and blocks out. `labelled_text.py` and `lexicons.py` give words their labels, `tasks.py`
asks for them in the blocks' names, `block_states.py`, `probes.py` and `legibility.py` answer.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
