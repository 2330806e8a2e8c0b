"""Scores of any model, baselines that only count, and the cost of a model: parameters, FLOPs, memory.

In: a model and a split. Out: a `Score`, every token predicted exactly once. Begin reading in `metrics.py`.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
