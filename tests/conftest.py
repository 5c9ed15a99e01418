"""What tests share: tiny model folders as the hub lays them out, made here, and small problem files."""

import gc
import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import hypothesis
import pytest

if TYPE_CHECKING:
    from transformers import PreTrainedModel

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # no test may wait for a network
os.environ["OMP_NUM_THREADS"] = "1"  # else Lightning's strategies take all cores, and this process keeps them
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # a suite in the background: its processes would inherit that
    signal.signal(signal.SIGINT, signal.default_int_handler)
# A busy machine is no failure, and CI tries the same examples every time.
hypothesis.settings.register_profile(
    "default",
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
    derandomize="CI" in os.environ,
)
hypothesis.settings.load_profile("default")


def pytest_collectstart() -> None:
    """Import what takes seconds, but not in the process that only hands tests to workers, which wait for it."""
    if "lightning" in sys.modules:
        return
    import lightning.pytorch  # noqa: F401 - its log handler keeps the stderr that it finds, which no test may replace
    import torch

    torch.set_num_threads(1)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run files with slow tests first, so that parallel workers end together; skip tests of a missing GPU."""
    import torch

    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))
    slow = {item.path for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: item.path not in slow)


def pytest_collection_finish() -> None:
    """Let no collection of garbage search the libraries and thousands of tests again and again."""
    gc.freeze()


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Return a function that writes a model folder: ``model_folder(seed=0, chat_template=None, **config)``."""
    from transformers import GenerationConfig

    from tests.support.models import make_model, make_tokenizer

    def write(
        seed: int = 0,
        chat_template: str | None = None,
        generation: dict[str, Any] | None = None,
        model: "PreTrainedModel | None" = None,
        **settings: Any,
    ) -> Path:
        folder = tmp_path_factory.mktemp("model")
        model = make_model(seed, **settings) if model is None else model
        if generation is not None:
            model.generation_config = GenerationConfig(**generation)
        model.save_pretrained(folder)
        make_tokenizer(chat_template).save_pretrained(folder)
        return folder

    return write


@pytest.fixture(scope="session")
def tiny_model(model_folder: Callable[..., Path]) -> Path:
    """A model folder with default settings and no chat template."""
    return model_folder()


@pytest.fixture(scope="session")
def problem_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A JSONL file of 20 problems of varied length."""
    path = tmp_path_factory.mktemp("data") / "problems.jsonl"
    rows = [{"question": f"What is {i} + {i * i}?" + " Think." * (i % 3), "answer": str(i + i * i)} for i in range(20)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


@pytest.fixture
def tiny_run(tiny_model: Path, problem_file: Path) -> Callable[..., list[str]]:
    """Return a function that gives the command line of a tiny run: ``tiny_run(root, *more)``.

    Three rollouts of eight short completions; vowels are rewarded, which a random model meets now and then.
    """

    def arguments(root: Path, *more: str, model: Path = tiny_model, train: Path = problem_file) -> list[str]:
        settings: dict[str, Any] = {
            "trainer.default_root_dir": root,
            "trainer.accelerator": "cpu",
            "trainer.devices": 1,
            "trainer.logger": "false",
            "trainer.enable_progress_bar": "false",
            "trainer.enable_model_summary": "false",
            "trainer.callbacks+": "RolloutCheckpoint",
            "trainer.callbacks.every_n_rollouts": 1,
            "trainer.callbacks.keep_last": 10,
            "model.policy.model_name_or_path": model,
            "model.reward": "FormatMatch",
            "model.reward.pattern": "[aeiou]+|[AEIOU]+",
            "model.reward.last_line": "false",
            "model.group_size": 4,
            "model.sampling.max_new_tokens": 8,
            "data.train": "JSONL",
            "data.train.path": train,
            "data.prompts_per_rollout": 2,
            "data.num_rollouts": 3,
        }
        return [f"--{name}={value}" for name, value in settings.items()] + list(more)

    return arguments


@pytest.fixture
def refusal(capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Return a function that runs a command which must end with one line and status 2, or another.

    ``refusal(main, arguments, status=2)``.
    """

    def run(main: Callable[[list[str]], object], arguments: list[str], status: int = 2) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main(arguments)
        errors = capsys.readouterr().err
        assert stop.value.code == status, errors
        assert "Traceback" not in errors
        (line,) = (line for line in errors.splitlines() if line.startswith("error: "))
        return line

    return run


@pytest.fixture
def rank_variables(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """For a run with a strategy of several ranks in this process: undo what it leaves behind."""
    for variable in ("MASTER_ADDR", "MASTER_PORT", "NODE_RANK", "LOCAL_RANK", "WORLD_SIZE"):
        monkeypatch.setenv(variable, "0")  # so that it is restored
        monkeypatch.delenv(variable)
    yield
    from torch import distributed

    if distributed.is_initialized():
        distributed.destroy_process_group()
