"""Hostile text, real data and endings of real answers, through the whole grader."""

import re
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_pspo.grading import Attempt, Grader, Verdict, equivalent, extract, grade, last_boxed, parse_number, quick
from tests.support.rows import real_rows

HOSTILE = [
    *("^{", "1_", r"1\sqrt{", r"\sqrt[", "1 1/", "1 \u00d7 10 ^ { ", "10^", "= - ", r"1\frac{1}{1", "1\u00b2", "m"),
    *("9", "1,", "1,111", "#### ", "####\n", r"\boxed{", r"\frac{1", " ", "1 ", "-", "\\", "the answer is "),
    *("Answer:\n\n", "$x", r"\[ ", r"\( x ", r"\boxed 4 ", r"\boxed{4}, ", "</think>", "$x = 1$ and "),
    *(r"= 1 \end{align}", "```python\n", "<llm-code>", "Answer: it will have 5 in 6 so that ", "5 + = 1 "),
    *(r"\begin{align} 1 = ", r"answer: \begin{align} 1 = ", "1:2:3", r"$\$", r"\boxed{5} final answer is 5 "),
    *("```output\n5\n```\n5 of 6", "</think> (5", "\u202e5\u202c", "(1,", "it has a few more ", "1 234 ", "2,5"),
    *("5 or ", "which 5 < ", "more than ", "~~5", "<!-- 5", r"\boxed{5}", "5 remainder ", "5, not ", "at least 5 "),
    *("one hundred and ", "not 5 ", "is minus ", "0.333...", "So she has five. "),
]
HOSTILE = [(piece * 100_000)[:100_000] for piece in HOSTILE] + [
    "9" * 50_000 + " " + "9" * 50_000,
    "=" + " " * 50_000 + "-" + " " * 50_000 + "1",
    *(r"\boxed{" * 12_000 + "}" * 12_000, r"\boxed{" + "{" * 99_000),
    *("#### " + "5 " * 50_000, "the answer is " + "5 " * 50_000, "\x00" * 100_000 + "5"),
]


@pytest.mark.parametrize("index", range(len(HOSTILE)))
def test_time_is_linear_in_hostile_text(index):
    """Quadratic time would be seconds at this length, linear time is milliseconds."""
    text, started = HOSTILE[index], time.process_time()
    extracted, _ = extract(text)
    quick(extracted or "", "5")
    extract(text, "strict")
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
        *(
            "=x",
            r"\equiv ",
            "(1,",
            ")^T",
            "one ",
            "a hundred and ",
            "]1,",
            "[1[",
            "x < 1 or ",
            "x \\ne 1, ",
            "1 mod ",
            "1 to ",
            "0.3",
            "...",
        ),
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


def test_gsm8k_solutions_without_their_marker_say_their_answers():
    """The figure of a plain last number is 97.2 %."""
    rows = real_rows("gsm8k/train.jsonl")[::4] + real_rows("gsm8k/test.jsonl")
    parts = [re.sub("<<.*?>>", "", row["answer"]).split("\n#### ") for row in rows]
    grades = [grade(*part, question=row["question"]) for part, row in zip(parts, rows, strict=True)]
    assert sum(judged.correct for judged in grades) >= 0.992 * len(rows)


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
    rows = real_rows(name)
    for question, golds in map(GOLDS[name], rows[:: 1 + len(rows) // 2000]):
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
tool and text: ```python⏎print(total)⏎```⏎```output⏎18⏎```⏎The farm earns $\boxed{18.0}$ dollars. => 18
    ```python⏎print(x)⏎```⏎```output⏎13.166666666666668⏎```⏎The younger one is $\boxed{13}$. => 13
    ```python⏎print(x)⏎```⏎```output⏎18⏎```⏎The answer is $\boxed{19}$. =/> 18
    ```python⏎print(x)⏎```⏎```output⏎5⏎```⏎They eat 5 cups. => 5
    ```python⏎x = 16⏎print(x - 9)⏎```⏎```output⏎7⏎```⏎The answer is 7. => 7
few-shot: So the answer is 5.⏎⏎Question: What is 3 + 8?⏎Answer: 3 + 8 = 11. The answer is 11. => 5
    The answer is 5.⏎⏎Q: What is 3 + 8?⏎A: 3 + 8 = 11. The answer is 11. => 5
    There remain 5. The answer is 5.⏎⏎Q: What is 3 + 8?⏎A: The answer is 11. =/> 11
    ⏎The total is 42.⏎#### 42⏎⏎Question: What is 3 * 2?⏎Answer: 3 * 2 = 6⏎#### 6 => 42
    Thus \boxed{7}.⏎⏎Problem: Find 2+2.⏎Solution: \boxed{4}. => 7
    Final Answer: The final answer is $5$. I hope it is correct.⏎⏎Problem:⏎What is 1 + 1?⏎⏎The final answer is $2$. => 5
    She has 10 apples.⏎⏎The answer is 10.⏎⏎⏎Human: next?⏎Assistant: 12 => 10
marker: <think>maybe \boxed{3}</think>⏎The answer is \boxed{4}. => 4
stated: ### Final Answer⏎⏎**$70,000** => 70000 | A: 0.04999999999999999 =/> 10 | in all $<<13*2=26>>26⏎A: 26 => 26
    The answer is 10.⏎⏎Explanation: 2 * 5 = 10, checked against 7. => 10
    The answer is not clear yet.⏎Final answer: 42 => 42 | The answer is:⏎⏎$$\frac{7}{8}$$ => 7/8
free text: The first pen costs 5 * 1/2 = $<<5*1/2=2.5>>2.5.⏎The next one costs 5 * 1 =/> 64
    At first 12.⏎In total 24. => 24
    Let me solve.⏎⏎$$x = \frac{-1 \pm \sqrt{5}}{2}$$ => \frac{-1+\sqrt5}{2},\frac{-1-\sqrt5}{2}
"""
"""A kind, then pairs of an end as models write it and a reference that it matches (=>) or not; ⏎ ends a line."""


def endings():
    kind = ""
    for line in ENDINGS.strip().replace(" =/> ", " => not ").splitlines():
        kind, _, cells = (kind, "", line) if line.startswith(" ") else line.partition(": ")
        for text, answer in (cell.strip().replace("⏎", "\n").split(" => ") for cell in cells.split(" | ")):
            yield kind, text, answer.removeprefix("not "), not answer.startswith("not ")


@pytest.mark.parametrize(("kind", "completion", "answer", "correct"), [*endings()])
def test_endings(kind, completion, answer, correct):
    if kind == "printed":
        completion = f"```python\nprint(x)\n```\n```output\n{completion}\n```\n"
    assert grade(completion, answer).correct is correct
