"""What every room may use: whole files or none, and what a record says of its machine.

Begin reading in `files.py`. It knows nothing of training or of texts.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
