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
    assert "2 of 4 reference answers cannot be matched by any completion; the first is '}'" in message


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
