"""mu-sota: language models whose token state is a matrix of named semantic blocks.

Importing the package registers its classes with the Auto classes of `transformers`. Only the command line
does without, so that it answers before torch is loaded.
"""

import sys
from pathlib import Path

import lazy_loader

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def _register() -> None:
    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM

    from .model.configuration import MuConfig
    from .model.modeling import MuForCausalLM, MuModel

    AutoConfig.register(MuConfig.model_type, MuConfig, exist_ok=True)
    AutoModel.register(MuConfig, MuModel, exist_ok=True)
    AutoModelForCausalLM.register(MuConfig, MuForCausalLM, exist_ok=True)


# `python -m mu_sota` imports this file while its argv[0] is still "-m".
if Path(sys.argv[0]).stem not in ("-m", "mu-sota"):
    _register()
