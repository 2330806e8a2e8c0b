"""One training run: from settings to a trained model, its record, and checks of whether it worked.

In: settings, the name of a text, a folder. Out: what `docs/run-instructions.md` lists, in that folder. Begin reading in
`run.py`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
