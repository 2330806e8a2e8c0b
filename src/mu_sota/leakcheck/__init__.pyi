from .checks import assert_causal as assert_causal
from .checks import check as check
from .noise_training import train_on_uniform_tokens as train_on_uniform_tokens
from .report import LeakError as LeakError
from .report import Report as Report
from .report import Result as Result
