"""The command line, run in this process: every subcommand, every way to say a setting, and what a run leaves behind."""

import csv
import json
import logging
import os
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib.font_manager  # noqa: F401 - keeps its list of fonts in the home folder
import pytest
import torch
import yaml
from jsonargparse import _typehints
from transformers import AutoModelForCausalLM, AutoTokenizer

from lightning_pspo import progress
from lightning_pspo.cli.main import main, resolve
from lightning_pspo.cli.short_names import torch_first
from lightning_pspo.cli.suggestions.classes import find_class
from lightning_pspo.grading import grade
from tests.support.checkpoints import same_weights, saved_weights

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.yaml"
CHAT_TEMPLATE = (
    "{% for m in messages %}[{{ m['role'] }}] {{ m['content'] }} {% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)
TinyRun = Callable[..., list[str]]


def source(path: Path, **settings: Any) -> str:
    """Return a mapping of names to sources as JSON."""
    return json.dumps({"held_out": {"class_path": "JSONL", "init_args": {"path": str(path), **settings}}})


def printed_config(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    """Return what ``--print_config`` prints."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as stop:
        main(["fit", *arguments, "--print_config"])
    assert stop.value.code == 0
    config: dict[str, Any] = yaml.safe_load(capsys.readouterr().out)
    return config


def contents(folder: Path) -> dict[str, bytes]:
    """Return every file below ``folder``."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def metrics(root: Path) -> dict[str, str]:
    """Return the last value of every column of the run's newest CSV log."""
    newest = max((root / "logs").rglob("metrics.csv"), key=lambda path: int(path.parent.name.partition("_")[2]))
    last: dict[str, str] = {}
    with newest.open() as file:
        for row in csv.DictReader(file):
            last |= {name: value for name, value in row.items() if value}
    return last


def test_from_fit_to_predictions(
    tmp_path: Path, tiny_model: Path, problem_file: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    root, elsewhere = tmp_path / "run", tmp_path / "elsewhere"
    for name, variable in (("cwd", ""), ("home", "HOME"), ("tmp", "TMPDIR")):
        (elsewhere / name).mkdir(parents=True)
        if variable:
            monkeypatch.setenv(variable, str(elsewhere / name))
    monkeypatch.setattr(tempfile, "tempdir", None)
    monkeypatch.chdir(elsewhere / "cwd")
    settings = [
        f"--config={QUICKSTART}",
        f"--trainer.default_root_dir={root}",
        f"--model.policy.model_name_or_path={tiny_model}",
        "--model.reward=FormatMatch",
        "--model.reward.pattern=a|e|i|o|u",
        "--model.sampling.max_new_tokens=6",
        "--model.group_size=2",
        "--data.train=JSONL",
        f"--data.train.path={problem_file}",
        f"--data.val={source(problem_file, limit=5)}",
        f"--data.test={source(problem_file, limit=7)}",
        "--data.overlap=warn",
        "--data.prompts_per_rollout=4",
        "--data.num_rollouts=2",
    ]
    main(["fit", *settings])
    assert {"config.yaml", "summary.json", "curves.png"} <= set(contents(root))
    assert [path.name for path in (root / "checkpoints").iterdir()] == ["rollout=000002.ckpt"]
    summary = json.loads((root / "summary.json").read_text())
    assert (summary["rollouts"], summary["problems"], summary["source"]) == (2, 5, "held_out")

    main(["validate", *settings, "--ckpt_path=last"])
    validated = metrics(root)
    main(["test", *settings, "--ckpt_path=last"])
    tested = metrics(root)
    capsys.readouterr()
    main(["predict", *settings, "--ckpt_path=last"])
    rows = [json.loads(line) for line in (root / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    problems = [json.loads(line) for line in problem_file.read_text().splitlines()[:5]]
    assert [(row["question"], row["temperature"]) for row in rows] == [
        (problem["question"], temperature) for problem in problems for temperature in (0.0, 1.0)
    ]
    for row in rows:
        cut = row["truncated"]
        verdict = grade(row["completion"], row["answer"], question=row["question"], truncated=cut)
        assert (row["source"], row["sample"]) == ("held_out", 0)
        assert (row["verdict"], row["extracted"], row["rule"]) == (
            verdict.verdict.value,
            verdict.extracted,
            verdict.rule,
        )
    greedy = [row for row in rows if row["temperature"] == 0.0]
    assert [row["completion"] for row in greedy] == greedy_completions(root, tiny_model, greedy)
    correct = sum(row["verdict"] == "correct" for row in greedy)
    assert float(validated["val/held_out/accuracy"]) == pytest.approx(correct / 5)
    assert float(validated["val/held_out/length_tokens"]) == pytest.approx(
        sum(row["length_tokens"] for row in greedy) / 5
    )
    assert "test/held_out/accuracy" in tested
    assert contents(elsewhere) == {}


def greedy_completions(root: Path, folder: Path, rows: list[dict[str, Any]]) -> list[str]:
    """Return what transformers itself generates with the weights of the run's checkpoint, one prompt at a time."""
    model = AutoModelForCausalLM.from_pretrained(folder)
    weights = {name.removeprefix("policy.model."): tensor for name, tensor in saved_weights(root, 2).items()}
    model.load_state_dict(weights)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = []
    for row in rows:
        ids = tokenizer(f"Question: {row['question']}\nAnswer:", return_tensors="pt", return_token_type_ids=False)
        out = model.generate(**ids, max_new_tokens=6, do_sample=False)
        texts.append(tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True))
    return texts


def test_printed_and_kept_settings_give_the_same_run(
    tmp_path: Path, tiny_run: TinyRun, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also with a root directory relative to where the command runs, and loggers below it."""
    monkeypatch.chdir(tmp_path)
    logger = ["--trainer.logger=CSVLogger", "--trainer.logger.save_dir=logs", "--model.lr_schedule=Linear"]
    arguments = tiny_run(Path("first"), *logger, "--model.optimizer.lr=0.01", "--seed_everything=5")
    main(["fit", *arguments])
    (tmp_path / "printed.yaml").write_text(yaml.safe_dump(printed_config(capsys, *arguments)))
    main(["fit", "--config=printed.yaml", "--trainer.default_root_dir=second"])
    main(["fit", "--config=first/config.yaml", "--trainer.default_root_dir=third"])
    assert same_weights(tmp_path / "first", tmp_path / "second", 3)
    assert same_weights(tmp_path / "first", tmp_path / "third", 3)
    files = {root: sorted(contents(tmp_path / root)) for root in ("first", "second", "third")}
    assert files["first"] == files["second"] == files["third"]
    assert any(name.startswith("logs/") for name in files["first"])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first", "printed.yaml", "second", "third"]


def test_the_seed_decides(tmp_path: Path, tiny_run: TinyRun) -> None:
    settings = ["--model.optimizer.lr=0.01", "--data.num_rollouts=1", "--model.group_size=8"]
    for name, seed in (("one", 5), ("again", 5), ("other", 6)):
        main(["fit", *tiny_run(tmp_path / name, *settings, f"--seed_everything={seed}")])
    assert same_weights(tmp_path / "one", tmp_path / "again", 1)
    assert not same_weights(tmp_path / "one", tmp_path / "other", 1)


def test_two_ways_to_name_validation_sources(tmp_path: Path, tiny_run: TinyRun, problem_file: Path) -> None:
    mapping = {name: {"class_path": "JSONL", "init_args": {"path": str(problem_file), "limit": 3}} for name in "ab"}
    flags = [
        *("--data.val.a=JSONL", f"--data.val.a.path={problem_file}", "--data.val.a.limit=3"),
        *("--data.val.b=JSONL", f"--data.val.b.path={problem_file}", "--data.val.b.limit=3"),
    ]
    logger = ["--trainer.logger=CSVLogger", "--trainer.logger.save_dir=logs"]
    main(["validate", *tiny_run(tmp_path / "json", *logger, f"--data.val={json.dumps(mapping)}")])
    main(["validate", *tiny_run(tmp_path / "flags", *logger, *flags)])
    assert {"val/a/accuracy", "val/b/accuracy", "val/b/length_tokens"} <= metrics(tmp_path / "json").keys()
    assert metrics(tmp_path / "json") == metrics(tmp_path / "flags")


OWN_CLASSES = '''
from pathlib import Path
from lightning.pytorch import Callback
from lightning_pspo.rewards import Reward
from lightning_pspo.data.sources import PromptSource
from lightning_pspo.objective.surrogates import Surrogate
from lightning_pspo.types import Problem


class Brevity(Reward):
    def __init__(self, letters: int = 3) -> None:
        self.letters = letters

    def __call__(self, samples):
        return [float(len(sample.completion) <= self.letters) + index % 2 for index, sample in enumerate(samples)]


class Doubles(PromptSource):
    def __init__(self, count: int) -> None:
        self.count = count

    def load(self):
        return [Problem(f"double-{i}", f"Twice {i}?", str(2 * i)) for i in range(self.count)]


class Nothing(Surrogate):
    """No gradient at all."""

    def __call__(self, log_ratio, advantages, mask=None):
        return log_ratio * 0.0


class Diary(Callback):
    def __init__(self, filename: str) -> None:
        self.filename = filename

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        rollout = outputs["rollout"]
        with Path(trainer.default_root_dir, self.filename).open("a") as file:
            columns = batch.problems, rollout.rewards.tolist(), rollout.reward_terms["brevity"].tolist()
            for problem, rewards, terms in zip(*columns):
                file.write(f"{problem.id} {problem.answer} {rewards} {terms}\\n")


class Prompts(Callback):
    """Writes the first prompt as the model gets it."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        text = pl_module.policy.tokenizer.decode(batch.prompt_ids[0][batch.prompt_mask[0]])
        Path(trainer.default_root_dir).mkdir(exist_ok=True)
        Path(trainer.default_root_dir, "prompt.txt").write_text(text)
'''


@pytest.fixture
def own_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Name of a user's module on the import path."""
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "own_pspo_classes.py").write_text(OWN_CLASSES)
    monkeypatch.syspath_prepend(tmp_path / "mine")
    monkeypatch.delitem(sys.modules, "own_pspo_classes", raising=False)
    return "own_pspo_classes"


def test_classes_of_ones_own(tmp_path: Path, tiny_run: TinyRun, own_module: str) -> None:
    root = tmp_path / "run"
    own = [
        *(f"--model.reward={own_module}.Brevity", "--model.reward.letters=2"),
        f"--model.surrogate={own_module}.Nothing",
        *(f"--data.train={own_module}.Doubles", "--data.train.count=4"),
        *(f"--trainer.callbacks+={own_module}.Diary", "--trainer.callbacks.filename=diary.txt"),
    ]
    arguments = [
        argument
        for argument in tiny_run(root, "--data.num_rollouts=2")
        if not argument.startswith(("--data.train", "--model.reward"))
    ]
    main(["fit", *arguments, *own])
    lines = (root / "diary.txt").read_text().splitlines()
    assert sorted(line.split()[0] for line in lines) == [f"double-{i}" for i in range(4)]  # one pass, each once
    for line in lines:
        name, answer, rest = line.split(maxsplit=2)
        assert int(answer) == 2 * int(name.removeprefix("double-"))
        assert rest == "[0.0, 1.0, 0.0, 1.0] [0.0, 1.0, 0.0, 1.0]"  # eight letters are never brief
    assert same_weights(root, root, 1, 2)


def test_short_class_names(capsys: pytest.CaptureFixture[str]) -> None:
    classes = {
        "model.surrogate": "lightning_pspo.objective.surrogates.Clip",
        "model.aggregation": "lightning_pspo.objective.surrogates.SequenceMean",
        "model.reward": "lightning_pspo.rewards.GSM8KPaperReward",
        "model.lr_schedule": "lightning_pspo.objective.schedules.Cosine",
        "model.engine": "lightning_pspo.rollout.GenerateEngine",
        "model.optimizer": "torch.optim.SGD",
        "data.train": "lightning_pspo.data.sources.GSM8K",
        "trainer.logger": "lightning.pytorch.loggers.CSVLogger",
    }
    flags = [f"--{name}={path.rpartition('.')[2]}" for name, path in classes.items()]
    config = printed_config(capsys, *flags, "--model.optimizer.lr=0.1", "--trainer.logger.save_dir=logs")
    for name, path in classes.items():
        section, key = name.split(".")
        assert config[section][key]["class_path"] == path


def test_later_settings_win(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = tmp_path / "one.yaml", tmp_path / "two.yaml"
    one.write_text("model: {group_size: 4, max_grad_norm: 2, surrogate: {class_path: PSPO, init_args: {alpha: 0.3}}}")
    two.write_text("model: {group_size: 6, surrogate: {init_args: {alpha: 0.2}}}")
    model = printed_config(capsys, f"--config={one}", f"--config={two}", "--model.updates_per_rollout=5")["model"]
    assert (model["group_size"], model["max_grad_norm"], model["updates_per_rollout"]) == (6, 2, 5)
    assert model["surrogate"]["init_args"] == {"alpha": 0.2}
    assert printed_config(capsys, f"--config={two}", f"--config={one}")["model"]["group_size"] == 4


def test_resume_from_the_last_checkpoint(tmp_path: Path, tiny_run: TinyRun, caplog: pytest.LogCaptureFixture) -> None:
    settings = ["--model.optimizer.lr=0.01"]
    main(["fit", *tiny_run(tmp_path / "whole", *settings)])
    root = tmp_path / "run"
    with caplog.at_level("INFO"):
        main(["fit", *tiny_run(root, *settings, "--trainer.limit_train_batches=1", "--ckpt_path=last")])
    assert f"There is no checkpoint in {root / 'checkpoints'}: the run starts afresh." in caplog.text
    assert [path.name for path in (root / "checkpoints").iterdir()] == ["rollout=000001.ckpt"]
    main(["fit", *tiny_run(root, *settings, "--trainer.limit_train_batches=2", "--ckpt_path=last")])
    main(["fit", *tiny_run(root, *settings, "--ckpt_path=last")])
    assert same_weights(root, tmp_path / "whole", 3)
    assert not same_weights(root, root, 1, 3)
    assert sorted(path.name for path in root.glob("*.yaml")) == ["config-2.yaml", "config-3.yaml", "config.yaml"]
    before = contents(root)
    main(["fit", *tiny_run(root, *settings, "--ckpt_path=last")])  # nothing left to do, no other settings
    assert contents(root) == before


def test_chat_template_and_system_prompt(
    tmp_path: Path, tiny_run: TinyRun, model_folder: Callable[..., Path], own_module: str
) -> None:
    problems = tmp_path / "one.jsonl"
    problems.write_text(json.dumps({"question": "What is 1 + 1?", "answer": "2"}))
    arguments = tiny_run(
        tmp_path / "run",
        "--data.num_rollouts=1",
        "--data.prompt.system_prompt=Be brief.",
        f"--trainer.callbacks+={own_module}.Prompts",
        model=model_folder(chat_template=CHAT_TEMPLATE),
        train=problems,
    )
    main(["fit", *arguments])
    expected = "[system] Be brief. [user] What is 1 + 1? [assistant]"
    assert (tmp_path / "run" / "prompt.txt").read_text() == expected


def test_short_names_are_torchs_whatever_is_loaded() -> None:
    pytest.importorskip("bitsandbytes.optim")  # which has an SGD of its own
    with pytest.raises(ValueError, match="Multiple subclasses"):
        _typehints.resolve_class_path_by_name(torch.optim.Optimizer, "SGD")
    with torch_first():
        assert _typehints.resolve_class_path_by_name(torch.optim.Optimizer, "SGD") == "torch.optim.SGD"
        assert find_class([torch.optim.Optimizer], "AdamW", "place") is torch.optim.AdamW
        assert "bitsandbytes" in _typehints.resolve_class_path_by_name(torch.optim.Optimizer, "PagedAdamW")


def test_schedule_and_optimizer_by_flags(tmp_path: Path, tiny_run: TinyRun) -> None:
    """Six updates: the factor falls by a sixth with each, counted over rollouts and passes."""
    flags = ["--model.lr_schedule=Linear", "--model.optimizer=SGD", "--model.optimizer.lr=0.1"]
    main(["fit", *tiny_run(tmp_path, *flags, "--model.updates_per_rollout=2")])
    for rollout in (1, 2, 3):
        checkpoint = torch.load(tmp_path / "checkpoints" / f"rollout={rollout:06d}.ckpt", weights_only=True)
        (group,) = checkpoint["optimizer_states"][0]["param_groups"]
        assert group["initial_lr"] == 0.1
        assert group["lr"] == pytest.approx(0.1 * (1 - 2 * rollout / 6), abs=1e-12)
        assert group["momentum"] == 0.0
        assert "betas" not in group


def test_a_trial_run_leaves_nothing(tmp_path: Path, tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither files nor, in the process that runs it, variables and filters."""
    monkeypatch.setenv("PL_GLOBAL_SEED", "17")  # which a run sets
    logger = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    before = dict(os.environ), [*warnings.filters], [*logger.filters]
    main(["fit", *tiny_run(tmp_path / "run", "--trainer.fast_dev_run=true", "--trainer.callbacks+=RolloutLedger")])
    assert not (tmp_path / "run").exists()
    assert (dict(os.environ), [*warnings.filters], [*logger.filters]) == before


def test_the_line_of_a_command_goes_on_after_another_within_it() -> None:
    with progress.shown("selfcheck"):
        assert resolve(["--config", "quickstart"])["seed_everything"] == 1
        assert progress.is_shown()
    assert not progress.is_shown()


def test_a_rank_that_is_no_number_is_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("SLURM_PROCID", "x")
    with pytest.raises(SystemExit) as ended:
        main(["fit", "--config", "quickstart"])
    assert ended.value.code == 2
    problem = "the environment variable SLURM_PROCID must be a whole number, got 'x': unset it."
    assert capsys.readouterr().err == f"error: {problem}\n"
