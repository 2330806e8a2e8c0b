"""mu-sota: language models whose token state is a matrix of named semantic blocks.

Importing the package registers its classes with the Auto classes of `transformers`. Only the command line
does without, so that it answers before torch is loaded.
"""

import sys
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import MuConfig as MuConfig
    from .errors import InputError as InputError
    from .model import MuForCausalLM as MuForCausalLM
    from .model import MuModel as MuModel

__version__ = "0.1.0"
__all__ = ["InputError", "MuConfig", "MuForCausalLM", "MuModel", "__version__"]

_MODULES = ("causality", "layout")
_HOME = {"InputError": "errors", "MuConfig": "config", "MuForCausalLM": "model", "MuModel": "model"}


def __getattr__(name: str) -> Any:
    if name in _MODULES:
        return import_module(f".{name}", __name__)
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def _register() -> None:
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    from .config import MuConfig
    from .model import MuForCausalLM, MuModel

    AutoConfig.register(MuConfig.model_type, MuConfig, exist_ok=True)
    AutoModel.register(MuConfig, MuModel, exist_ok=True)
    AutoModelForCausalLM.register(MuConfig, MuForCausalLM, exist_ok=True)


# `python -m mu_sota` imports this file while its argv[0] is still "-m".
if Path(sys.argv[0]).stem not in ("-m", "mu-sota"):
    _register()
