from . import causality as causality
from . import inspection as inspection
from . import leakcheck as leakcheck
from . import model as model
from .model.configuration import MuConfig as MuConfig
from .model.errors import InputError as InputError
from .model.modeling import MuForCausalLM as MuForCausalLM
from .model.modeling import MuModel as MuModel

__version__: str
