"""What holds for every callback: settings are refused by name, arguments have names, examples give what they say."""

import doctest
import importlib
import inspect
import math
import pkgutil
import re
from typing import Any

import pytest

from lightning_pspo import callbacks
from lightning_pspo.errors import InputError


@pytest.mark.parametrize(
    ("name", "setting", "value"),
    [
        *(("CompletionTable", name, 0) for name in ("every_n_rollouts", "rows")),
        *(("LiveSamples", name, 0) for name in ("every_n_rollouts", "rows")),
        *(("RolloutCheckpoint", name, 0) for name in ("every_n_minutes", "every_n_rollouts", "keep_best", "keep_last")),
        ("RolloutCheckpoint", "mode", "best"),
        *(("RolloutLedger", name, 0) for name in ("megabytes_per_file", "rows_per_file")),
        ("RunReport", "filename", ""),
        ("RunReport", "others", ["/no/such/folder"]),
        ("RunSummary", "examples", -1),
        ("CompletionWriter", "path", "x" * 201),
        ("EvaluationReport", "path", ""),
        ("RunReport", "filename", "x" * 201),
        ("RunSummary", "figure", "/"),
        ("RunSummary", "filename", "x" * 300),
        *(("Watchdog", "timeout_minutes", value) for value in (0.0, math.inf, math.nan)),
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


@pytest.mark.parametrize("name", [module.name for module in pkgutil.iter_modules(callbacks.__path__)])
def test_examples_give_what_they_say(name: str) -> None:
    """Pytest's own collection would import the folder a second time, by its path."""
    assert not doctest.testmod(importlib.import_module(f"lightning_pspo.callbacks.{name}")).failed
