"""A page about runs: curves, trust region, evaluations, samples, settings. Imports no torch."""

from lightning_pspo.report.arms import Arm, read_arms
from lightning_pspo.report.page import render_page, write_report
from lightning_pspo.report.runs import ReportError, TrainingRun, read_run

__all__ = ["Arm", "ReportError", "TrainingRun", "read_arms", "read_run", "render_page", "write_report"]
