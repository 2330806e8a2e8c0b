"""From the name or path of a text to windows of token ids.

In: `pydocs`, `wikitext-2`, a file, a folder, or a folder of prepared tokens. Out: a `Corpus` of three splits, tokenized
and cached, and its windows. Begin reading in `corpus.py`; `sources.py` finds and `readers.py` reads the text,
`splits.py` splits it, `tokenizer.py` turns it into ids, `windows.py` cuts these.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
