from .environment import describe as describe
from .environment import peak_memory as peak_memory
from .files import as_json as as_json
from .files import cache_folder as cache_folder
from .files import replacing as replacing
from .files import write_json as write_json
from .hooks import attached as attached
from .memory import halve_until_it_fits as halve_until_it_fits
