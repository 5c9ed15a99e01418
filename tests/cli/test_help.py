"""What a newcomer is told: --help, and completion in bash."""

import importlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_pspo.cli.bash_completion import completion
from lightning_pspo.cli.help import COMMANDS, LIGHTNING, WITH_FIT_SETTINGS, overview
from lightning_pspo.cli.main import main
from lightning_pspo.cli.short_help import FIRST


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


def test_the_overview_has_every_subcommand() -> None:
    text = overview()
    assert "by reinforcement learning" in text
    assert "fit --config quickstart" in text
    for name, purpose in COMMANDS.items():
        assert re.search(rf"^  {name} +{re.escape(purpose)}$", text, re.MULTILINE)
    assert {*LIGHTNING, *WITH_FIT_SETTINGS} <= COMMANDS.keys()


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in LIGHTNING])
def test_the_projects_own_subcommands(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    module = importlib.import_module(f"lightning_pspo.cli.{name.replace('-', '_')}")
    with pytest.raises(SystemExit) as stop:
        module.main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: lightning-pspo {name} ")
    assert not re.search(r"scripts/|docs/|python -m", text)


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ("shwo RUN", "unknown subcommand `shwo`; did you mean `show`?"),
        ("show RUN --verdict corect", "unknown --verdict `corect`; did you mean `correct`?"),
        ("show RUN --colums id", "unknown option `--colums`; did you mean `--columns`?"),
        ("export RUN --ouput x.csv", "unknown option `--ouput`; did you mean `--output`?"),
        ("show RUN more", "unknown word `more`."),
        ("show RUN m\x1b[2J", "unknown word `m␛[2J`."),  # as a pattern of the shell makes of a stranger's files
        ("show", "the following arguments are required: RUN; `lightning-pspo ledger show --help` lists the options."),
    ],
)
def test_a_slip_of_a_subcommand_is_one_line(arguments: str, line: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        importlib.import_module("lightning_pspo.cli.ledger").main(arguments.split())
    assert (stop.value.code, capsys.readouterr().err) == (2, f"error: {line}\n")


def test_every_setting_of_fit_has_a_sentence(printed) -> None:
    text = printed("fit", "--help.all")
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


@pytest.mark.parametrize(("subcommand", "columns"), [("fit", 100), ("fit", 80), ("validate", 100)])
def test_a_screen_for_each_group(printed, subcommand: str, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    usage, purpose, *groups, hints = printed(subcommand, "--help").split("\n\n")
    assert (subcommand in usage, purpose, "--print_config" in hints) == (True, COMMANDS[subcommand], True)
    assert all(1 < group.count("\n") < 24 for group in groups)
    assert max(len(line) for group in groups for line in group.splitlines()) <= columns
    shown = re.findall(r"^  --(\S+)", "\n".join(groups), re.MULTILINE)
    named = " ".join(names for title, names in FIRST.items() if f"{title}:" in "\n".join(groups)).split()
    assert shown == ["help", *named]
    assert ("model.surrogate" in shown) == (subcommand == "fit")
    assert re.search(r"--model.group_size 8 +Completions per prompt", "\n".join(groups))


def test_a_class_is_explained(printed) -> None:
    text = " ".join(printed("fit", "--model.surrogate.help", "Clip").split())
    assert "--model.surrogate.epsilon_low" in text
    assert re.search(r"--model\.surrogate\.epsilon_high \S+ \w+", text)


@pytest.fixture(scope="module")
def script(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that ``--print_completion`` writes; a second time it comes from the cache."""
    if shutil.which("bash") is None:
        pytest.skip("needs bash")
    folder = tmp_path_factory.mktemp("completion")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        text = completion()
        (kept,) = folder.glob("cache/lightning-pspo/completion-*.bash")
        assert kept.read_text() == text
        kept.write_text("from the cache\n")
        assert completion() == "from the cache\n"
    path = folder / "completion.sh"
    path.write_text(text)
    assert path.stat().st_size < 400_000
    return path


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["fi"], ["fit"]),
        ([""], list(COMMANDS)),
        (["led"], ["ledger"]),
        (["ledger", "re"], ["regrade"]),
        (["ledger", "--whe"], ["--where"]),
        (["grade", "--mode", ""], ["lenient", "strict"]),
        (["grade", "--model.group_s"], []),
        (["compare", "--resam"], ["--resamples"]),
        (["doctor", "--sec"], ["--seconds"]),
        (["doctor", "--model.group_s"], ["--model.group_size"]),
        (["quickstart", "--model.surrogate", "PSP"], ["PSPO"]),
        (["fit", "--config", "quick"], ["quickstart"]),
        (["fit", "--config", "strategy/dd"], ["strategy/ddp"]),
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
