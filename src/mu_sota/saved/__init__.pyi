from .export import export_model as export_model
from .load_save import load_trained as load_trained
from .load_save import save_trained as save_trained
from .run_record import recorded as recorded
