"""Runs that differ only in the seed form an arm."""

from pathlib import Path

import pytest

from lightning_pspo.report import ReportError, read_arms
from lightning_pspo.report.arms import differences
from tests.support.report_runs import training_rows, write_metrics, write_run


def test_seeds_form_an_arm(tmp_path: Path) -> None:
    for seed in (1, 2, 3):
        write_run(tmp_path / f"pspo-seed{seed}", seed)
    write_run(tmp_path / "clip", 1, settings={"model": {"surrogate": {"class_path": "Clip", "init_args": {"a": 2}}}})
    (tmp_path / "bare").mkdir()
    write_metrics(tmp_path / "bare", training_rows(20))
    names = ["pspo-seed1", "clip", "pspo-seed2", "bare", "pspo-seed3"]
    arms = read_arms([tmp_path / name for name in names])
    assert [(arm.name, len(arm.runs)) for arm in arms] == [("pspo", 3), ("clip", 1), ("bare", 1)]
    assert differences(arms) == [
        ("model.surrogate.class_path", ["lightning_pspo.objective.surrogates.PSPO", "Clip", None]),
        ("model.surrogate.init_args.a", [None, "2", None]),
    ]


def test_no_run_at_all() -> None:
    with pytest.raises(ReportError, match="at least one run"):
        read_arms([])
