"""A local page to look inside a trained model.

In: the folder of a run. Out: a page at 127.0.0.1 until Ctrl-C. Begin reading in `page.py`; it puts together `cards.py`
(the layout), `callbacks.py` (the clicks) and `session.py` (the model), and `server.py` shows it.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
