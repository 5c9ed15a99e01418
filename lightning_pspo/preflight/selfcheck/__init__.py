"""Check in seconds that a model, an objective and an engine of your own keep what training relies on."""

from lightning_pspo.preflight.selfcheck.results import Result, explained, result_table
from lightning_pspo.preflight.selfcheck.settings import OrGenerated, Size
from lightning_pspo.preflight.selfcheck.suite import Report, check

__all__ = ["OrGenerated", "Report", "Result", "Size", "check", "explained", "result_table"]
