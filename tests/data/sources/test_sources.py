import hashlib
import json
import os
from fractions import Fraction
from pathlib import Path

import datasets
import huggingface_hub.constants
import pyarrow
import pytest
from jsonargparse import ArgumentParser
from pyarrow import parquet

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
    Procedural,
    PromptSource,
    held_out,
)
from lightning_pspo.errors import InputError
from lightning_pspo.grading import parse_number
from lightning_pspo.types import Problem

DATA = Path(os.environ.get("LIGHTNING_PSPO_DATA", Path(__file__).parents[4] / "shared" / "data"))


def write(folder, *rows, name="data.jsonl"):
    file = folder / name
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return file


def test_gsm8k_takes_the_answer_after_the_marker(tmp_path):
    file = write(
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
    file = write(tmp_path, {"question": "a", "answer": "#### 1"}, {"question": "b", "answer": answer})
    with pytest.raises(InputError, match=r"data.jsonl, row 2: field 'answer' must have the final answer after ####"):
        GSM8K(file).load()


def test_math_takes_the_answer_or_the_last_box(tmp_path):
    rows = (
        {"problem": "p", "solution": r"\boxed{1}", "answer": "2"},
        {"problem": "q", "solution": r"\boxed{1} so \boxed{\frac{3}{4}}."},
    )
    assert [problem.answer for problem in MATH(write(tmp_path, *rows)).load()] == ["2", r"\frac{3}{4}"]
    assert MATH500(write(tmp_path, *rows)).load()[1] == Problem("math500-test-2", "q", r"\frac{3}{4}")
    with pytest.raises(InputError, match=r"row 1: must have the field 'answer', or a \\boxed\{\} answer"):
        MATH(write(tmp_path, {"problem": "p", "solution": "It is 3."})).load()


def test_svamp_joins_body_and_question(tmp_path):
    file = write(
        tmp_path,
        {"Body": "A.", "Question": "B?", "question_concat": "A. B? C", "Answer": "145"},
        {"Body": "A.", "Question": "B?", "Answer": 3.0},
    )
    assert SVAMP(file).load() == [Problem("svamp-test-1", "A. B? C", "145"), Problem("svamp-test-2", "A. B?", "3")]


def test_asdiv_strips_the_unit_and_says_how_many_rows_it_leaves_out(tmp_path, caplog):
    answers = ["9 (apples)", "Mrs. Hilt", "5 (cm); 6 (cm)", "-(1/3)", "5:6", "14.2 (sq. m)", "7"]
    file = write(tmp_path, *({"body": "A.", "question": f"B{n}?", "answer": a} for n, a in enumerate(answers)))
    numeric = ASDiv(file).load()
    assert [(problem.id, problem.answer) for problem in numeric] == [
        ("asdiv-validation-1", "9"),
        ("asdiv-validation-6", "14.2"),
        ("asdiv-validation-7", "7"),
    ]
    assert numeric[0].question == "A. B0?"
    assert "left out 4 rows" in caplog.text
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
    problem = source(write(tmp_path, row)).load()[0]
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
        source(write(tmp_path, row)).load()


def test_references_that_no_completion_can_match_are_kept_and_counted_by_kind(tmp_path, caplog):
    rows = [{"question": str(index), "answer": answer} for index, answer in enumerate(["1", "2", "}", "say\nso {x"])]
    source = JSONL(write(tmp_path, *rows))
    source.load()
    assert [problem.question for problem in source.unverified] == ["2", "3"]
    (message,) = [record.getMessage() for record in caplog.records]
    assert "2 of 4 reference answers do not verify against themselves (expression: 2); the first is '}'" in message


def test_jsonl_fields_ids_numbers_blank_lines_and_duplicates(tmp_path):
    file = tmp_path / "mine.txt"
    file.write_bytes(
        b'\xef\xbb\xbf{"q": "a", "n": 27.0, "key": 5}\n\n{"q": "a", "n": 2.5, "key": "x"}\r\n'
        b'{"q": "\xc3\xa9\xe2\x80\xa8", "n": -3, "key": "y"}'
    )
    assert JSONL(file, "q", "n").load() == [
        Problem("mine-1", "a", "27"),
        Problem("mine-3", "a", "2.5"),
        Problem("mine-4", "é", "-3"),
    ]
    assert [problem.id for problem in JSONL(file, "q", "n", id_field="key", limit=2).load()] == ["5", "x"]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "must have at least one usable row, got none"),
        (b"\n \n", "must have at least one usable row, got none"),
        (b'{"question": "a", "answer": "1"}\n{"question": "b", "ans', "data.jsonl, line 2: malformed JSON"),
        (b'{"question": "a", "answer": 1}\n\n{"question": "\xff", "answer": 1}', r"line 3: not UTF-8 \(byte 15"),
        (b"[1]\n", "line 1: must be a JSON object, got "),
        (b"[" * 100_000, "line 1: malformed JSON"),
        (b'{"question": "a", "answer": ' + b"9" * 5000 + b"}", "line 1: malformed JSON"),
        (b'{"question": "a"}', r"row 1: must have the field 'answer', got \['question'\]"),
        (b'{"question": "  ", "answer": "1"}', "row 1: field 'question' must not be empty"),
        (b'{"question": "a", "answer": ""}', "row 1: field 'answer' must not be empty"),
        (b'{"question": "a", "answer": null}', "field 'answer' must be text or a finite number, got 'None'"),
        (b'{"question": "a", "answer": true}', "field 'answer' must be text or a finite number, got 'True'"),
        (b'{"question": "a", "answer": NaN}', "field 'answer' must be text or a finite number, got 'nan'"),
        (b'{"question": ["a"], "answer": 1}', "field 'question' must be text or a finite number"),
        (b'{"question": "\\ud800", "answer": 1}', "field 'question' must be valid Unicode"),
    ],
)
def test_jsonl_errors_name_file_and_row(tmp_path, content, message):
    file = tmp_path / "data.jsonl"
    file.write_bytes(content)
    with pytest.raises(InputError, match=message) as error:
        JSONL(file).load()
    assert str(file) in str(error.value)
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 400 + len(str(file))


def test_equal_ids_are_refused(tmp_path):
    file = write(tmp_path, {"id": 1, "question": "a", "answer": 1}, {"id": 1, "question": "b", "answer": 2})
    with pytest.raises(InputError, match=r"row 2: the id must be unique, got '1' again"):
        JSONL(file, id_field="id").load()


def test_every_file_format_gives_the_same_problems(tmp_path):
    rows = [{"question": 'a, "b"\nc?', "answer": "#### 025"}, {"question": "d?", "answer": "x\n#### 1,234"}]
    (tmp_path / "array [1].json").write_text(json.dumps(rows, indent=1), encoding="utf-8")
    write(tmp_path, *rows, name="lines.json")
    quoted = "".join('"{}","{}"\n'.format(*(row[k].replace('"', '""') for k in ("question", "answer"))) for row in rows)
    (tmp_path / "table.csv").write_text("question,answer\n" + quoted, encoding="utf-8")
    parquet.write_table(pyarrow.Table.from_pylist(rows), tmp_path / "table.parquet")
    expected = [Problem("gsm8k-train-1", 'a, "b"\nc?', "025"), Problem("gsm8k-train-2", "d?", "1,234")]
    for name in ("array [1].json", "lines.json", "table.csv", "table.parquet"):
        assert GSM8K(tmp_path / name).load() == expected, name


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", b'[{"question": "a"},\n{"question" 1}]', "malformed JSON: .*line 2"),
        ("a.json", b'[{"question": "a"},\n{"question": "\xff"}]', "line 2: not UTF-8"),
        ("a.json", b'[{"question": "a", "answer": "#### 1"}, 5]', "row 2: must be a JSON object, got '5'"),
        ("a.csv", b'question,answer\na,#### 1\nb,"c', "row 2: malformed CSV"),
        ("a.csv", b"question,answer\na,#### 1\nb\n", "row 2: must have the field 'answer'"),
        ("a.csv", b"question,answer\n\xff,#### 1\n", "not UTF-8"),
        ("a.parquet", b"PAR1 but not really", "malformed Parquet"),
    ],
)
def test_malformed_files_of_other_formats_are_named(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"{name}.*{message}"):
        GSM8K(tmp_path / name).load()


def test_settings_are_checked_before_any_work(tmp_path):
    file = write(tmp_path, {"question": "a", "answer": "#### 1"}, name="data.txt")
    for source in (GSM8K, MATH, MATH500, SVAMP, ASDiv, JSONL):
        with pytest.raises(InputError, match=r"`path` must be a file that exists, got '.*none.jsonl'"):
            source(tmp_path / "none.jsonl")
        with pytest.raises(InputError, match="`limit` must be at least 1, got 0"):
            source(path=write(tmp_path, {}), limit=0)
    with pytest.raises(InputError, match=r"`path` must end in one of .jsonl, .json, .csv, .parquet, got '.*data.txt'"):
        GSM8K(file)
    with pytest.raises(InputError, match="`path` must be a file"):
        JSONL(tmp_path)
    with pytest.raises(InputError, match="`revision` must not be set beside `path`, got 'main'"):
        GSM8K(write(tmp_path, {}), revision="main")


def test_a_hub_failure_names_the_data_set_and_the_way_out(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path)
    with pytest.raises(
        InputError, match=r"openai/gsm8k \(split test\) cannot be read from the hub.*Set `path` of GSM8K"
    ):
        GSM8K(split="test").load()


def test_names_say_where_the_rows_come_from(tmp_path):
    assert GSM8K(split="test").name == "GSM8K (openai/gsm8k, split test)"
    assert JSONL(write(tmp_path, {})).name == f"JSONL ({tmp_path / 'data.jsonl'})"
    assert Procedural("chain_sum", seed=3, split="train").name == "Procedural (chain_sum, split train, seed 3)"


def test_procedural_answers_are_the_sums_that_the_questions_ask_for():
    problems = Procedural("chain_sum", size=50, seed=7, settings={"max_terms": 3, "max_digits": 2}).load()
    assert len({problem.question for problem in problems}) == len({problem.id for problem in problems}) == 50
    for problem in problems:
        terms = problem.question.split(": ")[1].removesuffix(" =").replace("- ", "-").replace("+ ", "").split()
        assert sum(map(int, terms)) == int(problem.answer)
    assert problems == Procedural("chain_sum", 50, 7, {"max_digits": 2, "max_terms": 3}).load()


def test_procedural_splits_share_no_question():
    settings = {"max_terms": 2, "max_digits": 2}
    train = {p.question for seed in (0, 1) for p in Procedural("chain_sum", 800, seed, settings, "train").load()}
    test = {p.question for seed in (0, 5) for p in Procedural("chain_sum", 100, seed, settings, "test").load()}
    assert not train & test
    assert all(int(hashlib.sha256(question.encode()).hexdigest()[:16], 16) % 10 == 0 for question in test)
    assert not any(held_out(question) for question in train)


def test_procedural_says_how_many_questions_there_are():
    settings = {"max_terms": 2, "max_digits": 1}  # 10 * 10 pairs of digits, plus or minus: 200 questions
    every = Procedural("chain_sum", 200, settings=settings).load()
    assert len(every) == 200
    with pytest.raises(InputError, match=r"`size` of task chain_sum .*got 201; \d+ draws gave 200"):
        Procedural("chain_sum", 201, settings=settings).load()
    test = sum(held_out(problem.question) for problem in every)
    with pytest.raises(InputError, match=rf"split test\), got 100; \d+ draws gave {test}\."):
        Procedural("chain_sum", 100, settings=settings, split="test").load()
    assert len(Procedural("chain_sum", test, settings=settings, split="test").load()) == test


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"task": "chain_sums"}, r"got 'chain_sums' \(nearest: chain_sum, "),
        ({"task": "chain_sum", "settings": {"max_term": 2}}, "must be among allow_negation, .*; got 'max_term'"),
        ({"task": "chain_sum", "settings": {"seed": 2}}, "got 'seed'"),
        ({"task": "chain_sum", "settings": {"max_terms": 0}}, "are refused: max_terms must be >= min_terms"),
        ({"task": "chain_sum", "settings": {"max_terms": "a"}}, "are refused: '>=' not supported"),
        ({"task": "chain_sum", "size": 0}, "`size` must be at least 1, got 0"),
        ({"task": "chain_sum", "seed": -1}, "`seed` must be at least 0, got -1"),
    ],
)
def test_procedural_settings_are_checked_at_once(arguments, message):
    with pytest.raises(InputError, match=message):
        Procedural(**arguments)


def test_procedural_task_without_a_reference_answer_is_refused():
    with pytest.raises(
        InputError, match=r"task graph_color must give a question and one reference answer, got .* None"
    ):
        Procedural("graph_color", 3).load()


def test_sources_are_made_from_the_command_line(tmp_path):
    file = write(tmp_path, {"question": "a", "answer": "#### 1"}, {"question": "b", "answer": "#### 2"})
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--source", type=PromptSource)
    base = ["--source.class_path"]
    made = parser.instantiate(
        parser.parse_args(
            [*base, "lightning_pspo.data.sources.GSM8K", f"--source.init_args.path={file}", "--source.limit=1"]
        )
    )
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
    if not (DATA / name).is_file():
        pytest.skip(f"{DATA / name} is not here")
    loaded = source(DATA / name)
    problems = loaded.load()
    assert len(problems) == count
    assert problems[0].answer == first
    assert not loaded.unverified
    if source in (GSM8K, SVAMP, ASDiv):
        assert all(parse_number(problem.answer) == Fraction(problem.answer.replace(",", "")) for problem in problems)
