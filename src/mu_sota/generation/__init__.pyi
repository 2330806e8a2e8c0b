from .continuation import continued as continued
from .continuation import sample as sample
from .continuation import sampling_of as sampling_of
from .terminal import converse as converse
