"""Hostile text, real data and endings of real answers, through the whole grader."""

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_pspo.grading import Attempt, Grader, Verdict, equivalent, extract, grade, last_boxed, parse_number, quick
from tests.support.rows import real_rows

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
    "statements": "the answer is " * 7_000,
    "empty statements": "Answer:\n\n" * 11_000,
    "statement and numbers": "the answer is " + "5 " * 50_000,
    "dollars": "$x" * 50_000,
    "displays": "\\[ " * 33_000,
    "inline": "\\( x " * 20_000,
    "bare boxes": "\\boxed 4 " * 11_000,
    "many boxes": "\\boxed{4}, " * 9_000,
    "thoughts": "</think>" * 12_000,
    "tuples": "(1," * 33_000 + "5",
    "solutions": "$x = 1$ and " * 8_000,
    "ends of environments": "= 1 \\end{align}" * 6_000,
    "programs": "```python\n" * 10_000,
    "tagged programs": "<llm-code>" * 10_000,
    "clauses": "it has a few more " * 6_000 + "5",
    "stated clauses": "Answer: it will have 5 in 6 so that " * 3_000,
    "equations": "5 + = 1 " * 14_000,
    "environments": r"\begin{align} 1 = " * 6_000,
    "stated environments": r"answer: \begin{align} 1 = " * 4_000,
    "ratios": "1:2:3" * 20_000,
    "escaped dollars": r"$\$" * 33_000,
    "final answers": r"\boxed{5} final answer is 5 " * 4_000,
    "outputs": "```output\n5\n```\n5 of 6" * 5_000,
    "thoughts cut off": "</think> (5" * 10_000,
    "null bytes": "\x00" * 100_000 + "5",
    "directions": "\u202e5\u202c" * 33_000,
}


@pytest.mark.parametrize("name", HOSTILE)
def test_time_is_linear_in_hostile_text(name):
    """Quadratic time would be seconds at this length, linear time is milliseconds."""
    started = time.process_time()
    extracted, _ = extract(HOSTILE[name])
    quick(extracted or "", "5")
    extract(HOSTILE[name], "strict")
    assert time.process_time() - started < 2


@pytest.mark.parametrize("text", ["10**10**10", "9" * 100_000, "1e999999", "9e99999999999999", "1/" + "9" * 900])
def test_enormous_numbers_are_not_computed(text):
    started = time.process_time()
    assert parse_number(text) is None
    assert not equivalent(text, "5")
    assert time.process_time() - started < 0.05


@pytest.mark.parametrize(
    "piece",
    [
        *("1,", "5 ab ", r"\text{", "{", " ", "a ", "1 ", r"\frac1", "^\\circ", "(", "- ", "[1,", r"\{", "x=", r"\pm "),
        *("1,2;", r"\begin{pmatrix}", "&", r"\\", r"\cup ", "=", "^", "²", "sqrt(", r"\sqrt[", "%", "**", "A)", "_"),
        *(r"\begin{align}", r"\end{align}", r"\tag{", "f(", "1e", r"\text{V}", r"\color{"),
        *("=x", r"\equiv ", "(1,", ")^T"),
    ],
)
def test_quick_is_quick_up_to_the_length_limit(piece):
    text = (piece * 1000)[:1000]
    started = time.process_time()
    quick(text, text[:-1] + "7")
    quick(text, "5")
    quick(text, "(1, 2)")
    assert time.process_time() - started < 0.5


@given(st.text(max_size=80), st.text(max_size=20))
def test_any_text_is_graded(completion, answer):
    for mode in ("lenient", "strict"):
        verdict = grade(completion, answer, mode)
        assert (verdict.extracted is None) == (verdict.verdict is Verdict.NO_ANSWER) == (verdict.rule == "none")


@pytest.mark.parametrize(("name", "count"), [("gsm8k/train.jsonl", 7473), ("gsm8k/test.jsonl", 1319)])
def test_gsm8k_solutions_are_correct_against_their_own_answers(name, count):
    rows = real_rows(name)
    golds = [row["answer"].split("#### ")[1] for row in rows]
    assert sum(grade(row["answer"], gold).correct for row, gold in zip(rows, golds, strict=True)) == count
    off_by_one = [str(int(gold.replace(",", "")) + 1) for gold in golds]
    assert not any(grade(row["answer"], gold).correct for row, gold in zip(rows, off_by_one, strict=True))


@pytest.mark.parametrize("name", ["gsm8k/train.jsonl", "gsm8k/test.jsonl"])
def test_gsm8k_solutions_without_their_marker_say_their_answers(name):
    """The figure of a plain last number is 97.2 %."""
    parts = [re.sub("<<.*?>>", "", row["answer"]).split("\n#### ") for row in real_rows(name)]
    assert sum(grade(solution, gold).correct for solution, gold in parts) >= 0.993 * len(parts)


def test_math500_solutions_are_correct_against_their_own_answers():
    rows = real_rows("math500/test.jsonl")
    assert all(last_boxed(row["solution"]) == row["answer"].strip() for row in rows)
    assert sum(grade(rf"\boxed{{{row['answer']}}}", row["answer"]).correct for row in rows) == 500


GOLDS = {
    "gsm8k/test.jsonl": lambda row: (row["question"], [row["answer"].split("#### ")[1]]),
    "svamp/all.jsonl": lambda row: (row["question_concat"], [row["Answer"]]),
    "asdiv/test.jsonl": lambda row: (f"{row['body']} {row['question']}", [row["answer"]]),
    "math500/test.jsonl": lambda row: (row["problem"], [row["answer"]]),
    "math/test_minus_math500.jsonl": lambda row: (row["problem"], [row["answer"]]),
    "extra/aime24.jsonl": lambda row: (row["problem"], [row["answer"]]),
    "extra/amc23.jsonl": lambda row: (row["question"], [str(row["answer"])]),
    "extra/minerva_math.jsonl": lambda row: (row["problem"], [last_boxed(row["solution"])]),
    "extra/olympiadbench.jsonl": lambda row: (row["question"], row["final_answer"]),
}
"""Question and golds of a row."""


@pytest.mark.parametrize("name", GOLDS)
def test_golds_equal_themselves_however_they_are_spelled_and_echoes_are_wrong(name):
    right, wrong = [], []
    for question, golds in map(GOLDS[name], real_rows(name)):
        for gold in golds:
            other = gold.replace(r"\frac", r"\dfrac").replace("(", r"\left( ").replace(")", r"\right)")
            assert quick(f"$ {other} $.", gold) is True
            right += [Attempt(rf"\boxed{{{text}}}", gold, question) for text in (gold, other)]
            wrong += [Attempt(text, gold, question) for text in (question, rf"\boxed{{{question}}}")]
    with Grader() as grader:
        assert [attempt for attempt, grade in zip(right, grader.grade(right), strict=True) if not grade.correct] == []
        assert [attempt for attempt, grade in zip(wrong, grader.grade(wrong), strict=True) if grade.correct] == []


@pytest.mark.parametrize("name", ["math500/test.jsonl", "extra/olympiadbench.jsonl"])
def test_changed_golds_are_told_apart(name):
    for gold in (gold for row in real_rows(name) for gold in GOLDS[name](row)[1]):
        assert quick(gold + "+1", gold) is not True
        assert quick(gold + ", 917", gold) is not True


ENDINGS = r"""
printed: 18 => 18 | [1, 2] => 1,2 | 2*sqrt(3) => 2\sqrt{3} | sqrt(3)/2 => \frac{\sqrt{3}}{2} | 3*pi/4 => \frac{3\pi}{4}
    x**2 + 1 => x^2+1 | (3, 4) => (3,4) | {-1, 2} => -1,2 | True => \text{Yes} | 1/3 => \frac13
    0.333333333333333 => \frac13 | -oo => -\infty | I => i | 1 + 2*I => 1+2i | Tuesday => Tuesday
    Rational(1, 2) => \frac12 | Matrix([[1, 2], [3, 4]]) => \begin{pmatrix} 1 & 2 \\ 3 & 4 \end{pmatrix}
    Interval.open(-1, 2) => (-1,2) | [(1, 2), (3, 4)] => (1,2),(3,4)
marker: The farm earns $\boxed{18}$ dollars a day. => 18 | #### 1,800 => 1800 | #### $1,800.00 => 1800
    The final answer is: \[ \boxed{\dfrac{3}{4}} \] => 0.75
    Answer: \boxed{(3, \frac{\pi}{2})} => \left( 3, \frac{\pi}{2} \right)
    it seems \boxed{3}, but it is \boxed{4} => 4 | the answer is \boxed{}. It must be 42 => 42 | \boxed{} 1/2 => 0.5
    \boxed 5 => 5 | hence boxed(42). => 42
stated: Final Answer: The final answer is $5$. I hope it is correct. => 5
    Final Answer: The final answer is $\frac{\sqrt{3}}{2}$. I hope it is correct. => \frac{\sqrt{3}}{2}
    The answer is: $18 => 18 | The answer is $18.00. => 18 | **Answer: 18** => 18 | The answer is \(18\). => 18
    The answer is 18 eggs, since 16 - 3 + 5 = 18. => 18 | The answer is (C) 42. => C | Answer: B => \text{(B)}
    Therefore, the answer is $x = 5$ or $x = -3$. => -3, 5 | The answer is $\text{Clara}$. => \text{Clara}
    the answer is Clara. => \text{Clara} | The answer is 50%. => 0.5 | The answer is 2:3. => 2:3 | A: 90,000 => 90000
    So the answer is 7. I needed 3 lines. => 7 | The answer is $-\frac{2}{3}$. => -2/3 | <answer>4</answer> => 4
    <answer> \frac{1}{2} </answer> => 0.5 | ANSWER: 7 => 7
free text: so she uses 3/4 cup. => \frac{3}{4} | Therefore x = 5 => 5 | She earns = 18 dollars => 18 | **18** => 18
    The gain is **$70,000**. => 70000 | The chance is **1/4**. => \frac14 | The correct option is (C). => C
    She saves 50% => 1/2 | It takes 12 days. => 12 | We find \(r=3\), that is, a radius of 3 units. => 3
    The value \(a = 41\) fits. => 41 | All of \([-2, 7]\). => [-2,7] | The sum is 3 + 4 = 7 units => 7
"""
"""A kind, then pairs of an end as models write it and a reference that it matches; an indented line goes on."""
OTHER_ENDINGS = [
    (
        "tool and text",
        "```python\nprint(total)\n```\n```output\n18\n```\nThe farm earns $\\boxed{18.0}$ dollars.",
        "18",
        True,
    ),
    (
        "tool and text",
        "```python\nprint(x)\n```\n```output\n13.166666666666668\n```\nThe younger one is $\\boxed{13}$.",
        "13",
        True,
    ),
    ("tool and text", "```python\nprint(x)\n```\n```output\n18\n```\nThe answer is $\\boxed{19}$.", "18", False),
    ("tool and text", "```python\nprint(x)\n```\n```output\n5\n```\nThey eat 5 cups.", "5", True),
    ("tool and text", "```python\nx = 16\nprint(x - 9)\n```\n```output\n7\n```\nThe answer is 7.", "7", True),
    ("few-shot", "So the answer is 5.\n\nQuestion: What is 3 + 8?\nAnswer: 3 + 8 = 11. The answer is 11.", "5", True),
    ("few-shot", "The answer is 5.\n\nQ: What is 3 + 8?\nA: 3 + 8 = 11. The answer is 11.", "5", True),
    ("few-shot", "There remain 5. The answer is 5.\n\nQ: What is 3 + 8?\nA: The answer is 11.", "11", False),
    ("few-shot", "\nThe total is 42.\n#### 42\n\nQuestion: What is 3 * 2?\nAnswer: 3 * 2 = 6\n#### 6", "42", True),
    ("few-shot", "Thus \\boxed{7}.\n\nProblem: Find 2+2.\nSolution: \\boxed{4}.", "7", True),
    (
        "few-shot",
        "Final Answer: The final answer is $5$. I hope it is correct.\n\nProblem:\nWhat is $1+1$?\n\n"
        "Solution:\nFinal Answer: The final answer is $2$.",
        "5",
        True,
    ),
    ("few-shot", "She has 10 apples.\n\nThe answer is 10.\n\n\nHuman: next?\nAssistant: 12", "10", True),
    ("marker", "<think>maybe \\boxed{3}</think>\nThe answer is \\boxed{4}.", "4", True),
    ("stated", "### Final Answer\n\n**$70,000**", "70000", True),
    ("stated", "A: 0.04999999999999999", "10", False),
    ("stated", "in all $<<13*2=26>>26\nA: 26", "26", True),
    ("stated", "The answer is 10.\n\nExplanation: 2 * 5 = 10, checked against 7.", "10", True),
    ("stated", "The answer is not clear yet.\nFinal answer: 42", "42", True),
    ("stated", "The answer is:\n\n$$\\frac{7}{8}$$", "7/8", True),
    ("free text", "The first pen costs 5 * 1/2 = $<<5*1/2=2.5>>2.5.\nThe next one costs 5 * 1", "64", False),
    ("free text", "At first 12.\nIn total 24.", "24", True),
    (
        "free text",
        "Let me solve.\n\n$$x = \\frac{-1 \\pm \\sqrt{5}}{2}$$",
        r"\frac{-1+\sqrt5}{2},\frac{-1-\sqrt5}{2}",
        True,
    ),
]


def endings():
    kind = ""
    for line in ENDINGS.strip().splitlines():
        kind, _, cells = (kind, "", line) if line.startswith(" ") else line.partition(": ")
        yield from ((kind, *cell.strip().split(" => "), True) for cell in cells.split(" | "))
    yield from OTHER_ENDINGS


@pytest.mark.parametrize(("kind", "completion", "answer", "correct"), [*endings()])
def test_endings(kind, completion, answer, correct):
    if kind == "printed":
        completion = f"```python\nprint(x)\n```\n```output\n{completion}\n```\n"
    assert grade(completion, answer).correct is correct
