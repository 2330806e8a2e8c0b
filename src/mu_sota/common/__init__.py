"""What every room may use: complete files, phrases, the machine of a record, less at once when memory is full.

Begin reading in `files.py`. It knows nothing of training or of texts.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
