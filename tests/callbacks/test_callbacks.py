"""What holds for every callback: settings out of range are refused by name, arguments have names."""

import inspect
import math
import re
from typing import Any

import pytest

from lightning_pspo import callbacks
from lightning_pspo.errors import InputError


@pytest.mark.parametrize(
    ("name", "setting", "value"),
    [
        ("CompletionTable", "every_n_rollouts", 0),
        ("CompletionTable", "rows", 0),
        ("LiveSamples", "every_n_rollouts", 0),
        ("LiveSamples", "rows", 0),
        ("RolloutCheckpoint", "every_n_minutes", 0.0),
        ("RolloutCheckpoint", "every_n_rollouts", 0),
        ("RolloutCheckpoint", "keep_best", 0),
        ("RolloutCheckpoint", "keep_last", 0),
        ("RolloutCheckpoint", "mode", "best"),
        ("RolloutLedger", "megabytes_per_file", 0.0),
        ("RolloutLedger", "megabytes_per_file", math.inf),
        ("RolloutLedger", "rows_per_file", 0),
        ("RunReport", "filename", ""),
        ("RunReport", "others", ["/no/such/folder"]),
        ("RunSummary", "examples", -1),
        ("CompletionWriter", "path", "x" * 201),
        ("EvaluationReport", "path", ""),
        ("RunReport", "filename", "x" * 201),
        ("RunSummary", "figure", "/"),
        ("RunSummary", "filename", "x" * 300),
        ("Watchdog", "timeout_minutes", 0.0),
        ("Watchdog", "timeout_minutes", math.inf),
        ("Watchdog", "timeout_minutes", math.nan),
    ],
)
def test_a_setting_out_of_range_is_refused(name: str, setting: str, value: Any) -> None:
    shown = value[0] if isinstance(value, list) else value
    with pytest.raises(InputError, match=rf"`{setting}` must .*, got '?{re.escape(str(shown))}"):
        getattr(callbacks, name)(**{setting: value})


@pytest.mark.parametrize("name", callbacks.__all__)
def test_arguments_have_names(name: str) -> None:
    parameters = inspect.signature(getattr(callbacks, name)).parameters.values()
    assert {parameter.kind for parameter in parameters} <= {inspect.Parameter.KEYWORD_ONLY}
