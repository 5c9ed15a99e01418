"""What a newcomer is told: --help, and completion in bash."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_pspo.cli.main import main

pytestmark = pytest.mark.filterwarnings("ignore:LightningCLI's args parameter")


@pytest.fixture
def printed(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    """Return a function that gives what a command prints."""
    monkeypatch.setattr(sys, "argv", ["lightning-pspo"])
    monkeypatch.setenv("COLUMNS", "100")

    def run(*arguments: str) -> str:
        capsys.readouterr()
        with pytest.raises(SystemExit) as stop:
            main(list(arguments))
        assert not stop.value.code
        return capsys.readouterr().out

    return run


def test_the_program_says_what_it_is_for(printed) -> None:
    text = " ".join(printed("--help").split())
    assert text.startswith("usage: lightning-pspo ")
    assert "by reinforcement learning" in text
    assert "fit --config configs/quickstart.yaml" in text
    for part in ("fit Train a policy; ", "validate Measure a policy", "test Measure a policy", "predict Write down"):
        assert part in text


def test_every_setting_of_fit_has_a_sentence(printed) -> None:
    text = printed("fit", "--help")
    assert "usage: lightning-pspo fit [--config FILE]... [--SETTING VALUE]..." in text.splitlines()[0]
    entries = re.split(r"^  (?=-)", text, flags=re.MULTILINE)[1:]
    explained = {}
    for entry in entries:
        name = re.match(r"[^ ,\n]+", entry)[0]
        words = re.sub(r"\((type|required|default).*", "", " ".join(entry.split()[1:]), flags=re.DOTALL)
        explained[name] = words
    assert len(explained) > 90
    assert not [name for name, words in explained.items() if len(words.split()) < 4]
    assert "at least 0" in explained["--seed_everything"]


def test_a_class_is_explained(printed) -> None:
    text = " ".join(printed("fit", "--model.surrogate.help", "Clip").split())
    assert "--model.surrogate.epsilon_low" in text
    assert re.search(r"--model\.surrogate\.epsilon_high \S+ \w+", text)


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that ``--print_completion`` writes."""
    if shutil.which("bash") is None:
        pytest.skip("needs bash")
    path = tmp_path_factory.mktemp("completion") / "completion.sh"
    with path.open("w") as file, pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "stdout", file)
        with pytest.raises(SystemExit) as stop:
            main(["--print_completion"])
    assert stop.value.code is None
    assert path.stat().st_size < 300_000
    return path


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["f"], ["fit"]),
        ([""], ["fit", "validate", "test", "predict"]),
        (["fit", "--model.group_s"], ["--model.group_size"]),
        (["fit", "--model.surrogate.al"], ["--model.surrogate.alpha"]),
        (["fit", "--model.surrogate.epsilon_l"], ["--model.surrogate.epsilon_low"]),
        (["fit", "--model.surrogate", "PS"], ["PSPO"]),
        (["fit", "--model.surrogate", "=", "PS"], ["PSPO"]),
        (["fit", "--data.train", "JS"], ["JSONL"]),
        (["fit", "--model.ratio_level", ""], ["token", "sequence"]),
        (["fit", "--model.ratio_level", "="], ["token", "sequence"]),
        (["fit", "--model.mask_truncated", "t"], ["true"]),
        (["fit", "--trainer.logger", "lightning.pytorch.loggers.CSV"], ["lightning.pytorch.loggers.CSVLogger"]),
        (["fit", "--model.grader.mo"], ["--model.grader.mode"]),
        (["validate", "--ckpt_p"], ["--ckpt_path"]),
        (["fit", "--qq"], []),
    ],
)
def test_completion_in_bash(script: Path, words: list[str], expected: list[str]) -> None:
    line = ["lightning-pspo", *words]
    given = " ".join(f"'{word}'" for word in line)
    check = (
        f'. "$1"; COMP_WORDS=({given}); COMP_CWORD={len(line) - 1}; _lightning_pspo; printf "%s\\n" "${{COMPREPLY[@]}}"'
    )
    done = subprocess.run(["bash", "-c", check, "bash", str(script)], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    assert done.stdout.split() == expected


def test_completion_of_files(script: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").touch()
    check = '. "$1"; COMP_WORDS=(lightning-pspo fit --config mi); COMP_CWORD=3; _lightning_pspo; echo "${COMPREPLY[@]}"'
    done = subprocess.run(
        ["bash", "-c", check, "bash", str(script)], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.stdout.split() == ["mine.yaml"]
