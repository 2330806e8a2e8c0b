"""The command line: parse, call, print. Begin reading in `commands.py`."""

from .commands import main as main
