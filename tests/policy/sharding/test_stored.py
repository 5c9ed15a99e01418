"""Sharded checkpoints on disk: recognised, read in one process, and never trusted."""

import io
import os
import pickle
import shutil
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch.distributed.checkpoint.filesystem import FileSystemReader
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.state_dict_saver import save

from lightning_pspo.checkpoints.export.reading import read_checkpoint
from lightning_pspo.checkpoints.integrity import seal
from lightning_pspo.cli.main import main
from lightning_pspo.errors import InputError
from lightning_pspo.policy.sharding import FSDP1, FSDP2, FolderIO, FSDP2Strategy, Sharding, Unsharded, sharding_of
from lightning_pspo.policy.sharding.stored import format_of, read_folder, stored_shapes
from tests.support.checkpoints import Attack
from tests.support.layouts import CPUFSDPStrategy
from tests.support.processes import ended, start

WEIGHT = torch.arange(6.0).view(2, 3)


def save_folder(path: Path, prefix: str = "state_dict", **entries: Any) -> Path:
    """Write a checkpoint as a sharded strategy does."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        save({prefix: {"weight": WEIGHT}} | entries, checkpoint_id=path, no_dist=True)
    torch.save({"epoch": 1}, path / "meta.pt")
    return path


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A sharded checkpoint with a setting of the optimiser, which is not a tensor."""
    return save_folder(tmp_path / "checkpoint", optimizer_0={"lr": 0.1, "betas": (0.9, 0.999)})


def poison_metadata(folder: Path, trace: Path) -> None:
    index = FileSystemReader(folder).read_metadata()
    (folder / ".metadata").write_bytes(pickle.dumps(replace(index, planner_data=Attack(trace))))


def poison_everything(folder: Path, trace: Path) -> None:
    (folder / ".metadata").write_bytes(pickle.dumps(Attack(trace)))


def change_a_class(folder: Path, trace: Path) -> None:
    """Set an attribute of the class ``Metadata``, with opcodes that no pickler writes."""
    state = pickle.dumps((None, {"state_dict_metadata": {}}), protocol=2)[2:-1]
    kind = pickle.dumps(Metadata, protocol=2)[:-1]
    (folder / ".metadata").write_bytes(kind + state + pickle.BUILD + pickle.STOP)


def lead_outside(folder: Path, trace: Path) -> None:
    index = FileSystemReader(folder).read_metadata()
    entries = {key: replace(entry, relative_path="../secret") for key, entry in index.storage_data.items()}
    (folder / ".metadata").write_bytes(pickle.dumps(replace(index, storage_data=entries)))


def cut_weights(folder: Path, trace: Path) -> None:
    for part in folder.glob("*.distcp"):
        os.truncate(part, part.stat().st_size // 2)


def poison_rest(folder: Path, trace: Path) -> None:
    torch.save({"epoch": Attack(trace)}, folder / "meta.pt")


def test_a_folder_is_read_in_one_process(folder: Path) -> None:
    rest, weights = read_folder(folder)
    assert rest == {"epoch": 1}
    assert torch.equal(weights["weight"], WEIGHT)
    assert weights.keys() == stored_shapes(folder).keys()
    assert stored_shapes(folder) == {"weight": (2, 3)}


@pytest.mark.parametrize(
    "attack", [poison_metadata, poison_everything, change_a_class, lead_outside, poison_rest, cut_weights]
)
def test_reading_runs_no_code(attack: Callable[[Path, Path], None], folder: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace"
    attack(folder, trace)
    seal(folder)  # whoever makes a folder can seal it
    for read in (read_folder, read_checkpoint, FolderIO().load_checkpoint):
        with pytest.raises(InputError) as caught:
            read(folder)
        assert str(folder) in str(caught.value)
        assert "\n" not in str(caught.value)
    assert not trace.exists()
    assert "state_dict_metadata" not in vars(Metadata)


@pytest.mark.parametrize("strategy", [SingleDeviceStrategy("cpu"), FSDP2Strategy(), CPUFSDPStrategy()])
def test_no_strategy_unpickles_a_file_of_a_stranger(strategy: Any, tmp_path: Path) -> None:
    """Lightning reads a file with the full unpickler under FSDP1."""
    path, trace = tmp_path / "file.ckpt", tmp_path / "trace"
    sharding_of(strategy)
    sharding_of(strategy)
    for zipped in (True, False):
        torch.save({"state_dict": {}, "extra": Attack(trace)}, path, _use_new_zipfile_serialization=zipped)
        with pytest.raises(InputError, match="cannot be loaded: it is damaged, or holds more than tensors") as caught:
            strategy.load_checkpoint(path)
        assert str(path) in str(caught.value)
    assert not trace.exists()


def test_what_a_strategy_loads_is_weights_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Also in code that asks for the opposite, as torch does for values of a sharded checkpoint; not afterwards."""
    bytes_ = io.BytesIO()
    torch.save(Attack(tmp_path / "trace"), bytes_)

    class Careless(SingleDeviceStrategy):
        def load_checkpoint(self, checkpoint_path: Any, weights_only: bool | None = None) -> dict[str, Any]:
            bytes_.seek(0)
            loaded: dict[str, Any] = torch.load(bytes_, weights_only=False)
            return loaded

    strategy = Careless("cpu")
    sharding_of(strategy)
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    with pytest.raises(InputError, match="holds more than tensors"):
        strategy.load_checkpoint(tmp_path / "missing.ckpt")
    assert not (tmp_path / "trace").exists()
    assert os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] == "1"
    assert "TORCH_FORCE_WEIGHTS_ONLY_LOAD" not in os.environ


@pytest.mark.slow
@pytest.mark.usefixtures("rank_variables")
def test_fit_runs_no_code_of_a_checkpoint(tiny_run: Callable[..., list[str]], tmp_path: Path) -> None:
    """Neither of its index, nor of a setting of the optimiser, which torch reads when all ranks have started."""
    run = tiny_run(tmp_path / "run", "--trainer.strategy=fsdp2")
    main(["fit", *run, "--trainer.limit_train_batches=1"])
    saved, trace = tmp_path / "run/checkpoints/rollout=000001.ckpt", tmp_path / "trace"
    processes = {}
    for poison in (poison_metadata, poison_optimizer):
        folder = Path(shutil.copytree(saved, tmp_path / f"{poison.__name__}.ckpt"))
        poison(folder, trace)
        seal(folder)
        command = ["fit", *run, f"--ckpt_path={folder}", f"--trainer.default_root_dir={tmp_path / folder.stem}"]
        processes[folder] = start(command, tmp_path)
    for folder, process in processes.items():
        status, errors = ended(process)
        assert status == 2, errors
        assert f"error: The checkpoint {folder} cannot be " in errors
    assert not trace.exists()


def poison_optimizer(folder: Path, trace: Path) -> None:
    """Replace a stored setting of the optimiser, in a file of its own."""
    index = FileSystemReader(folder).read_metadata()
    key = next(key for key in index.storage_data if key.fqn.endswith(".lr"))
    torch.save(Attack(trace), folder / "__0_9.distcp")
    size = (folder / "__0_9.distcp").stat().st_size
    entry = replace(index.storage_data[key], relative_path="__0_9.distcp", offset=0, length=size)
    (folder / ".metadata").write_bytes(pickle.dumps(replace(index, storage_data=index.storage_data | {key: entry})))


@pytest.mark.parametrize(
    ("sharding", "reads"),
    [
        (Unsharded(strategy=SingleDeviceStrategy("cpu")), {"file"}),
        (FSDP2(strategy=FSDP2Strategy()), {"file", "fsdp2"}),
        (FSDP1(strategy=CPUFSDPStrategy()), {"file", "fsdp1"}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_which_checkpoints_a_strategy_reads(sharding: Sharding, reads: set[str], tmp_path: Path) -> None:
    """Recognised by the names of files and the prefixes of weights that Lightning writes."""
    paths = {name: tmp_path / name for name in ("file", "fsdp2", "fsdp1", "other")}
    torch.save({"state_dict": {"weight": WEIGHT}}, paths["file"])
    save_folder(paths["fsdp2"])
    save_folder(paths["fsdp1"], prefix="model")
    paths["other"].mkdir()
    for name, path in paths.items():
        if name in reads:
            sharding.check_checkpoint(path, adapters=False)
            assert stored_shapes(path) == {"weight": (2, 3)}
        else:
            with pytest.raises(InputError, match="`ckpt_path` must be "):
                sharding.check_checkpoint(path, adapters=False)
    assert format_of(paths["file"]).value == "one file"
    if isinstance(sharding, FSDP1):
        with pytest.raises(InputError, match="must be a folder of FSDP1 under FSDPStrategy with LoRA"):
            sharding.check_checkpoint(paths["file"], adapters=True)
