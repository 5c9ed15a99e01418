import json
import os
import time
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_pspo.grading import Verdict, equivalent, extract, grade, last_boxed, parse_number

DATA = Path(os.environ.get("LIGHTNING_PSPO_DATA", Path(__file__).parents[2] / "shared" / "data"))


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("so 5\n#### 72", ("72", "hash")),
        ("#### 1\nno wait\n#### 2\nthanks", ("2", "hash")),
        ("#### 7\n####", ("7", "hash")),  # an empty last line is no answer
        ("it is #### 1", ("1", "hash")),
        ("##### 5", ("5", "hash")),
        (r"\boxed{3} #### \boxed{4}", ("4", "hash")),
        (r"\boxed{3}" + "\n#### 4", ("4", "hash")),
        (r"\boxed{1} and 2 and \boxed{3}, 4", ("3", "boxed")),
        (r"\fbox{9} is it", ("9", "boxed")),
        (r"$\boxed{\left\{1, \frac{a}{b}\right\}}$", (r"\left\{1, \frac{a}{b}\right\}", "boxed")),
        (r"\boxed{\boxed{6}}", ("6", "boxed")),
        (r"\boxed{8} or \boxed{}", ("8", "boxed")),
        (r"\boxed{8} or \boxed{1", ("8", "boxed")),
        (r"only \boxed{1", ("1", "last_number")),
        ("16 - 3 = 13 eggs, 1,300.50 grams.", ("1,300.50", "last_number")),
        ("the change is -4", ("-4", "last_number")),
        ("that is 20-4", ("4", "last_number")),
        ("about 3/4.", ("3/4", "last_number")),
        (r"about $\frac{3}{4}$", (r"\frac{3}{4}", "last_number")),
        ("no idea", (None, "none")),
        ("", (None, "none")),
        ("The area is 12 m^2.", ("12", "last_number")),
        ("The area is 12 m^{2}.", ("12", "last_number")),
        ("The area is 12 m2.", ("12", "last_number")),
        ("so x_1 = 4 and not x_{2}", ("4", "last_number")),
        ("__5__", ("5", "last_number")),  # Markdown, no index
        ("1.5 × 10^3", ("1.5 × 10^3", "last_number")),
        (r"it is 1.5 \times 10^{3}.", (r"1.5 \times 10^{3}", "last_number")),
        ("16 × 10", ("10", "last_number")),
        ("1.5e3", ("1.5e3", "last_number")),
        ("1.5 eggs", ("1.5", "last_number")),
        ("2 1/2", ("2 1/2", "last_number")),
        (r"2 \frac{1}{2}", (r"2 \frac{1}{2}", "last_number")),
        ("from 2 to 1/2", ("1/2", "last_number")),
        ("it is 10^{5}", ("10^{5}", "last_number")),
        ("x^{5}", (None, "none")),
        ("2^{n+1}", ("2^{n+1}", "last_number")),
        (r"\sqrt{2}", (None, "none")),
        (r"4, the square of \sqrt[3]{8}", ("4", "last_number")),
        (r"3\sqrt{2}", (r"3\sqrt{2}", "last_number")),
        (r"an area of 9\pi", (r"9\pi", "last_number")),
        (r"90^\circ", ("90", "last_number")),
        (r"90^{\circ}", ("90", "last_number")),
        ("x = - 7", ("-7", "last_number")),
        ("x: - 7", ("-7", "last_number")),
        ("(- 7)", ("-7", "last_number")),
        ("- 7", ("-7", "last_number")),
        ("so\n− 7", ("-7", "last_number")),
        ("the answer is - $7", ("-7", "last_number")),
        ("3 - 7", ("7", "last_number")),
        ("x - 7", ("7", "last_number")),
        ("3 apples - 7", ("7", "last_number")),
        ("(3) - 7", ("7", "last_number")),
        ("y" * 60 + " - 7", ("7", "last_number")),
    ],
)
def test_extract(completion, expected):
    assert extract(completion) == expected


def test_a_cut_off_last_line_is_graded_as_it_stands():
    assert grade("#### 1", "18").verdict is Verdict.WRONG
    assert grade("#### 18", "18").correct
    assert grade("thinking", "18").verdict is Verdict.NO_ANSWER


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("25", Fraction(25)),
        ("025", Fraction(25)),
        ("+3", Fraction(3)),
        ("-3.50", Fraction(-7, 2)),
        ("−7", Fraction(-7)),  # U+2212
        (".5", Fraction(1, 2)),
        ("1,234,567", Fraction(1234567)),
        (r"10,\!080", Fraction(10080)),
        ("10{,}080", Fraction(10080)),
        ("$18.90", Fraction(189, 10)),
        (r"\$32,\!348", Fraction(32348)),
        ("-$5", Fraction(-5)),
        (r"50\%", Fraction(50)),
        ("18.", Fraction(18)),
        ("**18**", Fraction(18)),
        ("7/4", Fraction(7, 4)),
        ("-7/4", Fraction(-7, 4)),
        (r"\frac{-7}{4}", Fraction(-7, 4)),
        (r"-\dfrac{7}{4}", Fraction(-7, 4)),
        (r"\frac43", Fraction(4, 3)),
        (r"\frac 59", Fraction(5, 9)),
        ("1 1/2", Fraction(3, 2)),
        (r"-137 \frac{1}{2}", Fraction(-275, 2)),
        ("72 clips", Fraction(72)),
        ("9 (apples)", Fraction(9)),
        (r"5.4 \text{ cents}", Fraction(27, 5)),
        (r"15\mbox{ cm}^2", Fraction(15)),
        (r"90^\circ", Fraction(90)),
        ("x = 5", Fraction(5)),
        ("1.2e3", Fraction(1200)),
        (r"6 \times 10^{-2}", Fraction(3, 50)),
        ("1.5 × 10^3", Fraction(1500)),
        ("10^{5}", Fraction(100000)),
        ("12 apples", Fraction(12)),
        ("45 miles per hour", Fraction(45)),
        ("3 square meters", Fraction(3)),
        ("18 dollars", Fraction(18)),
        ("7 cm", Fraction(7)),
        ("7 cm^2", Fraction(7)),
        ("10 degrees", Fraction(10)),
        ("4 t-shirts", Fraction(4)),
        ("4 pieces of candy", Fraction(4)),
        ("3 quarters", Fraction(3)),  # coins
    ],
)
def test_parse_number(text, value):
    assert parse_number(text) == value


@pytest.mark.parametrize(
    "text",
    [
        "",
        "x",
        "2x",
        "2 pi",
        r"2\pi",
        "3 million",
        "1,2",
        "1,23",
        "12,345,6",
        "1/0",
        r"\frac{1}{0}",
        "5:6",
        "52_8",
        "(1,2)",
        "1e101",
        "1e999999",
        "9" * 101,
        "10**10",
        "2**3",
        "1 2",
        "--5",
        "1.2.3",
        "nan",
        "inf",
        "٣",
        "3i",
        "5 am",
    ],
)
def test_parse_number_refuses(text):
    assert parse_number(text) is None


@given(st.integers(-(10**12), 10**12))
def test_integers_are_read_in_every_spelling_and_told_apart(number):
    assert parse_number(str(number)) == number
    assert equivalent(f"{number:,}", str(number))
    assert equivalent(f"{number}.0", str(number))
    assert equivalent(f"${number} dollars", str(number))
    assert not equivalent(str(number + 1), str(number))
    assert number == 0 or not equivalent(str(-number), str(number))


@given(st.fractions(min_value=-1000, max_value=1000, max_denominator=10**6))
def test_fractions_are_exact(value):
    assert parse_number(f"{value.numerator}/{value.denominator}") == value
    assert parse_number(rf"\frac{{{value.numerator}}}{{{value.denominator}}}") == value


@pytest.mark.parametrize(
    ("candidate", "answer", "same"),
    [
        ("0.333333", "1/3", True),  # off by 3.3e-7
        ("0.3333", "1/3", False),
        ("1000000.5", "1000001", True),  # relative 5e-7
        ("1000000", "1000001", False),  # integers are exact
        ("-0.5", "0.5", False),
        ("50", "0.5", False),
        ("50", r"50\%", True),
        ("18", "$18", True),
        ("3 1/2", "31/2", False),
        (r"(3,\frac\pi2)", r"\left( 3, \frac{\pi}{2} \right)", False),
        (r"( 3,\dfrac{\pi}{2} )", r"\left( 3, \frac{\pi}{2} \right)", True),
        (r"11\sqrt{2}", r"11\sqrt2", True),
        ("1/2 + x", r"\frac{1}{2}+x", True),
        ("evelyn.", r"\text{Evelyn}", True),
        ("Evelyn", "Eve", False),
        ("x", "X", False),
        ("A", r"\text{(A)}", True),
        ("B", r"\text{(A)}", False),
        ("{x+1}", "x+1", True),
        ("x-1", "x+1", False),
        ("1, 2", "1,2", True),
        ("1,2", "2,1", False),
        ("12", "1 2", False),
        ("5:6", "5:6", True),
        ("23", "2**3", False),
        ("9" * 100_000, "9" * 100_000, True),
        ("9" * 100_000, "9" * 99_999, False),
    ],
)
def test_equivalent(candidate, answer, same):
    assert equivalent(candidate, answer) is same
    assert equivalent(answer, candidate) is same


@pytest.mark.parametrize(
    "candidate",
    [
        *("5 thousands", "5 dozens", "5 dozen", "5 hundreds", "5 tenths", "5 squared", "5 cubed", "5 halves"),
        *(
            "5 degrees below zero",
            "5 or eight",
            "5 (or eight)",
            "5 is wrong it is eight",
            "5 is wrong",
            "5 isn't right",
        ),
        *("5 and eight", "5 but not six", "5 less", "5 less than eight", "5 twenty-one", "5 xy", "5 apples not pears"),
        *(r"5\text{ thousands}", "5 of the many red apples", "5 minus two", "5 binary", "five"),
    ],
)
def test_words_that_change_a_number_are_no_unit(candidate):
    assert not equivalent(candidate, "5")
    assert not grade(f"#### {candidate}", "5").correct
    assert equivalent(candidate, candidate)


HOSTILE = {
    "carets": "^{" * 50_000,
    "indices": "1_" * 50_000,
    "roots": r"1\sqrt{" * 14_000,
    "root indices": r"\sqrt[" * 16_000,
    "mixed": "1 1/" * 25_000,
    "powers": "1 × 10 ^ { " * 9_000,
    "powers of ten": "10^" * 33_000,
    "signs": "= - " * 25_000,
    "mixed digits": "9" * 50_000 + " " + "9" * 50_000,
    "mixed fractions": r"1\frac{1}{1" * 9_000,
    "superscripts": "1²" * 50_000,
    "letters": "m" * 100_000,
    "sign and spaces": "=" + " " * 50_000 + "-" + " " * 50_000 + "1",
    "digits": "9" * 100_000,
    "commas": "1," * 50_000,
    "groups": "1,111" * 20_000,
    "hashes": "#### " * 20_000,
    "hash lines": "####\n" * 20_000,
    "unclosed boxes": r"\boxed{" * 14_000,
    "nested boxes": r"\boxed{" * 12_000 + "}" * 12_000,
    "open box": r"\boxed{" + "{" * 99_000,
    "fractions": r"\frac{1" * 14_000,
    "spaces": " " * 100_000,
    "numbers": "1 " * 50_000,
    "minus": "-" * 100_000,
    "backslashes": "\\" * 100_000,
    "long hash answer": "#### " + "5 " * 50_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_time_is_linear_in_hostile_text(name):
    """Quadratic time would be seconds at this length, linear time is milliseconds."""
    started = time.process_time()
    grade(HOSTILE[name], "5")
    assert time.process_time() - started < 0.5


@pytest.mark.parametrize("text", ["10**10**10", "9" * 100_000, "1e999999", "9e99999999999999", "1/" + "9" * 900])
def test_enormous_numbers_are_not_computed(text):
    started = time.process_time()
    assert parse_number(text) is None
    assert not equivalent(text, "5")
    assert time.process_time() - started < 0.05


@pytest.mark.parametrize("piece", ["1,", "5 ab ", r"\text{", "{", " ", "a ", "1 ", r"\frac1", "^\\circ", "(", "- "])
def test_equivalence_is_quick_up_to_the_length_limit(piece):
    text = (piece * 1000)[:1000]
    started = time.process_time()
    equivalent(text, text[:-1] + "7")
    assert time.process_time() - started < 0.1


@given(st.text(max_size=80), st.text(max_size=20))
def test_any_text_is_graded_and_equal_to_itself(completion, answer):
    verdict = grade(completion, answer)
    assert (verdict.extracted is None) == (verdict.verdict is Verdict.NO_ANSWER) == (verdict.rule == "none")
    assert equivalent(answer, answer)


def _rows(name):
    file = DATA / name
    if not file.is_file():
        pytest.skip(f"{file} is not here")
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(("name", "count"), [("gsm8k/train.jsonl", 7473), ("gsm8k/test.jsonl", 1319)])
def test_gsm8k_solutions_are_correct_against_their_own_answers(name, count):
    rows = _rows(name)
    golds = [row["answer"].split("#### ")[1] for row in rows]
    assert sum(grade(row["answer"], gold).correct for row, gold in zip(rows, golds, strict=True)) == count
    off_by_one = [str(int(gold.replace(",", "")) + 1) for gold in golds]
    assert not any(grade(row["answer"], gold).correct for row, gold in zip(rows, off_by_one, strict=True))


def test_math500_solutions_are_correct_against_their_own_answers():
    rows = _rows("math500/test.jsonl")
    assert all(last_boxed(row["solution"]) == row["answer"].strip() for row in rows)
    assert sum(grade(rf"\boxed{{{row['answer']}}}", row["answer"]).correct for row in rows) == 500
