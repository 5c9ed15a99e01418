"""Every shipped YAML is a test case: it is explained, it parses, and it runs where this machine can run it."""

import itertools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightning_pspo.cli.main import main

CONFIGS = Path(__file__).parents[2] / "configs"
BASES = sorted(CONFIGS.glob("*.yaml"))
ARMS = sorted(CONFIGS.glob("experiments/arm_*.yaml"))
EXPERIMENTS = sorted(CONFIGS.glob("experiments/qwen*.yaml"))
RECIPES = sorted(CONFIGS.glob("experiments/smollm2*.yaml"))
OVERLAYS = [path for path in sorted(CONFIGS.glob("*/*.yaml")) if path.parent.name not in ("experiments", "study")]
PRINTED: dict[tuple[str, ...], dict[str, Any]] = {}
RUNNABLE = ("model", "objective", "callbacks", "engine")
REFUSED = {  # what the training loop cannot run yet, or this machine cannot
    "strategy/fsdp1.yaml": "(?i)gpu",
    "engine/vllm.yaml": "(?i)vllm",
}


def name(path: Path) -> str:
    return path.relative_to(CONFIGS).as_posix()


def printed(capsys: pytest.CaptureFixture[str], *words: str) -> dict[str, Any]:
    """Return the settings that a command makes; each is asked once."""
    if words not in PRINTED:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main([*words, "--print_config"])
        output = capsys.readouterr()
        assert stop.value.code == 0, output.err
        PRINTED[words] = yaml.load(output.out, yaml.CSafeLoader)
    return PRINTED[words]


def together(capsys: pytest.CaptureFixture[str], *paths: Path) -> dict[str, Any]:
    """Return the settings that these files make."""
    options = [("--config", path.relative_to(CONFIGS).with_suffix("").as_posix()) for path in paths]
    return printed(capsys, "fit", *itertools.chain(*options))


def assert_holds(config: Any, part: Any, path: str = "") -> None:
    """Check that ``config`` says all that ``part`` says; class names may have been completed."""
    if isinstance(part, dict):
        for key, value in part.items():
            name = key.removesuffix("+")
            assert name in config, path
            held = config[name][-len(value) :] if name != key else config[name]  # `logger+` appends
            assert_holds(held, value, f"{path}.{name}")
    elif isinstance(part, list):
        assert len(config) == len(part), path
        for index, value in enumerate(part):
            assert_holds(config[index], value, f"{path}[{index}]")
    elif path.endswith("class_path"):
        assert config.rsplit(".", 1)[-1] == part.rsplit(".", 1)[-1], path
    else:
        assert config == part, path


@pytest.fixture
def trial(problem_file: Path, tmp_path: Path) -> list[str]:
    """What makes a trial of any configuration: the embedded model, small problems, one small rollout."""
    rows = {"path": str(problem_file), "offset": 0, "limit": 2}
    held_out = {"held_out": {"class_path": "JSONL", "init_args": rows}}
    return [
        f"--trainer.default_root_dir={tmp_path / 'run'}",
        "--trainer.accelerator=cpu",
        "--trainer.fast_dev_run=true",
        "--model.policy.model_name_or_path=embedded",
        "--model.group_size=2",
        "--model.sampling.max_new_tokens=4",
        "--data.train=JSONL",
        f"--data.train.path={problem_file}",
        f"--data.val={json.dumps(held_out)}",
        "--data.prompts_per_rollout=2",
        "--data.num_rollouts=2",
        "--data.overlap=warn",
        "--data.test=null",
    ]


def test_there_are_bases_and_overlays() -> None:
    assert {"quickstart.yaml"} <= {name(path) for path in BASES}
    assert {path.parent.name for path in OVERLAYS} >= {"strategy", "model", "data", "objective"}
    assert len(EXPERIMENTS) == 4
    assert set(REFUSED) <= {name(path) for path in OVERLAYS}


@pytest.mark.parametrize("path", BASES + EXPERIMENTS + RECIPES + ARMS + OVERLAYS, ids=name)
def test_it_says_what_it_is_for(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = path.read_text(encoding="utf-8")
    assert text.startswith("# Purpose: ")
    head = "".join(itertools.takewhile(lambda line: line.startswith("#"), text.splitlines(keepends=True)))
    for word in ("# Purpose: ", "# Hardware: ", "# Command: "):
        (rest,) = re.findall(rf"^{word} *(.*)$", head, flags=re.MULTILINE)
        assert len(rest) > 3
    commands = [line.split() for line in head.splitlines() if "lightning-pspo " in line]
    assert commands, "a command to paste"
    for words in commands:
        printed(capsys, *words[words.index("lightning-pspo") + 1 :])
    assert any(path.relative_to(CONFIGS).with_suffix("").as_posix() in words for words in commands)


@pytest.mark.parametrize("path", BASES + EXPERIMENTS, ids=name)
def test_a_base_has_summary_ledger_and_report(path: Path) -> None:
    trainer = yaml.safe_load(path.read_text(encoding="utf-8"))["trainer"]
    names = {entry["class_path"] for entry in trainer["callbacks"]}
    assert {"RunSummary", "RolloutLedger", "RunReport", "RolloutCheckpoint", "Preemption"} <= names
    assert trainer["num_sanity_val_steps"] == -1  # what the summary compares with


@pytest.mark.parametrize("path", BASES + EXPERIMENTS + RECIPES, ids=name)
def test_a_base_runs(path: Path, trial: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert_holds(together(capsys, path), yaml.safe_load(path.read_text(encoding="utf-8")))
    if not path.stem.endswith("_warm"):  # the trial's problems have no solutions
        main(["fit", f"--config={path}", *trial])
    assert not (tmp_path / "run").exists()  # a trial leaves nothing


@pytest.mark.parametrize("experiment", EXPERIMENTS, ids=name)
def test_the_arms_of_an_experiment(experiment: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What the paper's arms differ in, and the one that differs in the surrogate alone."""
    base = together(capsys, experiment)["model"]
    assert base["surrogate"]["class_path"].endswith(".PSPO")
    for path in ARMS:
        arm = together(capsys, experiment, path)["model"]
        assert_holds(arm, yaml.safe_load(path.read_text(encoding="utf-8"))["model"])
        changed = {key for key in arm if arm[key] != base[key]}
        assert changed == {
            "arm_pspo": set(),
            "arm_unclipped": {"surrogate"},
            "arm_noclip": {"surrogate", "optimizer", "updates_per_rollout"},
            "arm_clip": {"surrogate", "optimizer"},
            "arm_clip_1.5b": {"surrogate"},
        }.get(path.stem), path
        assert arm["optimizer"]["init_args"]["weight_decay"] == 0.0


@pytest.mark.parametrize("path", ARMS, ids=name)
def test_an_arm_runs(path: Path, trial: list[str]) -> None:
    main(["fit", f"--config={CONFIGS / 'experiments/qwen2.5_0.5b_gsm8k.yaml'}", f"--config={path}", *trial])


@pytest.mark.parametrize("path", OVERLAYS, ids=name)
def test_an_overlay_changes_the_quickstart(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, base = together(capsys, CONFIGS / "quickstart.yaml", path), together(capsys, CONFIGS / "quickstart.yaml")
    settings = yaml.safe_load(path.read_text(encoding="utf-8"))
    for callback, changed in settings.pop("callbacks", {}).items():  # by its name
        entries = {entry["class_path"].rpartition(".")[2]: entry for entry in config["trainer"]["callbacks"]}
        assert_holds(entries[callback]["init_args"], changed)
    assert_holds(config, settings)
    assert config["model"]["group_size"] == 8  # the base is still there
    defaults = {"strategy/single.yaml", "objective/gr_pspo.yaml", "engine/shared_prefix.yaml"}  # they spell them out
    if name(path) not in defaults:
        assert config != base


@pytest.mark.parametrize(
    "path",
    [path for path in OVERLAYS if path.parent.name in RUNNABLE and name(path) not in REFUSED],
    ids=name,
)
def test_an_overlay_runs(path: Path, trial: list[str]) -> None:
    (base,) = re.findall(r"(?m)^# Command: .*? --config (\S+) --config", path.read_text(encoding="utf-8"))
    main(["fit", f"--config={CONFIGS / base}.yaml", f"--config={path}", *trial])


@pytest.mark.usefixtures("rank_variables")
@pytest.mark.parametrize(("overlay", "message"), REFUSED.items(), ids=REFUSED)
def test_what_cannot_run_says_so(
    overlay: str, message: str, trial: list[str], refusal: Callable[..., str], tmp_path: Path
) -> None:
    arguments = [argument for argument in trial if not argument.startswith("--trainer.accelerator")]
    configs = [f"--config={CONFIGS / 'quickstart.yaml'}", f"--config={CONFIGS / overlay}"]
    assert re.search(message, refusal(main, ["fit", *configs, *arguments]))
    assert not (tmp_path / "run").exists()
