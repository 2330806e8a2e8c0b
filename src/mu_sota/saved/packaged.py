"""The model that comes with the package, so that there is something to look into before anything is trained."""

from pathlib import Path

PACKAGED_MODEL = Path(__file__).parent / "pocket"
"""Its folder, as a run leaves it: the model in `best/`, the records of its training and of its inspection."""
