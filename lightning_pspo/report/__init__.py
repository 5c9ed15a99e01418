"""A page about runs: curves, trust region, evaluations, samples, settings. Imports no torch."""

from lightning_pspo.report.arms import read_arms
from lightning_pspo.report.page import render_page, write_report
from lightning_pspo.report.runs import ReportError

__all__ = ["ReportError", "read_arms", "render_page", "write_report"]
