"""Lightning callbacks of lightning_pspo: what is measured, shown, saved and written while the trainer runs.

Every one is named in YAML by its class path, such as ``RunSummary``.
"""

from .completion_table import CompletionTable
from .completion_writer import CompletionWriter
from .evaluation_report import EvaluationReport
from .judge_eval import JudgeEval
from .live_samples import LiveSamples
from .preemption import Preemption
from .rollout_checkpoint import RolloutCheckpoint
from .rollout_ledger import RolloutLedger
from .rollout_progress_bar import RolloutProgressBar
from .run_report import RunReport
from .run_summary import RunSummary
from .trust_region_report import TrustRegionReport
from .validation_line import ValidationLine
from .validation_verdicts import ValidationVerdicts
from .watchdog import Watchdog

__all__ = [
    "CompletionTable",
    "CompletionWriter",
    "EvaluationReport",
    "JudgeEval",
    "LiveSamples",
    "Preemption",
    "RolloutCheckpoint",
    "RolloutLedger",
    "RolloutProgressBar",
    "RunReport",
    "RunSummary",
    "TrustRegionReport",
    "ValidationLine",
    "ValidationVerdicts",
    "Watchdog",
]
