"""MU beside standard Transformers: sized alike, tuned alike, trained on the same batches, tested once.

In: a `Request` and settings. Out: a folder with every training run, `comparison.json` and a report. Begin reading in
`runner.py`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
