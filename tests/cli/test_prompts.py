"""``lightning-pspo prompts`` shows what the model is asked, without its weights."""

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from lightning_pspo.cli.failures import error_line
from lightning_pspo.cli.prompts import main
from tests.support.models import make_tokenizer

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture
def settings(model_folder: Callable[..., Path], tmp_path: Path) -> list[str]:
    """Of a base model whose weights are gone."""
    folder = model_folder()
    (folder / "model.safetensors").unlink()
    rows = [{"question": f"{n} + {n}?", "answer": f"It is {n + n}.\n#### {n + n}"} for n in range(9)]
    (tmp_path / "solved.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [f"--model.policy.model_name_or_path={folder}", f"--data.train={tmp_path / 'solved.jsonl'}"]


def test_prompts_as_text_and_tokens(settings: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    prompt = ["--data.prompt.few_shot.k=2", "--data.prompt.answer_prefix= So"]
    assert main([*settings, *prompt, "--count=2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert sum(line.startswith("data.train: solved-") for line in lines) == 2
    assert sum(line == "Answer: So" for line in lines) == 2
    assert sum(line.startswith("reference answer: ") for line in lines) == 2
    text = "\n".join(lines)
    assert text.count("Answer: So It is ") == 4
    ids = make_tokenizer().get_vocab()
    assert f"A/{ids['A']} n/{ids['n']} s/{ids['s']}" in text.replace("\n", "")
    assert f"·/{ids['Ġ']} " in text
    assert f"a completion ends with: </s>/2 ↵/{ids['Ċ']}" in text


def test_nothing_in_a_file_controls_the_terminal(
    settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    row = {"id": "[/x]\x1b[2J", "question": "1\x1b]0;t\x07 + 1?", "answer": "2"}
    (tmp_path / "solved.jsonl").write_text(json.dumps(row) + "\n")
    assert main([*settings, "--data.train.id=id"]) == 0
    shown = capsys.readouterr().out
    assert "data.train: [/x]␛[2J, " in shown
    assert "1␛]0;t␇ + 1?" in shown
    assert all(line.isprintable() for line in shown.splitlines())
    line = error_line("`a\x1b[2J` must be b\nor c.", 0, 0)
    assert line == "error: `a␛[2J` must be b\nor c.\n"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--count=0"], "`--count` must be at least 1, got 0"),
        (["--source=val.x"], r"`source` must be one of train, got 'val\.x'\."),
        (["--data.prompt.few_shot.k=10"], "`prompt.few_shot.k` must be at most 9, "),
        (["--data.prompt.chat_template=no.jinja"], "must be a file with a Jinja template, `plain` or null"),
        (
            ["--data.prompt.chat_template={{ messages[0].content + 1 }}"],
            "data.train: the chat template cannot be rendered",
        ),
        (["--data.prompt.chat_template={{ bos_token }}"], "data.train: the chat template leaves the question out"),
        (["--data.promt.answer_prefix=a"], r"did you mean `--data\.prompt"),
    ],
)
def test_bad_input_is_told(
    settings: list[str], more: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*settings, *more]) == 2
    assert re.search(message, capsys.readouterr().err)
