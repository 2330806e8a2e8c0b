from .plan import Plan as Plan
from .request import Request as Request
from .runner import describe_comparison as describe_comparison
from .runner import run_comparison as run_comparison
