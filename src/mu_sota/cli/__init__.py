"""The command line: parse, call, print; a file a command. It imports lazily. Begin reading in `entry.py`."""

from .entry import main as main
