"""Every number that a user may set: once, with its default, its range and its sentence.

In: a preset, a YAML file, `--set key=value`. Out: `Settings`, all checked. Begin reading in `load.py`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
