from .continuation import continued as continued
from .continuation import sample as sample
from .terminal import converse as converse
