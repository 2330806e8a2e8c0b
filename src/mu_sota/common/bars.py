"""How often a progress bar is drawn."""

import sys


def seconds_between_drawings() -> float:
    """Often in a terminal and in a notebook; seldom in a log, where every drawing stays."""
    if "ipykernel" in sys.modules:  # a notebook draws bars, though its streams are no terminals
        return 2
    return 0.5 if sys.stderr.isatty() else 30
