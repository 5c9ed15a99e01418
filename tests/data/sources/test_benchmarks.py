"""Published benchmarks: their fields, their files, and what is refused."""

from fractions import Fraction

import datasets
import huggingface_hub.constants
import numpy
import pytest
from jsonargparse import ArgumentParser

from lightning_pspo.data.sources import (
    AIME24,
    AMC23,
    GSM8K,
    JSONL,
    MATH,
    MATH500,
    SVAMP,
    ASDiv,
    MinervaMath,
    OlympiadBench,
    PromptSource,
)
from lightning_pspo.errors import InputError
from lightning_pspo.grading import parse_number
from lightning_pspo.types import Problem
from tests.support.rows import real_file, write_rows


def test_gsm8k_takes_the_answer_after_the_marker(tmp_path):
    file = write_rows(
        tmp_path,
        {"question": " How many? ", "answer": "1 #### 2\n3 + 4 = <<3+4=7>>7\n#### 1,007"},
        {"question": "And now?", "answer": "#### -5"},
    )
    assert GSM8K(file).load() == [
        Problem("gsm8k-train-1", "How many?", "1,007"),
        Problem("gsm8k-train-2", "And now?", "-5"),
    ]
    assert GSM8K(file, split="test", limit=1).load()[0].id == "gsm8k-test-1"


@pytest.mark.parametrize("answer", ["so 7", "so 7 ####  "])
def test_gsm8k_row_without_a_marked_answer_is_named(tmp_path, answer):
    file = write_rows(tmp_path, {"question": "a", "answer": "#### 1"}, {"question": "b", "answer": answer})
    with pytest.raises(InputError, match=r"data.jsonl, row 2: field 'answer' must have the final answer after ####"):
        GSM8K(file).load()


def test_math_takes_the_answer_or_the_last_box(tmp_path):
    rows = (
        {"problem": "p", "solution": r"\boxed{1}", "answer": "2"},
        {"problem": "q", "solution": r"\boxed{1} so \boxed{\frac{3}{4}}."},
    )
    assert [problem.answer for problem in MATH(write_rows(tmp_path, *rows)).load()] == ["2", r"\frac{3}{4}"]
    assert MATH500(write_rows(tmp_path, *rows)).load()[1] == Problem("math500-test-2", "q", r"\frac{3}{4}")
    with pytest.raises(InputError, match=r"row 1: must have the field 'answer', or a \\boxed\{\} answer"):
        MATH(write_rows(tmp_path, {"problem": "p", "solution": "It is 3."})).load()


def test_svamp_joins_body_and_question(tmp_path):
    file = write_rows(
        tmp_path,
        {"Body": "A.", "Question": "B?", "question_concat": "A. B? C", "Answer": "145"},
        {"Body": "A.", "Question": "B?", "Answer": 3.0},
    )
    assert SVAMP(file).load() == [Problem("svamp-test-1", "A. B? C", "145"), Problem("svamp-test-2", "A. B?", "3")]


def test_asdiv_strips_the_unit_and_says_how_many_rows_it_leaves_out(tmp_path, caplog):
    answers = ["9 (apples)", "Mrs. Hilt", "5 (cm); 6 (cm)", "-(1/3)", "5:6", "14.2 (sq. m)", "7"]
    file = write_rows(tmp_path, *({"body": "A.", "question": f"B{n}?", "answer": a} for n, a in enumerate(answers)))
    numeric = ASDiv(file).load()
    assert [(problem.id, problem.answer) for problem in numeric] == [
        ("asdiv-validation-1", "9"),
        ("asdiv-validation-6", "14.2"),
        ("asdiv-validation-7", "7"),
    ]
    assert numeric[0].question == "A. B0?"
    assert "kept 3 rows, 4 left out, the first: its answer is not one number" in caplog.text
    everything = [problem.answer for problem in ASDiv(file, numeric_only=False).load()]
    assert everything == ["9", "Mrs. Hilt", "5 (cm); 6 (cm)", "-(1/3)", "5:6", "14.2", "7"]


@pytest.mark.parametrize(
    ("source", "row", "answer"),
    [
        (AIME24, {"problem": "p", "answer": "025"}, "25"),
        (AIME24, {"problem": "p", "answer": 0}, "0"),
        (AMC23, {"problem": "p", "question": "p", "answer": 27.0}, "27"),
        (MinervaMath, {"problem": "p", "solution": r"\boxed{1} or \boxed{4.5e33} ergs"}, "4.5e33"),
        (MinervaMath, {"question": "p", "answer": "1.6"}, "1.6"),
        (OlympiadBench, {"question": "p", "final_answer": ["$2$"], "unit": "km"}, "$2$"),
        (OlympiadBench, {"question": "p", "final_answer": ["1", "$x^2$"], "is_multiple_answer": True}, "1, $x^2$"),
    ],
)
def test_competitions_take_the_fields_of_the_hub(tmp_path, source, row, answer):
    problem = source(write_rows(tmp_path, row)).load()[0]
    assert (problem.question, problem.answer) == ("p", answer)
    assert problem.id.startswith(source.__name__.lower())


@pytest.mark.parametrize(
    ("source", "row", "message"),
    [
        (OlympiadBench, {"question": "p", "final_answer": []}, "row 1: field 'final_answer' must be a list of answers"),
        (OlympiadBench, {"question": "p", "final_answer": ["2", ""]}, "row 1: field 'final_answer' must not be empty"),
        (MinervaMath, {"problem": "p", "solution": "It is 3."}, "row 1: must have the field 'answer', or a"),
        (AMC23, {"question": "p", "answer": ["1", "2"]}, "row 1: field 'answer' must be text or a finite number"),
    ],
)
def test_competition_rows_without_an_answer_are_named(tmp_path, source, row, message):
    with pytest.raises(InputError, match=message):
        source(write_rows(tmp_path, row)).load()


def test_settings_are_checked_before_any_work(tmp_path):
    file = write_rows(tmp_path, {"question": "a", "answer": "#### 1"}, name="data.txt")
    for source in (GSM8K, MATH, MATH500, SVAMP, ASDiv, JSONL):
        with pytest.raises(InputError, match=r"`path` must be a file that exists, got '.*none.jsonl'"):
            source(tmp_path / "none.jsonl")
        with pytest.raises(InputError, match="`limit` must be at least 1, got 0"):
            source(path=write_rows(tmp_path, {}), limit=0)
    with pytest.raises(InputError, match=r"`path` must end in one of .jsonl, .* or not .*, got '.*data.txt'"):
        GSM8K(file)
    with pytest.raises(InputError, match="`path` must be a file"):
        JSONL(tmp_path)
    with pytest.raises(InputError, match="`revision` must not be set beside `path`, got 'main'"):
        GSM8K(write_rows(tmp_path, {}), revision="main")


def test_a_hub_failure_names_the_data_set_and_the_way_out(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    with pytest.raises(
        InputError, match=r"openai/gsm8k \(split test\) cannot be read from the hub.*set `path` of GSM8K"
    ):
        GSM8K(split="test").load()


def test_offset_and_limit_split_a_file(tmp_path):
    rows = [{"question": f"q{number}", "answer": f"#### {number}"} for number in range(5)]
    file = write_rows(tmp_path, *rows)
    first, rest = GSM8K(file, limit=3).load(), GSM8K(file, offset=3).load()
    assert [*first, *rest] == GSM8K(file).load()
    assert [problem.answer for problem in GSM8K(file, offset=1, limit=2).load()] == ["1", "2"]
    with pytest.raises(InputError, match=r"at least one usable row, got none .*5 skipped by `offset`"):
        GSM8K(file, offset=5).load()
    with pytest.raises(InputError, match="`offset` must be at least 0, got -1"):
        GSM8K(file, offset=-1)
    for name, value in (("offset", 1.5), ("offset", False), ("limit", True), ("shuffle_seed", "7")):
        with pytest.raises(InputError, match=f"`{name}` must be a whole number, got {value!r}"):
            GSM8K(file, **{name: value})
    assert GSM8K(file, limit=numpy.int64(3)).load() == first


def test_sources_are_made_from_the_command_line(tmp_path):
    file = write_rows(tmp_path, {"question": "a", "answer": "#### 1"}, {"question": "b", "answer": "#### 2"})
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--source", type=PromptSource)
    base = ["--source.class_path"]
    path = f"--source.init_args.path={file}"
    made = parser.instantiate(parser.parse_args([*base, "lightning_pspo.data.sources.GSM8K", path, "--source.limit=1"]))
    assert made.source.load() == [Problem("gsm8k-train-1", "a", "1")]
    task = ["lightning_pspo.data.sources.Procedural", "--source.task=chain_sum", '--source.settings={"max_terms": 2}']
    made = parser.instantiate(parser.parse_args([*base, *task, "--source.size=3"]))
    assert made.source.settings == {"max_terms": 2}
    assert len(made.source.load()) == 3


@pytest.mark.parametrize(
    ("source", "name", "count", "first"),
    [
        (GSM8K, "gsm8k/train.jsonl", 7473, "72"),
        (GSM8K, "gsm8k/test.jsonl", 1319, "18"),
        (SVAMP, "svamp/test.jsonl", 300, "1"),
        (ASDiv, "asdiv/test.jsonl", 2084, "9"),
        (MATH500, "math500/test.jsonl", 500, r"\left( 3, \frac{\pi}{2} \right)"),
        (AIME24, "extra/aime24.jsonl", 30, "204"),
        (AMC23, "extra/amc23.jsonl", 40, "27"),
        (MinervaMath, "extra/minerva_math.jsonl", 272, "1.6"),
        (OlympiadBench, "extra/olympiadbench.jsonl", 675, "2"),
    ],
)
def test_real_files(source, name, count, first):
    loaded = source(real_file(name))
    problems = loaded.load()
    assert len(problems) == count
    assert problems[0].answer == first
    assert not loaded.unverified
    if source in (GSM8K, SVAMP, ASDiv):
        assert all(parse_number(problem.answer) == Fraction(problem.answer.replace(",", "")) for problem in problems)
