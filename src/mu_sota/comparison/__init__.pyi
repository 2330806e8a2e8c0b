from .plan import Plan as Plan
from .plan import Request as Request
from .runner import Comparison as Comparison
