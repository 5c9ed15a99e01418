"""Lightning's own callbacks beside ours, in the real command: they work, or are refused in one line with the mend."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import EarlyStopping
from lightning_pspo.callbacks.combinations import check_callbacks, check_monitor

from lightning_pspo.checkpoints.store import find_checkpoints, rollout_of
from lightning_pspo.cli.main import main
from lightning_pspo.errors import InputError
from tests.support.checkpoints import same_weights

Command = Callable[..., list[str]]


@pytest.fixture
def command(tiny_run: Command, problem_file: Path) -> Command:
    """Return a function that gives the arguments of three rollouts, each validated."""
    settings = ["--data.val.few=JSONL", f"--data.val.few.path={problem_file}", "--data.val.few.limit=2"]
    settings += ["--data.overlap=warn", "--trainer.val_check_interval=1"]
    return lambda root, *more: ["fit", *tiny_run(root, *settings, *more)]


def test_model_checkpoint_saves_after_every_validation(command: Command, tmp_path: Path) -> None:
    """Its files can be resumed from, and ours are what they would be without it."""
    root, folder = tmp_path / "run", tmp_path / "theirs"
    more = ["--trainer.callbacks+=ModelCheckpoint", f"--trainer.callbacks.dirpath={folder}"]
    more += ["--trainer.callbacks.save_top_k=-1", "--trainer.callbacks.monitor=val/few/accuracy"]
    main(command(root, *more))
    assert [rollout_of(path) for path in find_checkpoints(root / "checkpoints")] == [1, 2, 3]
    saved = sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime)
    assert [re.search(r"step=(\d)", path.name)[1] for path in saved] == ["1", "2", "3"]  # type: ignore[index]
    main(command(tmp_path / "again", f"--ckpt_path={saved[0]}"))
    assert same_weights(tmp_path / "again", root, 3)


def test_a_users_callback_may_name_its_settings_as_it_likes_and_save_between_rollouts(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Within a rollout the weights and the prompts are of different rollouts: such a file is not resumed from."""
    (tmp_path / "own_saves.py").write_text(
        "from lightning.pytorch import Callback\n"
        "class Saves(Callback):\n"
        "    def __init__(self, kind: str, setting: str):\n"
        "        self.within, self.after = kind, setting\n"
        "    def on_before_optimizer_step(self, trainer, *_):\n"
        "        if trainer.global_step == 1:\n"
        "            trainer.save_checkpoint(self.within)\n"
        "    def on_train_batch_end(self, trainer, *_):\n"
        "        if trainer.global_step == 2:\n"
        "            trainer.save_checkpoint(self.after)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    within, after = tmp_path / "within.ckpt", tmp_path / "after.ckpt"
    more = ["--trainer.callbacks+=own_saves.Saves", f"--trainer.callbacks.kind={within}"]
    main(command(tmp_path / "run", *more, f"--trainer.callbacks.setting={after}"))
    main(command(tmp_path / "again", f"--ckpt_path={after}"))
    assert same_weights(tmp_path / "again", tmp_path / "run", 3)
    with pytest.raises(SystemExit) as end:
        main(command(tmp_path / "refused", f"--ckpt_path={within}"))
    assert end.value.code == 2


def test_early_stopping_stops(command: Command, tmp_path: Path) -> None:
    """A threshold that every accuracy passes ends the run after the first rollout, which is saved as the last."""
    more = ["--trainer.callbacks.every_n_rollouts=5", "--trainer.callbacks+=EarlyStopping"]
    more += ["--trainer.callbacks.monitor=val/few/accuracy"]
    more += ["--trainer.callbacks.mode=max", "--trainer.callbacks.stopping_threshold=-1"]
    main(command(tmp_path / "run", *more))
    assert [rollout_of(path) for path in find_checkpoints(tmp_path / "run/checkpoints")] == [1]


def test_a_monitor_of_training_is_known_to_a_resumed_run(command: Command, tmp_path: Path) -> None:
    """Also to the validation behind the checkpoint, which it makes up for before its first rollout."""
    more = ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=train/reward"]
    main(command(tmp_path / "run", *more, "--data.num_rollouts=1"))
    main(command(tmp_path / "run", *more, "--data.num_rollouts=2", "--ckpt_path=last"))
    assert [rollout_of(path) for path in find_checkpoints(tmp_path / "run/checkpoints")] == [1, 2]


@pytest.mark.parametrize(
    ("callbacks", "message"),
    [
        (["EMAWeightAveraging"], r"must not hold EMAWeightAveraging: .*RolloutCheckpoint\(monitor="),
        (["StochasticWeightAveraging", "swa_lrs=0.1"], "must not hold Stochastic.*: .*`model.lr_schedule`"),
        (["ModelPruning", "pruning_fn=l1_unstructured"], "must not hold ModelPruning: .*remove it"),
        (["BackboneFinetuning"], "must not hold BackboneFinetuning: .*`model.policy.lora`"),
        (["SpikeDetection"], "must not hold SpikeDetection: .*`model.max_grad_norm`"),
        (["BaseFinetuning"], "must not hold BaseFinetuning: .*`model.policy.lora`"),
        (["GradientAccumulationScheduler", "scheduling={0: 2}"], "must not hold .*`model.minibatches_per_rollout`"),
        (["LearningRateFinder"], "must not hold LearningRateFinder: .*`model.optimizer.lr`"),
        (["RolloutCheckpoint"], "must hold RolloutCheckpoint once, got two: keep one entry"),
        (["ModelCheckpoint", "+ModelCheckpoint"], "must hold ModelCheckpoint once, got two: keep one entry"),
        (["CompletionWriter", "+CompletionWriter"], "must hold CompletionWriter once, got two with the same `path`"),
        (["EarlyStopping", "monitor=val/few/acuracy"], r"`monitor` of EarlyStopping .*mean val/few/accuracy\?"),
        (
            ["EarlyStopping", "monitor=train/rewrd"],
            r"`monitor` .*got train/rewrd; did you mean train/reward\?",
        ),
        (["ModelCheckpoint", "monitor=val/fwe/accuracy"], r"`monitor` of ModelCheckpoint .*data\.val has few"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_what_cannot_work_is_refused(
    command: Command, tmp_path: Path, refusal: Callable[..., str], callbacks: list[str], message: str
) -> None:
    more = [
        f"--trainer.callbacks.{entry}" if "=" in entry else f"--trainer.callbacks+={entry.removeprefix('+')}"
        for entry in callbacks
    ]
    assert re.search(message, refusal(main, command(tmp_path / "run", *more)))
    assert not (tmp_path / "run").exists()


def test_the_name_of_a_source_may_hold_a_slash() -> None:
    sources = {"openai": None, "openai/gsm8k": None}
    check_monitor(EarlyStopping("val/openai/gsm8k/accuracy"), None, sources)
    with pytest.raises(InputError, match=r"data\.val has openai, openai/gsm8k\."):
        check_monitor(EarlyStopping("val/other/gsm8k/accuracy"), None, sources)


@pytest.mark.parametrize(
    ("monitor", "message"),
    [
        (
            "train/abc",
            "`monitor` of EarlyStopping must be a metric that is logged, got train/abc; .*there are .*train/loss",
        ),
        ("score", "`monitor` of EarlyStopping must be a metric that is logged, got score; there are "),
    ],
)
def test_a_monitor_that_is_not_logged_is_refused_when_that_is_known(
    command: Command, tmp_path: Path, refusal: Callable[..., str], monitor: str, message: str
) -> None:
    """A metric of training after the first rollout, although the first validation would come later."""
    more = ["--trainer.callbacks+=EarlyStopping", f"--trainer.callbacks.monitor={monitor}"]
    more += ["--trainer.val_check_interval=2"]
    assert re.search(message, refusal(main, command(tmp_path / "run", *more)))
    newest = find_checkpoints(tmp_path / "run/checkpoints")[-1]
    assert rollout_of(newest) == (1 if monitor.startswith("train/") else 2)


def test_two_of_a_kind_with_files_of_their_own(command: Command, tmp_path: Path) -> None:
    root = tmp_path / "run"
    main(command(root, "--data.num_rollouts=1"))
    writers = ["--trainer.callbacks=[]"]
    for name in ("a", "b"):
        writers += ["--trainer.callbacks+=CompletionWriter", f"--trainer.callbacks.path={name}.jsonl"]
        writers += ["--trainer.callbacks.stages=[validate]"]
    main(["validate", *command(root)[1:], *writers])
    assert (root / "a.jsonl").read_bytes() == (root / "b.jsonl").read_bytes() != b""


def test_callbacks_of_different_kinds_need_state_keys_of_their_own() -> None:
    class One(Callback):
        state_key = "mine"

        def state_dict(self) -> dict[str, Any]:
            return {}

    class Two(One):
        pass

    class Stateless(Callback):
        state_key = "mine"

    check_callbacks([One(), Stateless()])
    with pytest.raises(InputError, match=r"`state_key` must differ .* got 'mine' of One and of Two: give one"):
        check_callbacks([One(), Two()])
