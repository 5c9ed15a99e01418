"""What RolloutCheckpoint saves, keeps and refuses, and that a run goes on from any of its checkpoints."""

from __future__ import annotations

import contextlib
import csv
import json
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from lightning_pspo.callbacks import RolloutCheckpoint

from lightning_pspo.checkpoints.integrity import check_whole
from lightning_pspo.checkpoints.save import is_saving
from lightning_pspo.checkpoints.store import find_checkpoints, read_scores, rollout_of
from lightning_pspo.cli.main import main
from lightning_pspo.errors import InputError
from lightning_pspo.files import remove
from tests.support.checkpoints import flip, same_weights
from tests.support.hand_made import HandMade, fit

TinyRun = Callable[..., list[str]]
SCRIPTED = '''
from pathlib import Path
from lightning.pytorch import Callback


class Scores(Callback):
    """Logs what the test wants, and writes down of which rollout."""

    def __init__(self, scores: list) -> None:
        self.scores = scores

    def on_validation_epoch_end(self, trainer, pl_module):
        rollout = trainer.fit_loop.epoch_loop.total_batch_idx + 1
        pl_module.log("score", float(self.scores[rollout - 1]))
        with (Path(trainer.default_root_dir) / "validated.txt").open("a") as file:
            file.write(f"{rollout} ")
'''


def loops(root: Path) -> tuple[Any, int]:
    """Return the state of the fit loop in the last checkpoint, and the steps of the optimiser."""
    state = torch.load(root / "checkpoints" / "rollout=000006.ckpt", weights_only=True)
    return state["loops"]["fit_loop"], state["global_step"]


def rollouts(root: Path) -> list[int]:
    return [rollout_of(path) for path in find_checkpoints(root / "checkpoints")]


@pytest.fixture
def command(tiny_run: TinyRun, problem_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TinyRun:
    """Return a function that gives the arguments of six rollouts that are validated after every other one.

    ``score`` is logged in each validation: the value of its rollout.
    """
    (tmp_path / "scripted_scores.py").write_text(SCRIPTED)
    monkeypatch.syspath_prepend(tmp_path)

    settings = ["--data.val.few=JSONL", f"--data.val.few.path={problem_file}", "--data.val.few.limit=3"]
    settings += ["--data.eval_batch_size=2", "--data.overlap=warn", "--trainer.val_check_interval=1"]
    settings += ["--data.num_rollouts=6", "--model.optimizer.lr=0.01", "--model.updates_per_rollout=2"]

    def build(root: Path, *more: str, scores: str = "[0, 1, 0, 3, 0, 2]") -> list[str]:
        scripted = ["--trainer.callbacks+=scripted_scores.Scores", f"--trainer.callbacks.scores={scores}"]
        return ["fit", *tiny_run(root, *settings, *more, *scripted)]

    return build


def flags(settings: str) -> list[str]:
    """Return the flags of some settings of RolloutCheckpoint."""
    return [f"--trainer.callbacks.{setting}" for setting in settings.split()]


def validated(root: Path) -> str:
    return (root / "validated.txt").read_text().strip()


@pytest.mark.parametrize(
    ("settings", "scores", "remaining", "best"),
    [
        ("keep_last=2", "[0, 1, 0, 3, 0, 2]", [5, 6], {}),
        ("keep_last=1 monitor=score background=true", "[0, 1, 0, 3, 0, 2]", [4, 6], {4: 3.0}),
        ("keep_last=1 monitor=score keep_best=2 mode=min", "[5, 1, .nan, 1, 0.5, 1]", [2, 5, 6], {5: 0.5, 2: 1.0}),
        ("every_n_rollouts=5 keep_last=1 monitor=score keep_best=2", "[0, 1, 7, 3, 0, 2]", [3, 4, 6], {3: 7, 4: 3}),
        ("every_n_rollouts=4 monitor=score", "[.nan, .nan, .nan, .nan, .nan, .nan]", [4, 6], {}),
        ("every_n_rollouts=null every_n_minutes=1e-9", "[0, 0, 0, 0, 0, 0]", [1, 2, 3, 4, 5, 6], {}),
        ("every_n_rollouts=null every_n_minutes=60", "[0, 0, 0, 0, 0, 0]", [6], {}),
    ],
    ids=["newest", "newest and best", "two least", "best between", "nan", "every moment", "every hour"],
)
def test_what_is_kept(
    command: TinyRun, tmp_path: Path, settings: str, scores: str, remaining: list[int], best: dict[int, float]
) -> None:
    root = tmp_path / "run"
    main(command(root, *flags(settings), scores=scores))
    assert rollouts(root) == remaining
    assert read_scores(root / "checkpoints") == best
    for path in find_checkpoints(root / "checkpoints"):
        check_whole(path)
    assert validated(root) == "1 2 3 4 5 6"


def test_every_checkpoint_resumes_to_the_same_bits(command: TinyRun, tmp_path: Path) -> None:
    """Saved after a rollout with its validation still to come, after a validation, and before one that is not due."""
    more = [*flags("every_n_rollouts=5 monitor=score keep_best=2 background=true"), "--trainer.val_check_interval=2"]
    undisturbed = tmp_path / "undisturbed"
    main(command(undisturbed, *more, *flags("keep_last=9")))
    assert rollouts(undisturbed) == [2, 4, 5, 6]  # 2 and 4 were saved after their validation
    assert validated(undisturbed) == "2 4 6"
    for rollout, again in ((2, "4 6"), (4, "6"), (5, "6"), (6, "6")):
        root = tmp_path / f"from{rollout}"
        main(command(root, *more, f"--ckpt_path={undisturbed}/checkpoints/rollout={rollout:06d}.ckpt"))
        assert validated(root) == again
        if rollout < 6:
            assert same_weights(root, undisturbed, 6)
            assert loops(root) == loops(undisturbed)


def test_a_validation_that_an_interruption_cost_is_made_up_for(command: TinyRun, tmp_path: Path) -> None:
    """The checkpoint of rollout 2 was saved before the validation of rollout 2."""
    root = tmp_path / "run"
    main(command(root, "--trainer.limit_train_batches=2"))
    (root / "validated.txt").unlink()
    main(command(root, "--ckpt_path=last", *flags("monitor=score keep_last=1")))
    assert validated(root) == "2 3 4 5 6"
    assert rollouts(root) == [4, 6]
    undisturbed = tmp_path / "undisturbed"
    main(command(undisturbed))
    assert loops(root) == loops(undisturbed)


def test_a_crash_before_the_score_is_written_down(command: TinyRun, tmp_path: Path) -> None:
    """The checkpoint of rollout 4 was saved as the best, after its validation; ``best.json`` was not written."""
    root = tmp_path / "run"
    more = [*flags("every_n_rollouts=5 monitor=score keep_last=1"), "--trainer.val_check_interval=2"]
    main(command(root, *more))
    folder = root / "checkpoints"
    assert rollouts(root) == [4, 6]
    remove(folder / "rollout=000006.ckpt")
    (folder / "best.json").write_text('{"monitor": "score", "mode": "max", "scores": {"2": 1.0}}')
    main(command(root, *more, "--ckpt_path=last"))
    assert validated(root) == "2 4 6 6"
    assert rollouts(root) == [4, 6]
    assert read_scores(folder) == {4: 3.0}


def test_a_last_measurement_that_is_made_up_for_forgets_no_best(command: TinyRun, tmp_path: Path) -> None:
    """RunSummary validates before other callbacks know that training has started."""
    root = tmp_path / "run"
    root.mkdir()
    more = [*flags("monitor=score keep_last=1"), "--trainer.num_sanity_val_steps=-1"]
    more += ["--trainer.callbacks+=RunSummary"]
    for resumed in ((), ("--ckpt_path=last",)):  # the checkpoint of rollout 6 is of before its validation
        main(command(root, *more, *resumed))
        assert rollouts(root) == [4, 6]
        assert read_scores(root / "checkpoints") == {4: 3.0}


def test_the_best_one_by_name(command: TinyRun, tmp_path: Path, refusal: Callable[..., str]) -> None:
    root = tmp_path / "run"
    main(command(root, "--trainer.callbacks.monitor=score"))
    main(["validate", *command(root, "--ckpt_path=best")[1:], "--trainer.callbacks=null"][:-3])
    assert "must hold no later rollout than the 4" in refusal(main, command(root, "--ckpt_path=best"))
    (root / "checkpoints" / "best.json").unlink()
    line = refusal(main, ["validate", *command(root, "--ckpt_path=best")[1:]])
    assert "`ckpt_path` best needs the best checkpoint" in line


class Gate:
    """A value that is written only once ``opened`` is set, and then may fail."""

    def __init__(self, error: Exception | None = None) -> None:
        self.opened = threading.Event()
        self.error = error

    def __deepcopy__(self, memo: Any) -> Gate:
        return self

    def __reduce__(self) -> Any:
        self.opened.wait()
        if self.error is not None:
            raise self.error
        return int, ()


class Gated(Callback):
    """Puts a gate into the checkpoint of rollout 2, and opens it when rollout 3 begins."""

    def __init__(self, folder: Path, gate: Gate) -> None:
        self.folder, self.gate = folder, gate
        self.has_gate = False
        self.names: list[str] = []  # in the folder while the gate is shut

    def state_dict(self) -> dict[str, Any]:
        return {"gate": self.gate if self.has_gate else 0}

    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        self.has_gate = batch_idx == 1
        if batch_idx == 2:
            assert is_saving(trainer)
            self.names = [path.name for path in find_checkpoints(self.folder)]
            self.gate.opened.set()


@pytest.mark.parametrize("error", [None, OSError("the cable was pulled")])
def test_a_checkpoint_is_written_while_the_run_goes_on(tmp_path: Path, error: Exception | None) -> None:
    """The earlier one stays until it is complete; an error ends the run after the next rollout."""
    folder = tmp_path / "checkpoints"
    gated = Gated(folder, Gate(error))
    with contextlib.nullcontext() if error is None else pytest.raises(OSError, match="the cable was pulled"):
        fit(tmp_path, [gated, RolloutCheckpoint(every_n_rollouts=1, keep_last=1, background=True)])
    assert gated.names == ["rollout=000001.ckpt"]
    kept = 1 if error else 4
    assert [path.name for path in folder.iterdir()] == [f"rollout={kept:06d}.ckpt"]
    check_whole(folder / f"rollout={kept:06d}.ckpt")


class Crash(Checkpoint):
    """Ends the run right after its second checkpoint; callbacks of this kind come last."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        if trainer.global_step == 2:
            raise RuntimeError("killed")


class Late(Checkpoint):
    """Logs after the checkpoint."""

    def on_train_batch_end(self, trainer: Trainer, pl_module: LightningModule, outputs: Any, *_: Any) -> None:
        pl_module.log("late", 1.0)


def steps_logged(root: Path, name: str = "train/loss") -> list[str]:
    """Return the steps with a value of this name in the CSV file of a run."""
    (file,) = root.rglob("metrics.csv")
    with file.open() as lines:
        return [row["step"] for row in csv.DictReader(lines) if row[name]]


def test_a_rollout_in_a_checkpoint_has_been_logged_once(tmp_path: Path) -> None:
    """The resumed run begins after it."""
    with pytest.raises(RuntimeError, match="killed"):
        fit(tmp_path / "killed", [RolloutCheckpoint(every_n_rollouts=1), Crash()])
    assert rollouts(tmp_path / "killed") == [1, 2]
    assert steps_logged(tmp_path / "killed") == ["1", "2"]
    fit(tmp_path / "run", [RolloutCheckpoint(every_n_rollouts=2), Late()])
    assert steps_logged(tmp_path / "run") == ["1", "2", "3", "4"]
    assert steps_logged(tmp_path / "run", "late") == ["1", "2", "3", "4"]


def test_a_metric_that_is_not_logged(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"must be a metric that is logged, got scores; there are .*train/loss"):
        fit(tmp_path, [RolloutCheckpoint(monitor="scores")])


def test_a_training_metric_without_validation(command: TinyRun, tmp_path: Path) -> None:
    root = tmp_path / "run"
    more = ["--data.val=null", *flags("monitor=train/grad_norm keep_last=1")]
    main([argument for argument in command(root, *more) if "data.val." not in argument and "val_check" not in argument])
    assert rollouts(root)[-1] == 6
    assert json.loads((root / "checkpoints" / "best.json").read_text())["monitor"] == "train/grad_norm"
    assert set(read_scores(root / "checkpoints")) == set(rollouts(root)[:1])


def test_a_folder_of_another_run_is_refused_before_the_first_measurement(tmp_path):
    fit(tmp_path, [RolloutCheckpoint(every_n_rollouts=2)])
    module = HandMade()
    with pytest.raises(InputError, match=r"no later rollout than the 0 .*rollout=000004\.ckpt"):
        fit(tmp_path, [RolloutCheckpoint()], module=module)
    assert module.results == {}
    with pytest.raises(InputError, match="no later rollout than the 2"):
        fit(tmp_path, [RolloutCheckpoint()], ckpt_path=tmp_path / "checkpoints/rollout=000002.ckpt")


def test_a_damaged_checkpoint_is_refused_then_set_aside(
    command: TinyRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "run"
    main(command(root, "--trainer.limit_train_batches=4"))
    newest = root / "checkpoints" / "rollout=000004.ckpt"
    flip(newest)
    content = newest.read_bytes()
    with pytest.raises(SystemExit) as stop:
        main(command(root, "--ckpt_path", "last"))
    assert stop.value.code == 2
    message = capsys.readouterr().err
    assert re.search(rf"whole checkpoint, got {newest}: its content does not match its checksum", message)
    offered = root / "checkpoints" / "rollout=000003.ckpt"
    assert message.rstrip().endswith(f"--ckpt_path {offered}")
    assert "python -m lightning_pspo fit --trainer.default_root_dir" in message
    assert newest.read_bytes() == content
    aside = newest.with_name("rollout=000004.ckpt.damaged")
    aside.mkdir()  # as a run with a sharded strategy leaves it
    (aside / "meta.pt").write_text("earlier")
    main(command(root, "--ckpt_path", str(offered)))
    assert rollouts(root) == [1, 2, 3, 4, 5, 6]
    assert aside.read_bytes() == content
    longer = ["--data.num_rollouts=7", *flags("keep_last=2")]
    main(command(root, "--ckpt_path=last", *longer, scores="[0, 0, 0, 0, 0, 0, 0]"))
    assert rollouts(root) == [6, 7]
    assert not aside.exists(), "newer checkpoints are there"
