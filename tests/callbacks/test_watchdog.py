"""The watchdog says where a run is stuck, also when Python cannot."""

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from lightning_pspo.cli.main import main
from tests.support.processes import SLOW_REWARD, ended, start


@pytest.mark.slow
@pytest.mark.parametrize("what", ["sleep", "stuck"], ids=["waiting", "holding the interpreter"])
def test_stacks_of_a_run_that_is_stuck(tiny_run: Callable[..., list[str]], tmp_path: Path, what: str) -> None:
    (tmp_path / "slow_reward.py").write_text(SLOW_REWARD)
    root = tmp_path / "run"
    watchdog = {"+": "Watchdog", ".timeout_minutes": 0.05, ".abort": "true"}
    reward = {"": "slow_reward.Slow", ".folder": tmp_path, ".seconds": 0, ".fails_on": 0, ".what": what}
    more = [f"--trainer.callbacks{name}={value}" for name, value in watchdog.items()]
    more += [f"--model.reward{name}={value}" for name, value in reward.items()]
    status, output = ended(start(["fit", *tiny_run(root, *more)], tmp_path))
    assert status == 1, output
    stuck = (root / "stacks-rank0.txt").read_text()
    assert re.search(r'File ".*slow_reward\.py", line \d+ in __call__', stuck)
    assert "Thread 0x" in stuck
    if what == "sleep":
        for text in (stuck, output):
            assert "no rollout finished on rank 0 for 0.05 minutes" in text


def test_a_run_that_goes_on_is_left_alone(tiny_run: Callable[..., list[str]], tmp_path: Path) -> None:
    main(["fit", *tiny_run(tmp_path / "run", "--trainer.callbacks+=Watchdog")])
    assert list((tmp_path / "run").glob("stacks*")) == []
