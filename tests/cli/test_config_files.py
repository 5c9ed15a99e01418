"""Files of settings: packaged ones by name, similar ones for a wrong name, and what is refused at once."""

import os
from pathlib import Path

import pytest

from lightning_pspo.cli.config_files import packaged_configs, with_config_files
from lightning_pspo.errors import InputError

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refusal(*arguments: str) -> str:
    with pytest.raises(InputError) as refused:
        with_config_files(arguments)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_every_configuration_is_packaged() -> None:
    files = {str(path.relative_to(ROOT / "configs").with_suffix("")) for path in (ROOT / "configs").glob("**/*.yaml")}
    assert packaged_configs().keys() | packaged_configs(studies=True).keys() == files
    assert "study/main" not in packaged_configs(), "a study holds no settings of a run"


@pytest.mark.parametrize("name", ["quickstart", "quickstart.yaml", "configs/quickstart.yaml", "experiments/arm_pspo"])
def test_packaged_names(name: str) -> None:
    path = str(packaged_configs()[name.removeprefix("configs/").removesuffix(".yaml")])
    assert with_config_files(["--config", name, "--a=1"]) == ["--config", path, "--a=1"]
    assert with_config_files([f"--config={name}", "-c", "base"]) == [
        f"--config={path}",
        "-c",
        str(packaged_configs()["base"]),
    ]


def test_a_file_at_hand_comes_first(elsewhere: Path) -> None:
    (elsewhere / "base").write_text("model: {group_size: 4}\n")
    (elsewhere / "quickstart").mkdir()  # the folder of a run
    assert with_config_files(["--config=base"]) == ["--config=base"]
    assert with_config_files(["--config=quickstart"]) == [f"--config={packaged_configs()['quickstart']}"]


@pytest.mark.parametrize(
    ("wrong", "meant"),
    [
        ("quikstart", "quickstart"),
        ("grpo", "objective/grpo"),
        ("objective/gropo", "objective/grpo"),
        ("strategies/ddp", "strategy/ddp"),
        ("mine/setings.yaml", "mine/settings.yaml"),
        ("settings.yaml", "mine/settings.yaml"),
        ("min/settings.yaml", "mine/settings.yaml"),
    ],
)
def test_similar_names(elsewhere: Path, wrong: str, meant: str) -> None:
    (elsewhere / "mine").mkdir()
    (elsewhere / "mine" / "settings.yaml").touch()
    assert refusal("--config", wrong).endswith(f" {wrong}; did you mean `{meant}`?")


@pytest.mark.parametrize("name", ["study/smoke", "configs/study/smoke.yaml", "mine.yaml"])
def test_a_study_is_not_a_configuration(elsewhere: Path, name: str) -> None:
    (elsewhere / "mine.yaml").write_text("arms: {a: {}}\nseeds: [1]\n")
    assert f"got the study {name}: run it with `lightning-pspo study {name}`" in refusal("--config", name)
    (elsewhere / "study").mkdir()
    (elsewhere / "mine.yaml").rename(elsewhere / "study" / "mine.yaml")
    assert "did you mean" not in refusal("--config", "mine.yml")


def test_nothing_similar() -> None:
    assert "/no/such.yaml; packaged ones are base, " in refusal("--config=/no/such.yaml")
    assert "packaged ones are base, " in refusal("--config", "x" * 300)
    assert with_config_files(["--config", "{model: {group_size: 4}}", "--config"]) == [
        "--config",
        "{model: {group_size: 4}}",
        "--config",
    ]


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"model:\n  group_size: 4\n  group_size: 8\n", ", line 3, column 3: the key `group_size` is repeated"),
        (b"model:\n  - group_size: 4\n", ": `model` must be a mapping of settings, got [{'group_size': 4}]."),
        (b"trainer: 3\n", ": `trainer` must be a mapping of settings, got 3."),
        (b"- model\n", " must be a mapping of settings, got ['model']."),
        (b"# nothing\n", " must hold settings, got an empty file."),
        (b"model: {group_size: [\n", ", line 2, column 1: this is not YAML"),
        (b"\x7fELF\xff\xfe\x00", " must be a YAML file in UTF-8"),
        (
            b"model: !!python/object:os.system {}\n",
            ", line 1, column 8: the tag !!python/object:os.system is not allowed",
        ),
    ],
)
@pytest.mark.parametrize("flag", ["--config", "-c", "--model"])
def test_files_that_do_not_hold_settings(elsewhere: Path, content: bytes, problem: str, flag: str) -> None:
    path = elsewhere / "mine.yaml"
    path.write_bytes(content)
    if flag == "--model" and content.startswith((b"model:\n  - ", b"trainer")):
        assert with_config_files([flag, str(path)]) == [flag, str(path)]
    else:
        assert refusal(flag, str(path)).startswith(f"{path}{problem}")


def test_a_folder(elsewhere: Path) -> None:
    assert refusal("--config=.") == "`--config` must be a YAML file, got the folder .."
    assert refusal("--config", str(elsewhere)) == f"`--config` must be a YAML file, got the folder {elsewhere}."


def test_a_pipe_and_an_empty_name(elsewhere: Path) -> None:
    os.mkfifo(elsewhere / "pipe")
    assert "must be a YAML file, got pipe, which is a pipe" in refusal("--config=pipe")
    assert "got an empty name" in refusal("--config", "")
