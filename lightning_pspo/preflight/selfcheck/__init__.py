"""Check in seconds that a model, an objective and an engine of your own keep what training relies on."""

from lightning_pspo.preflight.selfcheck.results import explained, result_table
from lightning_pspo.preflight.selfcheck.settings import Size
from lightning_pspo.preflight.selfcheck.suite import check

__all__ = ["Size", "check", "explained", "result_table"]
