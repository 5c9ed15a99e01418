"""Copies of the question and calculations left undone, beside answers in other forms that are right."""

import pytest

from lightning_pspo.grading import Attempt, Grader, Verdict, grade
from tests.support.rows import CASES, real_rows

TABLE = r"""
? What is 6*7? => 42
+ 42 | 42.0 | ~6*7 = 42 | 6*7=42 | 42 = 6*7 | ~The answer is 6*7 = 42. | x = 42 | +42 | 4.2e1 | 4.2 \times 10^1
+ forty-two | $42 | 42 apples | \frac{42}{1}
- 6*7 | 6 * 7 | ~\boxed{6\cdot 7} | ~\boxed{6\times7} | 6 × 7 | (6*7) | (6)(7) | 6(7) | 7*6 | 84/2 | 40+2 | 43-1
- ~What is 6*7? | ~6*7 | ~The answer is 6*7. | x = 6*7 | 42*1 | 2^5+10 | \sqrt{1764} | |-42| | \frac{84}{2} | 6 x 7
? Compute 10^3. => 1000
+ 1000 | 1,000
- 10^3 | 10^{3} | 10**3 | 10*10*10
? State the final answer to the following arithmetic problem: 4 - 4 + 7 = => 7
+ ~State the final answer to the following arithmetic problem: 4 - 4 + 7 = 7 | ~4 - 4 + 7 = 7 | ~7 | 7
+ 4 - 4 + 7 = 7
- 4 - 4 + 7 | ~4 - 4 + 7 = | ~4 - 4 + 7 | ~The result of 4 - 4 + 7
- ~State the final answer to the following arithmetic problem: 4 - 4 + 7 = | ~4-4+7
? Simplify the fraction 36/48. => 3/4
+ 3/4 | \frac{3}{4} | ~36/48 = 3/4 | 36/48 = 3/4
- 6/8 | 18/24 | 0.75 | 75%
- 36/48 | ~\boxed{\frac{36}{48}} | 36 / 48 | \dfrac{36}{48} | ~The answer is 36/48. | ~Simplify the fraction 36/48.
? Write 0.75 as a fraction in lowest terms. => 3/4
+ 3/4
- 75/100 | 0.75 | .75
? Convert 3/8 to a decimal. => 0.375
+ 0.375 | .375
- 3/8
? Is 15/4 larger than 3.5? Give the larger number. => 15/4
+ 15/4 | 3.75 | \frac{15}{4} | 3 3/4

? Which is larger, 3/4 or 0.7? => 0.75
+ 3/4 | 0.75

? Simplify \sqrt{32}. => 4\sqrt{2}
+ ~\boxed{4\sqrt{2}} | ~\boxed{\sqrt{32}=4\sqrt2}
- ~\boxed{2\sqrt{8}} | ~\boxed{\sqrt{16\cdot2}} | ~\boxed{3\sqrt2+\sqrt2} | ~\boxed{5.6569} | ~\boxed{32^{1/2}}
- ~\boxed{\sqrt{32}} | sqrt(32) | ~\boxed{\sqrt 32}
? Find $\sqrt{50}$. => 5\sqrt{2}
- ~\boxed{\sqrt{25}\sqrt{2}} | ~\boxed{\sqrt{2}\sqrt{25}}
? Solve $x^2 < 4$. => (-2, 2)
+ ~\boxed{(-2,2)} | ~\boxed{-2<x<2} | ~\boxed{x > -2, x < 2}
- ~\boxed{-2, 2} | ~\boxed{-2 \text{ and } 2}
? At which point with x < 3 do they meet? => (1, 2)
+ ~\boxed{(1, 2)} | ~\boxed{1, 2}
? Find $(x_1, y)$ with $x_1 < y$ whose sum is 3 and whose product is 2. => (1, 2)
+ ~\boxed{(1, 2)} | ~\boxed{1, 2}
? What is the vertex of $y=(x-1)^2+2$, whose range is $y \ge 2$? => (1, 2)
+ ~\boxed{(1, 2)} | ~\boxed{1, 2}
? Solve the system with $x > 0$: $x+y=3$, $x-y=1$. => (2, 1)
+ ~\boxed{(2, 1)} | ~\boxed{2, 1} | ~\boxed{x=2, y=1}
? How much are 2.5 and 1.2 times 3? => 6.1
- 2.5+1.2*3 | 2.5+3.6
? Factor $x^2-1$. => (x-1)(x+1)
+ ~\boxed{(x+1)(x-1)} | ~\boxed{x^2-1=(x-1)(x+1)} | ~\boxed{(1+x)(x-1)}
- ~\boxed{x^2-1} | ~\boxed{x^2 - 1}
? Factor $x^2 - 5x + 6$. => (x-2)(x-3)
+ (x-3)(x-2)
- ~\boxed{6 - 5x + x^2} | 6 + x^2 - 5x
? Expand $(x-1)(x+1)$. => x^2-1
+ ~\boxed{x^2-1}
- ~\boxed{(x-1)(x+1)} | ~\boxed{(x-1)\cdot(x+1)}
? Compute $\sum_{k=1}^{10} k$. => 55
+ ~\boxed{55} | ~\boxed{\sum_{k=1}^{10} k = 55}
- ~\boxed{\sum_{k=1}^{10}k} | ~\boxed{\frac{10\cdot 11}{2}} | ~\boxed{\sum_{i=1}^{10} i}
? Compute $\binom{5}{2}$. => 10
+ ~\boxed{10}
- ~\boxed{\binom{5}{2}} | ~\boxed{\frac{5!}{2!3!}}
? State the final answer: 39 - 89 = => -50
+ 39 - 89 = -50 | 39 - 89 ≈ -50 | ~\boxed{-50 = 39 - 89}
- 39 - 89 ≈ -20 | 39 - 89 ≈ -49 | ~\boxed{-20 = 39 - 89} | ~\boxed{39 - 89 \approx 20}
? Compute $5!$. => 120
+ ~\boxed{120}
- ~\boxed{5!}
? Evaluate $\int_0^1 2x\,dx$. => 1
+ ~\boxed{1}
- ~\boxed{\int_0^1 2x\,dx}
? What is $\sin 30^\circ$? => \frac{1}{2}
+ ~\boxed{1/2} | ~\boxed{0.5}
- ~\boxed{\sin 30^\circ}
? A jar holds 12 sweets. How many sweets does the jar hold? => 12
+ 12 | ~12 | ~12 sweets | ~The jar holds 12 sweets.
- ~A jar holds 12 sweets. How many sweets does the jar hold?
? Tom has 1,000 coins. How many coins has Tom? => 1000
+ 1,000 | 1000 | 1000.00

? 50% of the pupils are girls. What percentage are girls? => 50
+ 50% | 50 | 50\%

? Write 50% as a decimal. => 0.5
+ 0.5
- 50% | 1/2
? Solve x - 2 = 5. => 7
+ x = 7
- x - 2 = 5 | x = 5 + 2 | 5+2
? Write $x > 3$ in interval notation. => (3,\infty)
+ ~\boxed{(3,\infty)} | ~\boxed{(3, \infty)}
- ~\boxed{x > 3}
? What is the remainder of 18 divided by 11? => 7
+ 7 \pmod{11}
- 18 \bmod 11 | 18 - 11
? Is it true that 2+2=4? => yes
+ True | Yes | ~The answer is yes.

? Which is bigger? (A) 3 (B) 42 => B
+ (B) 42 | B | ~\boxed{B. 42}

? Find the product of primes of 12. => 2^2 \cdot 3
+ ~\boxed{2^2\cdot3} | ~\boxed{2^2 \times 3}
- ~\boxed{12}
? How many subsets has a set of 10 elements? => 2^{10}
+ ~\boxed{2^{10}} | ~\boxed{1024}

? What is x if 2x+3 = 3? Give 0. => 0
+ 0 | 0.0
- 3-3
? Sort 3, 1, 2 ascending. => 1, 2, 3
+ 1, 2, 3
- 3, 1, 2
? Find the roots of x^2 = 4. => 2, -2
+ ~\boxed{\pm 2} | ~\boxed{2, -2} | ~\boxed{-2, 2} | ~\boxed{x=2 \text{ or } x=-2}
- ~\boxed{x = \pm\sqrt{4}}
? Express 1.5 × 10^3 in standard digits. => 1500
+ 1500
- 1.5 × 10^3
? What is the ratio 4:6 in lowest terms? => 2:3
+ 2:3
- 4:6
? Compute \frac{1}{2}+\frac{1}{3}. => \frac{5}{6}
+ ~\boxed{\frac56} | ~\boxed{5/6}
- ~\boxed{\frac{1}{2}+\frac{1}{3}} | ~\boxed{\frac{3+2}{6}} | ~\boxed{\frac{3}{6}+\frac{2}{6}}
? What is the area of a circle of radius 3? => 9\pi
+ ~\boxed{9\pi} | ~\boxed{28.2743} | 9π | ~The area is 9π. | ~The area is 9π square units.
- ~\boxed{\pi\cdot 3^2} | 9π² | ~9π³ | ~9πr | ~9π√2 | ~\boxed{10\pi-\pi}

? Approximate the square root of 2 to 4 decimals. => 1.4142
+ ~\boxed{1.4142} | ~\boxed{\sqrt{2}}

? Find the exact value of $\cos 75^\circ$. => \frac{\sqrt6-\sqrt2}{4}
+ ~\boxed{\frac{\sqrt6-\sqrt2}{4}} | ~The value is (√6 - √2)/4. | ~\boxed{\frac{\sqrt2(\sqrt3-1)}{4}}
- ~\boxed{\sin 15^\circ} | ~\boxed{0.2588} | ~\boxed{\cos(30^\circ+45^\circ)} | ~\boxed{\cos\frac{5\pi}{12}}
? What is the distance? => \sqrt{13}
+ ~The distance is √13. | ~The distance is √13 units. | ~It is sqrt(13). | ~\boxed{13^{1/2}} | ~\boxed{3.605551}
- ~√(4 + 9) | sqrt(4+9) | ~sqrt(2^2+3^2) | ~\boxed{\sqrt{\sqrt{169}}}
? What is the angle in radians? => \arctan 2
+ ~\boxed{\tan^{-1} 2} | ~\boxed{\arctan(2)}
- ~\boxed{\arcsin\frac{2}{5}}
? What is the side? => 8\sqrt[3]{4}
+ ~\boxed{2^{11/3}}
? What is the volume in cubic inches? => 36\pi
+ ~\boxed{36\pi\text{ in}^3} | ~\boxed{36\pi\,\mathrm{in}^3} | ~\boxed{36\pi}
- ~\boxed{36\pi\cdot 2^0}
? How fast is it? => \sqrt5
+ ~\boxed{\sqrt5\text{ m/s}}
? The reduced price is what fraction of the original? => 3/4
+ 0.75 | 6/8
? Find all real $k$. => \frac{9}{4}, -\frac{9}{4}
+ ~\boxed{\pm\frac94} | ~k = ±9/4 | ~k = 9/4 or k = -9/4 | ~\boxed{k=\frac94\text{ or }k=-\frac94}
- ~\boxed{\frac{0\pm9}{4}} | ~\boxed{\frac94}
? Simplify $\frac{x^2-9}{x-3}$. => x+3
+ ~\boxed{x+3} | ~It simplifies to x + 3. | ~\boxed{3+x}
- ~\boxed{\frac{(x-3)(x+3)}{x-3}} | ~\boxed{x+1+2}
? Express $0.1\overline{7}$ as a common fraction. => \frac{8}{45}
+ 8/45 | ~\boxed{\dfrac{8}{45}}
- ~\boxed{0.1777...} | 0.17778 | 0.1\overline{7}
? Express $\frac{37}{8}$ as a mixed number. => 4\frac58
+ 4 5/8 | ~\boxed{4\frac58}
- 4.625
? Express 0.00032 in scientific notation. => 3.2\times10^{-4}
+ 3.2e-4 | 3.2 × 10^-4
- 32\times10^{-5} | 0.00032 | 0.32\times10^{-3}
? What is the prime factorization of 720? => 2^4\cdot3^2\cdot5
+ ~\boxed{2^4\cdot3^2\cdot5} | ~\boxed{5\cdot3^2\cdot2^4} | ~\boxed{2^4 \times 3^2 \times 5}
- ~\boxed{8\cdot90} | ~\boxed{16\cdot9\cdot5} | ~\boxed{720}
? Solve the inequality $2x - 7 > 1$. => x > 4
+ ~\boxed{x>4} | ~\boxed{4<x} | ~\boxed{(4,\infty)}
- ~\boxed{2x>8} | ~\boxed{x-4>0} | ~\boxed{x<4}
? Rationalize the denominator of $\frac{5}{\sqrt{125}}$. => \frac{\sqrt{5}}{5}
+ ~\boxed{\frac{\sqrt5}{5}} | ~\boxed{\frac15\sqrt5}
- ~\boxed{\frac{1}{\sqrt5}}
? Compute $(2+3i)(1-i)$. => 5+i
+ ~\boxed{5+i} | ~i + 5 | ~5+1j
- ~\boxed{2-2i+3i+3} | ~2+i+3
? What percent of 80 is 20? => 25\%
+ 25 | 25%
- 20/80 | 1/4
? A car goes 90 km in 1.5 hours. What is its speed in km/h? => 60
+ 60 | 60 km/h | ~90/1.5 = 60
- 90/1.5 | ~\boxed{\frac{90}{1.5}} | ~\boxed{\frac{6}{0.1}}
? Given A = 0 and B = 1, what is the output of A AND B? => 0
+ 0 | A AND B = 0
- A = 0
? Consider the function $g(x) = 3$. Find $g(2)$. => 3
+ 3 | ~\boxed{x = 3} | ~\boxed{g(2) = 3}
"""
"""A question and its reference, right responses (+), wrong ones (-): behind ####, or as they stand with ~."""


def problems():
    for block in TABLE.strip().removeprefix("? ").split("\n? "):
        (question, answer), *lines = block.splitlines()[0].split(" => "), *block.splitlines()[1:]
        responses = {
            text[1:] if text.startswith("~") else f"#### {text}": line[0] == "+"
            for line in lines
            for text in line[2:].split(" | ")
        }
        yield pytest.param(question, answer, responses, id=question)


@pytest.mark.parametrize(("question", "answer", "responses"), [*problems()])
def test_answers_are_told_from_copies_and_calculations(question, answer, responses):
    assert {response: grade(response, answer, question=question).correct for response in responses} == responses
    marked = {text: right for text, right in responses.items() if "####" in text or r"\boxed" in text}
    assert {text: grade(text, answer, "strict", question=question).correct for text in marked} == marked


@pytest.mark.parametrize(
    ("response", "rule"), [("#### 36/48", "copied"), ("#### 6/8 * 1", "unevaluated"), ("Simplify: 36/48", "none")]
)
def test_the_rule_that_refused_an_answer_is_named(response, rule):
    attempt = Attempt(response, "3/4" if "6" in response else "1", "Simplify: 36/48")
    with Grader() as grader:
        assert grader.grade([attempt])[0] == grade(*attempt[:2], question=attempt.question)
        assert grader.grade([attempt])[0].verdict is not Verdict.CORRECT


def test_without_the_question_a_value_is_enough():
    assert grade("#### 6*7", "42").correct
    assert grade("#### 36/48", "3/4").correct


@pytest.mark.parametrize("mode", ["lenient", "strict"])
@pytest.mark.parametrize(
    ("completion", "marked"),
    [
        ("x = 3 + 4\n#### 7", True),
        (r"so \boxed{7}. We check: 7 - 4", True),
        ("So the answer is 7. We check: 7 - 4 =", None),
        ("The answer is $7$ since", None),
        ("To solve it we add 7", False),
        ("which makes 7.", False),
        ("So $x = 7$ and", False),
        ("The answer is that we have 3 and then 7", False),
        ("The answer is that we have 7. We", None),
        ("The answer is 7 apples because", None),
        (r"so \boxed{7", False),
        ("```output\n7\n```\nThis", False),
    ],
)
def test_only_a_marked_answer_counts_in_a_text_that_was_cut_off(completion, marked, mode):
    counts = mode == "lenient" if marked is None else marked
    assert grade(completion, "7", mode, truncated=True).correct is counts
    assert grade(completion, "7", mode, truncated=True, cut_off="none").rule in ("truncated", "none")
    assert grade(completion, "7", mode, truncated=True, cut_off="any") == grade(completion, "7", mode)
    with Grader(mode) as grader:
        assert grader.grade([Attempt(completion, "7", truncated=True)])[0].correct is counts


def test_an_unmarked_answer_of_a_text_that_was_cut_off_is_no_answer():
    cut = grade("which makes 7", "7", truncated=True)
    assert (cut.verdict, cut.extracted, cut.rule) == (Verdict.NO_ANSWER, None, "truncated")
    assert grade("I cannot say", "7", truncated=True).rule == "none"


@pytest.mark.parametrize(
    ("judged", "verdict"), [(True, Verdict.CORRECT), (False, Verdict.WRONG), (None, Verdict.CORRECT)]
)
def test_a_tasks_own_scorer_decides_where_it_can(judged, verdict):
    asked = []
    attempt = Attempt("#### 7", "7", scorer=lambda answer: asked.append(answer) or judged)
    with Grader() as grader:
        assert grader.grade([attempt])[0].verdict is verdict
    assert asked == ["7"]


def test_every_kept_case_has_its_verdict():
    for row in real_rows("grading.jsonl", CASES):
        judged = grade(row["response"], row["answer"], question=row["question"], truncated=row["truncated"])
        assert judged.correct is row["correct"], row
