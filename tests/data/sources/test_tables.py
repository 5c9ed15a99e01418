"""JSON Lines files of the user's own, and references that no completion can match."""

import gzip
import lzma

import pyarrow
import pytest
from pyarrow import parquet

from lightning_pspo.data.prompt_format import PromptFormat
from lightning_pspo.data.sources import JSONL, Table
from lightning_pspo.datamodule import MathDataModule
from lightning_pspo.errors import InputError
from lightning_pspo.types import Problem
from tests.support.models import make_tokenizer
from tests.support.rows import write_rows


def test_jsonl_fields_ids_numbers_blank_lines_and_duplicates(tmp_path):
    file = tmp_path / "mine.txt"
    file.write_bytes(
        b'\xef\xbb\xbf{"q": "a", "n": 27.0, "key": 5}\n\n{"q": "a", "n": 2.5, "key": "x"}\r\n'
        b'{"q": "\xc3\xa9\xe2\x80\xa8", "n": -3, "key": "y"}'
    )
    assert JSONL(file, question_field="q", answer_field="n").load() == [
        Problem("mine-1", "a", "27"),
        Problem("mine-3", "a", "2.5"),
        Problem("mine-4", "é", "-3"),
    ]
    assert [
        problem.id for problem in JSONL(file, question_field="q", answer_field="n", id_field="key", limit=2).load()
    ] == ["5", "x"]


def test_equal_ids_are_refused(tmp_path):
    file = write_rows(tmp_path, {"id": 1, "question": "a", "answer": 1}, {"id": 1, "question": "b", "answer": 2})
    with pytest.raises(InputError, match=r"row 2: the id must be unique, got '1' again"):
        JSONL(file, id_field="id").load()


LATEX = '"Find\n$x$, ""please"".","so $x=\\boxed{\\frac{1}{2}}$",007'


@pytest.mark.parametrize("suffix", ["", ".gz", ".xz"])
def test_csv_keeps_newlines_quotes_latex_and_leading_zeros(tmp_path, suffix):
    file = tmp_path / f"mine.csv{suffix}"
    opener = {"": open, ".gz": gzip.open, ".xz": lzma.open}[suffix]
    with opener(file, "wb") as stream:
        stream.write(f"\ufeffproblem,answer,code\n{LATEX}\n".encode())
    assert Table(file).load() == [Problem("mine-1", 'Find\n$x$, "please".', r"\frac{1}{2}")]
    assert Table(file, question="{problem} ({code})").load()[0].question.endswith("(007)")
    assert Table(file, answer_rule="plain").load()[0].answer == r"so $x=\boxed{\frac{1}{2}}$"
    with pytest.raises(InputError, match="must have the final answer after ####"):
        Table(file, answer_rule="hash").load()


@pytest.mark.parametrize(
    ("content", "settings", "message"),
    [
        ("question,answer\nHow many, then?,5\n", {}, "row 1: must have 2 fields as the header has, got more"),
        ("question;answer\na;5\n", {}, "is its `delimiter` ';'"),
        ("question;answer\na;3,5\n", {}, "got more: is its `delimiter` ';'"),
        ("a,a\n1,2\n", {}, "names of the columns must be unique"),
        ("question,answer\na,5\n", {"answer": "anwser"}, r"\['answer', 'question'\]; did you mean 'answer'"),
        ("question,answer\na,5\n", {"question": "{question} {answer}", "answer": "answer"}, "must not contain"),
        ("question,answer\na,5\n", {"question": "{answer}?"}, "must not contain the column of the answer"),
        ("question,answer\na,5\n", {"filter": "levle = 1"}, "`filter`: unknown column `levle`"),
        ("question,answer\na,5\n", {"filter": "answer > random()"}, "the same rows at any time, without random"),
        ("question,answer\na,5\n", {"filter": "current_date > answer"}, "without current_date, .*`shuffle_seed`"),
        ("question,answer\na,\n", {"unusable": "skip"}, "1 left out, the first: .*must not be empty"),
    ],
    ids=[
        "comma",
        "semicolon",
        "comma_within",
        "twice",
        "typo",
        "leak",
        "leak_by_default",
        "filter",
        "chance",
        "clock",
        "nothing_left",
    ],
)
def test_faults_of_a_table_are_said_in_one_line(tmp_path, content, settings, message):
    file = tmp_path / "mine.csv"
    file.write_text(content)
    with pytest.raises(InputError, match=message):
        Table(file, **settings).load()


def test_a_folder_as_on_the_hub_with_nested_answers_and_conversations(tmp_path):
    (tmp_path / "data").mkdir()
    for part in range(2):
        turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": f"q{part}"}]
        rows = [{"prompt": turns, "reward_model": {"ground_truth": f"{part}.0"}, "level": part}]
        parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "data" / f"train-0000{part}-of-00002.parquet")
    problems = Table(tmp_path).load()
    assert [(p.question, p.answer, p.system) for p in problems] == [
        ("q0", "0.0", "Be brief."),
        ("q1", "1.0", "Be brief."),
    ]
    assert Table(tmp_path / "data" / "train-*.parquet", filter="level > 0").load() == problems[1:]
    with pytest.raises(InputError, match="has no split 'test'; set `split` to one of train"):
        Table(tmp_path, split="test").load()


def test_a_shuffled_table_has_the_same_rows_and_ids_in_another_order(tmp_path):
    rows = [{"question": f"q{number}", "answer": number} for number in range(20)]
    file = write_rows(tmp_path, *rows)
    plain, shuffled = Table(file).load(), Table(file, shuffle_seed=3).load()
    assert plain == JSONL(file).load()
    assert shuffled != plain
    assert sorted(shuffled, key=lambda p: int(p.answer)) == plain
    assert Table(file, shuffle_seed=3, offset=5, limit=4).load() == shuffled[5:9]


def test_the_system_turn_of_the_data_is_used_unless_the_run_has_one(tmp_path):
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "1 + 1?"}]
    source = Table(write_rows(tmp_path, {"prompt": turns, "answer": 2}))
    (problem,) = source.load()
    for system, text in ((None, "Be brief."), ("Be kind.", "Be kind.")):
        data = MathDataModule(make_tokenizer(), train=source, prompt=PromptFormat(system_prompt=system))
        assert data.prompts.text(problem).startswith(f"{text}\n\nQuestion: 1 + 1?")
