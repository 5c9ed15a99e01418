"""Whether a user's own model, objective and engine keep what training relies on, found out in seconds."""

from lightning_pspo.preflight.selfcheck.results import Result, explained, result_table
from lightning_pspo.preflight.selfcheck.settings import OrBuiltIn, Size
from lightning_pspo.preflight.selfcheck.suite import CHECKS, Report, check

__all__ = ["CHECKS", "OrBuiltIn", "Report", "Result", "Size", "check", "explained", "result_table"]
