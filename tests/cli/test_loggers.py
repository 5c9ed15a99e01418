"""Loggers by configuration alone: where they write, and what is said when their package is missing."""

import csv
from importlib.util import find_spec
from pathlib import Path

import pytest
from jsonargparse import Namespace

from lightning_pspo.cli import loggers
from lightning_pspo.cli.loggers import settle_loggers
from lightning_pspo.errors import InputError
from tests.support.processes import ended, start

SMALL = [
    *("--data.num_rollouts=2", "--data.prompts_per_rollout=2", "--model.group_size=2"),
    *("--model.sampling.max_new_tokens=8", "--data.val.held_out.size=8", "--trainer.num_sanity_val_steps=0"),
]


def entry(logger: str, **arguments: object) -> Namespace:
    return Namespace(class_path=f"lightning.pytorch.loggers.{logger}", init_args=Namespace(**arguments))


def test_relative_places_are_below_the_run(tmp_path: Path) -> None:
    several = [entry("CSVLogger", save_dir="logs"), entry("CSVLogger", save_dir="/elsewhere")]
    settle_loggers([*several, Namespace(class_path="x")], tmp_path)
    assert [logger.init_args.save_dir for logger in several] == [f"{tmp_path}/logs", "/elsewhere"]
    single = entry("Mine", save_dir=None, tracking_uri="sqlite:///logs/all.db")
    settle_loggers(single, tmp_path)
    assert (single.init_args.save_dir, single.init_args.tracking_uri) == (None, f"sqlite:///{tmp_path}/logs/all.db")
    remote = entry("Mine", tracking_uri="http://host:5000")
    settle_loggers(remote, tmp_path)
    assert remote.init_args.tracking_uri == "http://host:5000"
    for nothing in (None, True, False, []):
        settle_loggers(nothing, tmp_path)


def test_a_missing_package_is_named_with_its_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loggers, "_NEEDS", {"WandbLogger": ("wandb", ("no_such_package_of_ours",))})
    message = (
        r"`trainer.logger` WandbLogger needs the package no_such_package_of_ours, which is not installed: "
        r"pip install 'lightning-pspo\[wandb\]'\."
    )
    with pytest.raises(InputError, match=message):
        settle_loggers([entry("CSVLogger"), entry("WandbLogger", save_dir="logs")], tmp_path)


def run(tmp_path: Path, overlay: str) -> Path:
    """Train for two rollouts with an overlay, in a process without a network; return the run's directory."""
    words = [f"--config=logger/{overlay}", *SMALL, "--callbacks.CompletionTable.every_n_rollouts=1"]
    (tmp_path / "home").mkdir()
    command = ["fit", "--config=quickstart", *words, "--trainer.default_root_dir=run"]
    status, output = ended(start(command, tmp_path, HOME=str(tmp_path / "home")))
    assert status == 0, output[-3000:]
    assert {path.name for path in tmp_path.iterdir()} == {"home", "run"}
    return tmp_path / "run"


def logged(root: Path, name: str) -> list[float]:
    """Return what the CSV logger has of a scalar."""
    (path,) = root.glob("logs/csv/*/metrics.csv")
    with path.open() as file:
        return [float(row[name]) for row in csv.DictReader(file) if row.get(name)]


@pytest.mark.slow
@pytest.mark.skipif(find_spec("wandb") is None, reason="needs the extra wandb")
def test_weights_and_biases_without_a_network(tmp_path: Path) -> None:
    root = run(tmp_path, "wandb")
    (kept,) = root.glob("logs/wandb/offline-run-*/run-*.wandb")
    for name in (b"train/reward", b"val/held_out/accuracy", b"trust/ratio_p99"):
        assert name in kept.read_bytes()
    assert len([*kept.parent.glob("files/media/table/completions_*.json")]) == 2


@pytest.mark.slow
@pytest.mark.skipif(find_spec("mlflow") is None or find_spec("sqlalchemy") is None, reason="needs the extra mlflow")
def test_mlflow_in_a_data_base_of_the_run(tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    root = run(tmp_path, "mlflow")
    client = MlflowClient(f"sqlite:///{root}/logs/mlflow.db")
    experiment = client.get_experiment_by_name("lightning_pspo")
    (logged_run,) = client.search_runs([experiment.experiment_id])
    for name in ("train/reward", "completion/length_tokens", "val/held_out/accuracy"):
        history = sorted(client.get_metric_history(logged_run.info.run_id, name), key=lambda point: point.step)
        assert [point.value for point in history] == pytest.approx(logged(root, name))
        assert history
    assert logged_run.info.status == "FINISHED"
