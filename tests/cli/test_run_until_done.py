"""The restart loop brings a run to its end through crashes, and gives up where that would not help."""

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from lightning_pspo.checkpoints.store import checkpoint_name, find_checkpoints
from lightning_pspo.cli.run_until_done import RestartLoop
from tests.support.processes import ended, start

CRASHING = '''
import os
from lightning.pytorch import Callback


class Crash(Callback):
    """Kills the process in its second rollout."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == 1 and trainer.ckpt_path is None:
            os.kill(os.getpid(), 9)
'''


@pytest.fixture(autouse=True)
def handlers() -> Iterator[None]:
    """Restore the handlers that the loop installs."""
    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture
def loop(tmp_path: Path) -> Callable[[str], RestartLoop]:
    """Return a function that gives a loop around a shell script with ``$ROOT`` that counts its ``runs``."""
    (tmp_path / "checkpoints").mkdir()
    prelude = f"ROOT={tmp_path}; echo >> $ROOT/runs; N=$(wc -l < $ROOT/runs); "

    def build(script: str) -> RestartLoop:
        return RestartLoop(["sh", "-c", prelude + script], tmp_path, tries=2, pause_s=0.0)

    return build


def runs(tmp_path: Path) -> int:
    return len((tmp_path / "runs").read_text().splitlines())


def test_it_goes_on_while_there_is_progress(loop: Callable[[str], RestartLoop], tmp_path: Path) -> None:
    """Every other of six runs makes a checkpoint before it is killed; the seventh is done."""
    script = f"[ $((N % 2)) = 0 ] && touch $ROOT/checkpoints/{checkpoint_name(0).replace('000000', '00000$N')}; "
    assert loop(script + "[ $N = 7 ] || kill -9 $$").run() == 0
    assert runs(tmp_path) == 7


@pytest.mark.parametrize(
    ("script", "status", "count"),
    [("exit 2", 2, 1), ("kill -INT $$", 130, 1), ("exit 7", 7, 2), ("kill -9 $$", 137, 2), ("kill -TERM $$", 143, 2)],
    ids=["bad input", "Ctrl-C", "no progress", "killed, no progress", "preempted, no progress"],
)
def test_it_stops(loop: Callable[[str], RestartLoop], tmp_path: Path, script: str, status: int, count: int) -> None:
    assert loop(script).run() == status
    assert runs(tmp_path) == count


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_is_handed_on(loop: Callable[[str], RestartLoop], tmp_path: Path, number: signal.Signals) -> None:
    def send() -> None:
        while not (tmp_path / "ready").exists():
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    threading.Thread(target=send, daemon=True).start()
    script = f"trap 'exit {128 + number}' {number.name.removeprefix('SIG')}; touch $ROOT/ready; sleep 9 & wait"
    assert loop(script).run() == 128 + number
    assert runs(tmp_path) == 1


@pytest.mark.slow
def test_a_run_that_crashes_gets_done(tiny_run: Callable[..., list[str]], tmp_path: Path) -> None:
    (tmp_path / "crashing.py").write_text(CRASHING)
    arguments = tiny_run(tmp_path / "run", "--trainer.callbacks+=crashing.Crash", "--data.num_rollouts=2")
    status, output = ended(start(["run-until-done", "--pause=0", *arguments], tmp_path))
    assert status == 0, output
    assert len(find_checkpoints(tmp_path / "run" / "checkpoints")) == 2
    assert output.count("run-until-done: the run ended with status 137; restarting it from rollout 1.") == 1
