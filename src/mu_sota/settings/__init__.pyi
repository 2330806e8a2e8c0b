from .load import Generation as Generation
from .load import RunSettings as RunSettings
from .load import Sampling as Sampling
from .load import Settings as Settings
from .load import load_settings as load_settings
from .load import parse_assignments as parse_assignments
