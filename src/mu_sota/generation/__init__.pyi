from .terminal import converse as converse
