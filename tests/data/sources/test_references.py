"""References that no completion can match."""

import pytest

from lightning_pspo.data.sources import JSONL
from tests.support.rows import write_rows


def test_references_that_no_completion_can_match_are_kept_and_counted(tmp_path, caplog):
    rows = [{"question": str(index), "answer": answer} for index, answer in enumerate(["1", "2", "}", "say\nso {x"])]
    source = JSONL(write_rows(tmp_path, *rows))
    source.load()
    assert [problem.question for problem in source.unverified] == ["2", "3"]
    (message,) = [record.getMessage() for record in caplog.records]
    assert (
        "2 of 4 reference answers cannot be matched by any completion, or stand for none; the first is '}'" in message
    )


@pytest.mark.parametrize(
    "answer",
    ["So the answer is 5.", "5 apples are left", r"\text{5 apples are left}", "It is 7", "It's 5", "Step 2: 5"],
)
def test_a_sentence_around_a_number_cannot_be_matched(tmp_path, answer):
    source = JSONL(write_rows(tmp_path, {"question": "How many are left?", "answer": answer}))
    source.load()
    assert [problem.answer for problem in source.unverified] == [answer]


@pytest.mark.parametrize(
    "answer",
    [
        *(
            "5 apples",
            "5 (apples)",
            "45 miles per hour",
            "3 hours and 20 minutes",
            "3:30 p.m.",
            "They are equal",
            "x = 5",
        ),
        *("all real numbers except 0", r"\text{all real numbers except } 0", "any integer n not divisible by 3"),
        *(
            "all primes p with p > 2",
            "x: 5, y: 6",
            "Tom's",
            "every number except 1",
            "x is a real number greater than 3",
            "10 am on May 5",
        ),
    ],
)
def test_an_answer_with_words_may_be_matched(tmp_path, answer):
    source = JSONL(write_rows(tmp_path, {"question": "How many are left?", "answer": answer}))
    source.load()
    assert not source.unverified


@pytest.mark.parametrize(
    "answer",
    [
        *(
            "N/A",
            r"\text{n.a.}",
            "TBD",
            "(see above)",
            "Not available",
            "?",
            "...",
            "___",
            "#DIV/0!",
            "[object Object]",
        ),
        *(r"\boxed{}", r"So it is \boxed{ }.", "5 + 5 ####", "$$", r"\text{}", "None", "nan", "unknown", "-"),
    ],
)
def test_what_stands_for_a_missing_answer_cannot_be_matched(tmp_path, answer):
    rows = [{"question": "How many are left?", "answer": text} for text in ("5", answer)]
    source = JSONL(write_rows(tmp_path, *rows))
    source.load()
    assert [problem.answer for problem in source.unverified] == [answer]


@pytest.mark.parametrize(
    ("question", "answer"),
    [
        ("Which of these are prime? If there is none, say so.", "None"),
        ("Is it true, false or unknown?", "Unknown"),
        ("Express the share in terms of n and a.", "n/a"),
        ("Solve it.", r"\text{none}"),
        ("Solve it.", "undefined"),
        ("Solve it.", "{}"),
        ("Sort the words.", "[]"),
        ("Is it right?", "\u2705"),
        ("Which sign fits?", "<"),
    ],
)
def test_an_answer_that_only_looks_like_a_missing_one_may_be_matched(tmp_path, question, answer):
    source = JSONL(
        write_rows(tmp_path, {"question": "2 + 3?", "answer": "5"}, {"question": question, "answer": answer})
    )
    source.load()
    assert not source.unverified


def test_among_words_a_word_for_nothing_is_an_answer(tmp_path):
    answers = ("Monday", "None", "Unknown")
    source = JSONL(write_rows(tmp_path, *({"question": "Which day?", "answer": answer} for answer in answers)))
    source.load()
    assert not source.unverified
