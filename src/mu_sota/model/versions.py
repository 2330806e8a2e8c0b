"""The releases of `transformers` and PyTorch that the model runs on, checked before anything that others may lack.

An exported folder has this file too, and no `pyproject.toml`.
"""

import torch
import transformers
from packaging.version import Version
from transformers.utils import logging

# As in `pyproject.toml`: the lowest that the tests have passed on, and the first that they have not been run on.
TRANSFORMERS = ("5.10", "5.25")
TORCH = ("2.7", "2.16")

logger = logging.get_logger(__name__)


def require(name: str, installed: str, lowest: str, untested: str) -> None:
    """Refuse a release that the model cannot run on, and warn of one that is newer than any it was tested on.

    Raises:
        ImportError: it is older than `lowest`, or of a later major version than all that were tested.
    """
    release = Version(Version(installed).base_version)
    range_ = f"'{name}>={lowest},<{untested}'"
    if release < Version(lowest) or release.major > Version(untested).major:
        raise ImportError(f"this MU model needs {range_}, but {name} {installed} is installed: pip install {range_}")
    if release >= Version(untested):
        logger.warning_once(
            f"this MU model was tested with {range_}, and {name} {installed} is installed: if anything fails, "
            f"pip install {range_}"
        )


require("transformers", transformers.__version__, *TRANSFORMERS)
require("torch", torch.__version__, *TORCH)
