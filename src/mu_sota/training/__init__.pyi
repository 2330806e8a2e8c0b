from .interrupt import Interrupted as Interrupted
from .run import train as train
from .run_checks import RunCheck as RunCheck
