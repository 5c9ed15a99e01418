"""Settings and results in a run's folder; the day on which it started, which a chat template may print."""

import json
import os
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import torch

from lightning_pspo.checkpoints.export.reading import read_checkpoint
from lightning_pspo.checkpoints.integrity import MANIFEST, DamagedError, check_whole
from lightning_pspo.checkpoints.run_folder import newest_config, read_run_config, results_of, start_date
from lightning_pspo.checkpoints.store import SCORES, read_scores
from lightning_pspo.cli.main import main
from lightning_pspo.data.prompt_encoder import PromptEncoder
from lightning_pspo.errors import InputError
from lightning_pspo.types import Problem
from tests.support.models import CHAT_TEMPLATE, make_tokenizer

DATED = "Today is {{ strftime_now('%d %B %Y, %H:%M') }}. " + CHAT_TEMPLATE


def test_the_newest_settings_count(tmp_path: Path) -> None:
    checkpoint = tmp_path / "checkpoints" / "rollout=000002.ckpt"
    checkpoint.parent.mkdir()
    assert newest_config(checkpoint) is None
    for name in ("config.yaml", "config-2.yaml", "config-10.yaml", "config-x.yaml", "configs.yaml"):
        (tmp_path / name).touch()
    assert newest_config(checkpoint) == tmp_path / "config-10.yaml"


def test_the_summary_is_of_the_last_rollout(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").touch()
    (tmp_path / "summary.json").write_text(json.dumps({"rollouts": 2}))
    assert results_of(tmp_path / "checkpoints" / "rollout=000002.ckpt") == {"summary": {"rollouts": 2}}
    for name in ("rollout=000001.ckpt", "best.ckpt"):
        assert results_of(tmp_path / "checkpoints" / name) == {}


def test_a_group_of_settings_is_a_mapping(tmp_path: Path) -> None:
    (path := tmp_path / "config.yaml").write_text("model: hello\n")
    with pytest.raises(InputError, match=r"config\.yaml: `model` must be a mapping of settings, got 'hello'\."):
        read_run_config(path)


@pytest.mark.parametrize("content", ["", "[]", "data: 3", "data: {date: null}", "!!python/name:os.system", "data: ["])
def test_a_run_without_a_date_starts_today(tmp_path: Path, content: str) -> None:
    (tmp_path / "config.yaml").write_text(content)
    assert start_date(tmp_path, None) == datetime.now().date().isoformat()


def test_a_chat_template_prints_the_date_that_it_is_given() -> None:
    tokenizer = make_tokenizer(DATED)
    text = PromptEncoder(tokenizer, date="2020-02-29").text(Problem("1", "1 + 1?", "2"))
    assert "Today is 29 February 2020, 00:00." in text


@pytest.mark.parametrize("start", ["", "\n  ", "  {% if true %}\n  {% endif %}\n", "{%- set a = 1 %}"])
def test_stopping_the_clock_changes_nothing_else(start: str) -> None:
    """All directives but those of the time of day, under each kind of white space in front."""
    text = start + "{% set day = strftime_now('%a %A %b %B %-d %d %e %j %m %-m %y %Y %F %D %u %V') %}{{ day }}\n"
    tokenizer = make_tokenizer(text + CHAT_TEMPLATE)
    today = datetime.now().date().isoformat()
    stopped, running = (PromptEncoder(tokenizer, date=date).text(Problem("1", "1 + 1?", "2")) for date in (today, None))
    assert stopped == running or datetime.now().date().isoformat() != today


def test_a_run_keeps_its_date(
    tiny_run: Callable[..., list[str]],
    model_folder: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One that started on another day has the same prompts today, also from a checkpoint in another folder."""
    root, model = tmp_path / "run", model_folder(chat_template=DATED)
    caplog.set_level("INFO")

    def run(root: Path, *more: str) -> Any:
        main(["fit", *tiny_run(root, "--data.num_rollouts=2", *more, model=model)])
        return read_run_config(root / "config.yaml")["data"]["date"]

    assert run(root, "--data.date=2020-02-29", "--trainer.limit_train_batches=1") == "2020-02-29"
    assert "The chat template prints the date: 2020-02-29 for the whole run" in caplog.text
    assert run(tmp_path / "other", f"--ckpt_path={root}/checkpoints/rollout=000001.ckpt") == "2020-02-29"
    assert run(root, "--ckpt_path=last") == "2020-02-29"
    assert run(tmp_path / "new") == datetime.now().date().isoformat()
    with pytest.raises(SystemExit):
        run(tmp_path / "bad", "--data.date=29.2.2020")
    assert "`date` must be a day such as 2026-01-31, got '29.2.2020'" in capsys.readouterr().err


def test_no_reader_of_a_strangers_folder_waits_for_a_pipe(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "rollout=000001.ckpt").mkdir(parents=True)
    (tmp_path / "config.yaml").write_text("model: {}")
    checkpoint = tmp_path / "checkpoints" / "rollout=000001.ckpt"
    for name in ("summary.json", f"checkpoints/{SCORES}", f"checkpoints/{checkpoint.name}/{MANIFEST}"):
        os.mkfifo(tmp_path / name)
    assert results_of(checkpoint) == {}
    assert read_scores(checkpoint.parent) == {}
    with pytest.raises(DamagedError, match=MANIFEST):
        check_whole(checkpoint)
    for name in ("summary.json", f"checkpoints/{SCORES}", f"checkpoints/{checkpoint.name}/{MANIFEST}"):
        (tmp_path / name).unlink()
        (tmp_path / name).write_bytes(b"{}")
        os.truncate(tmp_path / name, 1 << 40)  # it takes nothing on the disk, and would fill the memory
    assert results_of(checkpoint) == {}
    assert read_scores(checkpoint.parent) == {}
    with pytest.raises(DamagedError, match=MANIFEST):
        check_whole(checkpoint)
    os.mkfifo(tmp_path / "config-2.yaml")
    with pytest.raises(InputError, match="device or pipe"):
        read_run_config(tmp_path / "config-2.yaml")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"policy": "x"}, "in which `policy` is not a dict"),
        ({"policy": {}, "MathDataModule": "x"}, "in which `MathDataModule` is not a dict"),
        ({}, "does not say which policy it holds"),
    ],
)
def test_a_checkpoint_says_which_policy_it_holds(tmp_path: Path, content: dict[str, Any], message: str) -> None:
    torch.save(content | {"state_dict": {}}, tmp_path / "a.ckpt")
    with pytest.raises(InputError, match=message):
        read_checkpoint(tmp_path / "a.ckpt")
