"""mu-sota: language models whose token state is a matrix of named semantic blocks.

Importing a name loads only what it needs, so that the command line answers at once.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .config import MuConfig as MuConfig
    from .errors import InputError as InputError
    from .model import MuForCausalLM as MuForCausalLM
    from .model import MuModel as MuModel

__version__ = "0.1.0"
__all__ = ["InputError", "MuConfig", "MuForCausalLM", "MuModel", "__version__"]

_HOME = {"InputError": "errors", "MuConfig": "config", "MuForCausalLM": "model", "MuModel": "model"}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name != "InputError":
        _register()
    return getattr(import_module(f".{_HOME[name]}", __name__), name)


def _register() -> None:
    """Let `AutoConfig`, `AutoModel` and `AutoModelForCausalLM` know the classes."""
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    from .config import MuConfig
    from .model import MuForCausalLM, MuModel

    AutoConfig.register(MuConfig.model_type, MuConfig, exist_ok=True)
    AutoModel.register(MuConfig, MuModel, exist_ok=True)
    AutoModelForCausalLM.register(MuConfig, MuForCausalLM, exist_ok=True)
