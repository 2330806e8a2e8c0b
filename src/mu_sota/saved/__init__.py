"""What a run leaves in its folder, and how that is opened again.

In: the folder of a run, or of a model in Hugging Face layout. Out: model and tokenizer; its record; a folder for
`transformers` alone. Begin reading in `load_save.py`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
