from .load import Settings as Settings
from .load import load_settings as load_settings
from .load import parse_assignments as parse_assignments
from .run import RunSettings as RunSettings
from .sampling import Generation as Generation
from .sampling import Sampling as Sampling
