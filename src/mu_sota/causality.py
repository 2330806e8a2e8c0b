"""The leak check under its short name: `from mu_sota.causality import assert_causal, check`; see `leakcheck`."""

from .leakcheck.checks import assert_causal as assert_causal
from .leakcheck.checks import check as check
from .leakcheck.report import LeakError as LeakError
from .leakcheck.report import Report as Report
from .leakcheck.report import Result as Result
