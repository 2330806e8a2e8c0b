from .ablation import blocks_off as blocks_off
from .tracing import Trace as Trace
from .tracing import trace as trace
