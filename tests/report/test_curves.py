"""Scalars from the logs of a run: what is repeated counts once."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_pspo.report.curves import read_curves, stitch
from tests.support.report_runs import write_metrics


def test_a_resumed_run_counts_once(tmp_path: Path) -> None:
    """The second part goes on from step 4, the third makes up for the last evaluation, the fourth is `validate`."""
    first = {4: 0.1, 8: 0.9, 12: 0.9}
    write_metrics(tmp_path, [{"step": step, "train/reward": value} for step, value in first.items()])
    write_metrics(tmp_path, [{"step": 8, "train/reward": 0.2}, {"step": 8, "val/toy/accuracy": 0.5}], version=1)
    late = [{"step": 8, "val/toy/accuracy": 0.7}, {"step": 12, "val/toy/accuracy": 0.6}]
    write_metrics(tmp_path, late, version=2)
    write_metrics(tmp_path, [{"step": 0, "val/toy/accuracy": 0.99}], version=10)
    curves = read_curves(tmp_path)
    expected = {"train/reward": ([4, 8], [0.1, 0.2]), "val/toy/accuracy": ([8, 12], [0.5, 0.6])}
    assert {key: (x.tolist(), y.tolist()) for key, (x, y) in curves.items()} == expected


def test_damaged_logs(tmp_path: Path) -> None:
    path = write_metrics(tmp_path, [{"step": 4, "train/reward": 0.1}, {"step": 8, "train/reward": float("nan")}])
    with path.open("ab") as file:
        file.write(b"12,0.3\n16\n\0\0\xff,")
    steps, values = read_curves(tmp_path)["train/reward"]
    assert (steps.tolist(), values.tolist()) == ([4, 12], [0.1, 0.3])
    path.write_text(f"step,train/reward\n4,0.1\n8,{'9' * 200_000}\n12,0.3\n")  # a cell that is not CSV
    assert read_curves(tmp_path)["train/reward"][0].tolist() == [4]
    path.write_text("")
    assert read_curves(tmp_path) == {}


@pytest.mark.parametrize("versions", [(0, 1), ("mine", "mine")])
def test_tensorboard_is_read_where_there_is_no_csv(tmp_path: Path, versions: tuple[int | str, ...]) -> None:
    """Sessions may share a folder: what the first had from the second's first step on is not of this run."""
    from lightning.pytorch.loggers import TensorBoardLogger

    for version, first, values in zip(versions, (4, 12), ([0.1, 0.2, 0.9, 0.8], [0.3]), strict=True):
        logger = TensorBoardLogger(str(tmp_path), name="logs", version=version)
        for index, value in enumerate(values):
            logger.log_metrics({"train/reward": value}, step=4 * index + first)
        logger.finalize("success")
    steps, values = read_curves(tmp_path)["train/reward"]
    assert steps.tolist() == [4, 8, 12]
    assert values.tolist() == pytest.approx([0.1, 0.2, 0.3])
    if "mine" in versions:  # the tenth file of one process in one second
        first, second = sorted(tmp_path.rglob("events.out.*"), key=lambda path: int(path.suffix[1:]))
        second.rename(second.with_name("events.out.tfevents.7.host.1.10"))
        first.rename(first.with_name("events.out.tfevents.7.host.1.9"))
        assert read_curves(tmp_path)["train/reward"][0].tolist() == [4, 8, 12]


@given(st.lists(st.dictionaries(st.integers(1, 30), st.floats(-1, 1), max_size=8), max_size=4))
def test_stitched_steps_increase_and_the_last_part_is_whole(parts: list[dict[int, float]]) -> None:
    curves = stitch({"train/x": points} for points in parts)
    if "train/x" in curves:
        steps, values = curves["train/x"]
        assert (np.diff(steps) > 0).all()
        last = next(points for points in reversed(parts) if points)
        assert {step: value for step, value in zip(steps, values, strict=True) if step >= min(last)} == last
