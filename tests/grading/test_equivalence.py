import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_pspo.grading import equivalent, grade, quick

SAME = r"""
fraction: \frac{6}{8} ~ 3/4 | \dfrac34 ~ 0.75 | -(2/5) ~ -\frac{2}{5} | \frac{-1}{2} ~ -0.5
mixed number: 2 3/4 ~ 11/4 | 2\frac{3}{4} ~ 2.75 | -1 1/2 ~ -3/2
radical: \sqrt{50} ~ 5\sqrt{2} | \frac{1}{\sqrt 3} ~ \frac{\sqrt3}{3} | 2*sqrt(3) ~ \sqrt{12}
power: 2^{10} ~ 1024 | 2**10 ~ 2^10 | 8^{1/3} ~ 2 | 10^3 ~ 1,000 | x^\frac12 ~ \sqrt{x} | x^\frac{y}{2} ~ x^{y/2}
    2^\sqrt[3]{8} ~ 4 | x^{1 \over 2} ~ \sqrt{x}
dots: 1, 2, \ldots, n ~ 1, 2, \dots, n | 1, 2, ..., n ~ 1, 2, \dots, n
binomial: {5 \choose 2} ~ 10 | 2{n \choose k} ~ 2\binom{n}{k}
fraction of TeX: {(3)(4) \over 2\sqrt{25}} ~ \frac{6}{5} | \sqrt{3} \over \sqrt{12} ~ 1/2
factorial: 5! ~ 120 | 6 = 3! ~ 6 | $5!$ ~ 120 | 5! ~ 5
constant: \pi/3 ~ \frac{\pi}{3} | 3*pi ~ 3\pi | \ln e ~ 1
polynomial: (x-1)(x+2) ~ x^2+x-2 | 3y+2x ~ 2x+3y | \frac{x+4}{2} ~ \frac{x}{2}+2
trigonometry: 2\sin x\cos x ~ \sin(2x) | \sin(30^\circ) ~ 1/2
complex: 4i+3 ~ 3+4i | (1+i)^2 ~ 2i
thousands: 12,345 ~ 12345 | 12{,}345 ~ 12345 | 12,\!345 ~ 12345 | 111, \! 111 ~ 111111 | 12 345 ~ 12345
comma decimal: 7,25 ~ 7.25 | 0,125 ~ 1/8
currency: \$7.50 ~ 7.5 | $1,000 ~ 1000 | €20 ~ 20 | 7.50 dollars ~ $7.50
degrees: 45^\circ ~ 45 | 45° ~ 45^{\circ} | 45 degrees ~ 45
assignment: x = 4 ~ 4 | 4 ~ y=4 | f(x) = x^2 ~ x^2 | f(x) = x^2 ~ y = x^2 | x = 2 + 2 = 4 ~ 4 | \angle A = 4 ~ 4
sign of a root: √xy ~ \sqrt{xy} | 2√10x ~ 2\sqrt{10x} | √(xy) ~ \sqrt{xy}
approximation: \frac{1}{3} \approx 0.33 ~ 1/3 | x \approx 2 ~ 2 | \pi ≈ 3.14 ~ \pi | 2/7 \approx 29\% ~ 2/7
a calculation's approximation: 39 - 89 ≈ -50 ~ -50 | 100 \times 1.05^{10} ≈ 162.89 ~ 162.89 | \sqrt{2} ≈ 1.41 ~ \sqrt2
equation: 2x + 4y = 6 ~ x + 2y - 3 = 0 | y = 3 - x ~ x + y = 3
inequality: x \ge 2 ~ 2 <= x | -x < -1 ~ x > 1 | [2, \infty) ~ x \ge 2
interval: [1, 2) ~ \left[1, \frac{4}{2}\right) | x \in (-oo, 3] ~ (-\infty, 3]
union: (-1, 0) \cup (1, 2) ~ (1,2)\cup(-1,0)
set: \{1, 2, 3\} ~ \{3, 1, 2\} | 1, 2 ~ \{2, 1\} | \{\sqrt{8}\} ~ \{2\sqrt2\}
list: 3, -3 ~ -3 and 3 | 3 or 4 ~ 4, 3 | x = 1 or x = 2 ~ 1, 2 | 1,000, 2,000 ~ 2000 and 1000
plus or minus: \pm 4 ~ 4, -4 | 1 \pm \sqrt2 ~ 1-\sqrt{2}, 1+\sqrt{2} | x = \pm 2 ~ 2, -2
tuple: (1, {1 \over 2}) ~ (1, 0.5)
    (1, 0.5) ~ \left(1, \frac12\right) | (x, y) = (1, 2) ~ (1,2) | 1, 2 ~ (1, 2) | (1;2) ~ (1,2)
matrix: \begin{pmatrix} 1 & 1/2 \\ 0 & 3 \end{pmatrix} ~ \begin{bmatrix}1&0.5\\0&3\end{bmatrix}
    \begin{pmatrix} 2 \\ \sqrt{8} \end{pmatrix} ~ \begin{pmatrix} 2 \\ 2\sqrt2 \\ \end{pmatrix}
    2\begin{pmatrix} 1 \\ 2 \end{pmatrix} ~ \begin{pmatrix} 2 \\ 4 \end{pmatrix}
base: 1101_2 ~ 1101_{2} | 1101 ~ 1101_2
choice: (D) ~ D | \text{(D)} ~ D | D. 17 ~ D | Option D ~ D
text: monday ~ \text{Monday} | Yes. ~ yes | 3:15 p.m. ~ 3:15 PM | 15:40 ~ 3:40 pm | 3:40 ~ 3:40:00
    T-shirt ~ t shirt | Monday! ~ Monday | "Monday" ~ Monday | 03:40 ~ 3:40 | 3:40 o'clock ~ 3:40
interval of inequalities: 1 < x \le 2 ~ (1, 2] | x < -1 or x > 3 ~ (-\infty, -1) \cup (3, \infty)
    \{x \mid x \ge 2\} ~ [2, \infty) | x > 1 \text{ and } x \le 2 ~ (1, 2]
    ]1, 2] ~ (1, 2] | [0, +\infty[ ~ [0, \infty)
all but some: \mathbb{R} - \{0\} ~ (-\infty, 0) \cup (0, \infty) | x \ne \pm 1 ~ \mathbb{R}\setminus\{-1, 1\}
    \text{all reals except } x = 0 ~ x \ne 0 | (-\infty, \infty) \setminus \{0\} ~ x \ne 0
sentence: \text{She has } 42 \text{ apples left.} ~ 42 | \text{Therefore, } 42 ~ 42 | \text{She has twelve apples} ~ 12
    a remainder of 7 ~ 7 | $10k ~ 10000 | 12, i.e. twelve ~ 12 | 42 (6*7) ~ 42 | 42 (=6*7) ~ 42
decoration: **42** apples ~ 42 | <b>42</b> ~ 42 | \Large 42 ~ 42 | \SI{42}{m} ~ 42 | 42 {\rm m} ~ 42
    42\;\blacksquare ~ 42 | 42 :) ~ 42 | 42... ~ 42 | \texttt{42} ~ 42 | \hspace{1em}42 ~ 42
    \frac{\sqrt{2}}{2 ~ \frac{\sqrt2}{2}
modulus: n \equiv 5 \pmod{7} ~ 5 | n = 5 mod 7 ~ 5 | x ≡ -2 (mod 7) ~ n \equiv 5 \pmod{7} | 5 ~ 5 \pmod{7}
code: [1, 2] ~ 1, 2 | [(3, 4), (1, 2)] ~ (1, 2), (3, 4) | [5] ~ 5 | {-1, 2} ~ \{2, -1\} | 2*sqrt(3) ~ 2\sqrt{3}
    sqrt(2*(x + 1))/3 ~ \frac{\sqrt{2x+2}}{3} | 7*sin(pi*x/5) + 1 ~ 1 + 7\sin\left(\frac{\pi}{5} x\right)
    exp(-2*x)*cos(3*x) ~ e^{-2x}\cos 3x | Rational(1, 2) ~ 0.5 | -oo ~ -\infty | I ~ i | 1 + 2*I ~ 2i + 1
    x**2 + 1 ~ x^2+1 | Matrix([[1, 2], [3, 4]]) ~ \begin{bmatrix} 1 & 2 \\ 3 & 4 \end{bmatrix}
    Union(Interval(0, 1), Interval.open(2, oo)) ~ [0, 1] \cup (2, \infty) | FiniteSet(2, 1) ~ \{1, 2\}
    np.float64(18.0) ~ 18 | 1.00000000000000 ~ 1 | True ~ \text{Yes} | 'Tuesday' ~ \text{Tuesday}
proved by values: \frac{1}{R_1} + \frac{1}{R_2} ~ \frac{R_1 + R_2}{R_1 R_2} | \sin^2 x + \cos^2 x ~ 1
    2 \sin x \cos x ~ \sin(2x) | \frac{n!}{k!(n-k)!} ~ \frac{(n-1)!}{k!} \frac{n}{(n-k)!}
    \frac{v_{0}}{r_{0}} \frac{1}{(1 + r/r_{0})^{3/2}} ~ \frac{v_0 (\frac{r_0}{r + r_0})^{0.5}}{r + r_0}
    \ln|x - 1| ~ ln(Abs(x - 1)) | \sqrt{5 + 2\sqrt{6}} ~ \sqrt2 + \sqrt3
    \frac{23 - x}{54} ~ 0.333333 - 0.0185185(x - 5)
sum: \sum_{k=1}^{3} k ~ 6 | 6 ~ \sum_{k=1}^{3} k
proportional relations: 2x > 6 ~ 3 < x | 1 < x < 3 ~ 3 > x > 1 | x = 1 - y ~ 2x + 2y - 2 = 0 | E = mc^2 ~ mc^2 = E
system: \begin{cases} x = 1 \\ y = 2 \end{cases} ~ y = 2, x = 1
    \begin{cases} a+b=\frac12 \\ a-b=\sqrt3 \end{cases} ~ \begin{cases} a-b=\sqrt{3} \\ b+a=0.5 \end{cases}
    \begin{cases} x & \text{if } x>0 \\ -x & \text{if } x<0 \end{cases} ~ \begin{cases} x,& x>0 \\ -x,& x<0 \end{cases}
vector: \begin{pmatrix} 1 \\\frac12 \end{pmatrix} ~ (1, 0.5) | [1, 2] ~ \begin{pmatrix} 1 & 2 \end{pmatrix}
    \operatorname{diag}(2, 3) ~ \begin{pmatrix} 2 & 0 \\ 0 & 3 \end{pmatrix}
ratio: 2:4:6 ~ 1:2:3 | 6 : 3 ~ 2:1 | three to four ~ 3:4 | 3/4 ~ 3:4 | 8/15 ~ 8:15 | 3 ~ 3:1
named quantity: \frac{q_0}{\sqrt{2CL}} ~ I_{\max} = \frac{q_{0}}{\sqrt{2 L C}} | 0 ~ a_{-1} = 0
    \Phi(x, y) = \frac{x}{2y} + \frac{1}{2y} ~ \Phi (x,y)=\frac{x+1}{2y} | \boxed{y=\sqrt{2}} ~ \sqrt2
label: Savings: 550 gallons ~ 550
synonyms: no real solutions ~ no solution | DNE ~ undefined
lower-case choice: c ~ C | (b) ~ B | (B) ~ (b) | (b) 42 ~ (b) | (d) $\theta^2$ ~ D
yes or no with a reason: No, it does not. ~ no | \text{Yes, such sets exist} ~ \text{Yes} | No because 7 is odd ~ No
    False: take 2 ~ No
any constant: f(t) = kt \text{ for some constant } k \in \mathbb{R} ~ f(t) = kt
    a + bi, \text{ where } a \text{ and } b \text{ are real numbers} ~ a + bi
    3\pi k ~ 3\pi k \text{ for any integer } k
several forms of one: 1/2 or 0.5 ~ 0.5
unit: 1.3 \text{ eV} ~ 1.3 | 2.4 \mathrm{~V} ~ 2.4 | 7 L ~ 7 | 6562 Å ~ 6562 | k = \frac{37}{4}m ~ \frac{37}{4} m
    \frac{37m}{4} ~ \frac{37}{4} m
derivation: \begin{aligned} 2x &= 18 \\ x &= 9. \end{aligned} ~ 9
    \begin{align*} S &= 570 + 20 \\ &= 590 \tag{1} \end{align*} ~ 590 | 528 + 5280 = 528 \cdot 11 = 5,\!808 ~ 5808
    4^6 \equiv 2 - 2 = 0 \pmod{7} ~ 0
colour: \textcolor{blue}{42} ~ 42 | \color{red}{5} ~ 5 | \underline{5} ~ 5
box: 5 ~ \fbox{5} | (B) ~ \fbox{(B)} | \boxed 5 ~ 5 | 5 ~ \fbox 5 | x + 1 ~ \fbox{$x+1$}
name behind: 2 ~ 2 = x | \frac{1}{2} = y ~ 0.5 | 2 = x ~ x = 2
number word: five ~ 5 | twenty-one apples ~ 21 | two dozen eggs ~ 24 | one half ~ 1/2 | minus five ~ -5
    one, two ~ 1, 2 | Twelve. ~ 12 | \text{zero} ~ 0
transposed tuple: (11/10, 1/2)^{\mathsf T} ~ \begin{pmatrix} 1.1 \\ 0.5 \end{pmatrix}
    (1, 2)^T ~ \begin{pmatrix} 1 \\ 2 \end{pmatrix}
equal left side: \frac{dN}{dt} = \frac{3N^6}{c^2} ~ \frac{dN}{dt} = \frac{3}{c^{2}} N^{6} | 3x = 6 ~ 3x = 6.0
rows of a derivation: \begin{aligned} n &= 2 + 3 \\[4pt] n &= 5 \end{aligned} ~ 5
    \begin{aligned} n &= 2 \\ &\quad + 3 \\ &= 5 \end{aligned} ~ 5
letter of a unit: 3\text{ K} ~ 3 | 4\,\text{A} ~ 4 | 25^\circ\text{C} ~ 25 | 9\text{V} ~ 9
function: 2u(t)e^{-t} ~ 2e^{-t}u(t) | f(x + 1) ~ f(x+1)
unit on an expression: 4\pi \text{ square feet} ~ 4\pi | \sqrt{2}\text{ cm} ~ \sqrt 2
"""
DIFFERENT = r"""
sign of a root: √xy ~ \sqrt{x} | 2√ab ~ 2\sqrt{a}b
approximation of another number: 39 - 89 ≈ -20 ~ -50 | 39 - 89 ≈ -49 ~ -50 | \sqrt{16} ≈ 5 ~ 4 | 2^3+1 \approx 7 ~ 9
number: 12 ~ 13 | -12 ~ 12 | 0.12 ~ 0.21 | \frac{2}{3} ~ \frac{3}{2} | 3 1/2 ~ 31/2
radical: 2\sqrt{3} ~ 3\sqrt{2} | \frac{\sqrt{3}}{2} ~ \frac{1}{2} | \sqrt{2} ~ 2
power: 2^{10} ~ 20 | 10^{6} ~ 10^5 | 2^{90} ~ 2^{90}+1 | \frac{1}{60!} ~ \frac{1}{61!}
polynomial: x+1 ~ x-1 | 2x ~ 2 | x^2 ~ y^2 | (x+1)^2 ~ x^2+1 | 5m ~ 5
list: 1, 2 ~ 1, 3 | 1, 2 ~ 1 | 1 ~ 1, 2 | 2, 2, 3 ~ 2, 3, 3 | 1, 2, ... ~ 1, 2
tuple: (1, 2) ~ (2, 1) | (1, 2) ~ (1, 2, 3) | (1, 2) ~ 1 | (1, 234) ~ 1234 | 32, 349 ~ 32349
interval: [1, 2] ~ (1, 2) | 1, 2 ~ (1, 2] | 1 \le x \le 2 ~ (1, 2] | x < 2 ~ [2, \infty)
    a ~ (-\infty, \infty) | x < 1 and x < 3 ~ (-\infty, 3)
    [1, 2) ~ [1, 2] | (1, 2) ~ (1, 3) | 1, 2 ~ [1, 2]
union: (0,1) \cup (2,3) ~ (0,1) | (0,1) \cup (2,3) ~ (0,1) \cup (2,4)
set: \{1, 2\} ~ \{1, 3\} | \{1\} ~ \{1, 2\} | \{1, 2\} ~ (1, 2)
plus or minus: \pm 4 ~ 4 | 4 ~ \pm 4 | 1 \pm \sqrt2 ~ 1 \pm \sqrt3
matrix: \begin{pmatrix} 1 & 2 \end{pmatrix} ~ \begin{pmatrix} 1 \\ 2 \end{pmatrix}
    \begin{pmatrix} 1 \\ 2 \end{pmatrix} ~ \begin{pmatrix} 2 \\ 1 \end{pmatrix}
equation: x = 4 ~ x = 5 | x = 4 ~ y = 4 | f(x) = 4x ~ g(x) = 4x | x + y = 4 ~ x - y = 4 | 0 ~ a + b = 0
inequality: x > 1 ~ x < 1 | x \ge 1 ~ x > 1 | (1, \infty) ~ x \ge 1
code: [1, oo] ~ 1, oo | cos 0 ~ 0 | sin(x) ~ cos(x)
    Matrix([[1, 2], [3, 4]]) ~ \begin{bmatrix} 1 & 3 \\ 2 & 4 \end{bmatrix} | __import__('os').getcwd() ~ os
only nearly the same values: \sqrt{x^2} ~ -x | x^{100} + 1 ~ x^{100} | \ln(x^2) ~ 3\ln x | \frac{355}{113} ~ \pi
    2^{40} ~ 2^{40} + 1
relations: 2x > 6 ~ x < 3 | -x > -3 ~ x > 3 | 1 < x < 3 ~ 1 < x < 4 | x = 2, y = 1 ~ x = 1, y = 2
plane: 5x - 7y + 11z + 4 = 0 ~ 0
vector: (1, 2) ~ \begin{pmatrix} 1 & 2 \end{pmatrix} | (1, 2) ~ \begin{pmatrix} 1 \\ 3 \end{pmatrix}
ratio: 1:3 ~ 1:4 | 3:30 ~ 2:20 | 1:2 ~ 1:2:3
synonyms: True ~ No | label: none ~ 5
lower-case variable: x ~ X | a + b ~ A + B
modulus: x \equiv 5 \pmod{8} ~ x \equiv 5 \pmod{7} | 6 \pmod{7} ~ 5 \pmod{7} | x \not\equiv 5 \pmod{7} ~ 5
    5 \pmod{7} + 1 ~ 5
words behind a number: 5 less than eight ~ 5 | 5\text{ thousands} ~ 5 | 5 binary ~ 5
number word: twelve ~ 20 | half of 42 ~ 42 | twenty-one ~ 20 | two thirds ~ 2 | twelve hundred ~ 12 | one of them ~ 1
base: 1101_2 ~ 1101_3 | 1101_2 ~ 1100_2
choice: A ~ B | (A) ~ (B) | A + B ~ A | A, B ~ A | (c) 42 ~ (b) | (a) 5 ~ b
yes or no with a reason: No, it is even ~ Yes | True, False ~ True | Yes, it is 5 ~ 5
some constants: f(t) = kt \text{ for some constant } k > 2 ~ f(t) = kt | 2n \text{ for all odd } n ~ 2n
    k\pi \text{ for any real } k ~ k\pi \text{ for any integer } k
    f(t) = 2t \text{ for some constant } k ~ f(t) = kt
improper fraction behind a number: 11 6/6 ~ 12 | 11 7/6 ~ 73/6
transposed tuple: (x + 1)^T ~ x + 1 | (1, 2)^T ~ \begin{pmatrix} 2 \\ 1 \end{pmatrix}
capital letters: 10^5 M ~ 10^5 | 5 A ~ 5 | 5 K ~ 5
almost equal fractions: \frac{2010012}{2010013} ~ \frac{2010012}{2010012}
    \frac{4036083}{4036081} ~ \frac{4036082}{4036081}
power of ten: e-5 ~ 1e-5 | 1e-5 ~ e - 5 | 2e3 ~ 2e
function: -I(0) ~ I(0) | f(x+1) ~ f(x) + f(1) | u(t) ~ u(s) | 3.3e-10 ~ (1 - e^{-2t})u(t)
part of a ratio: {2,5} ~ 2.5 | 9^o0 ~ 90 | 3:4 ~ 4 | 3:4 ~ 3 | 4 ~ 3:4
derivation: \begin{aligned} 2x &= 18 \\ x &= 9 \end{aligned} ~ 18
system: \begin{aligned} n &= 5 \\ n &= 6 \end{aligned} ~ 6 | \begin{aligned} m &= 5 \\ n &= 6 \end{aligned} ~ 6
    \begin{aligned} m + n &= 8 \\ n &= 6 \end{aligned} ~ 6
letter that may be a digit or a factor: 5 ~ 5\text{C} | 7\text{M} ~ 7 | 7\mathrm{A} ~ 7
spaced digits: \text{4 7} ~ 47 | \mathrm{6 0} ~ 60
text: Monday ~ Tuesday | even ~ uneven | 3:15 am ~ 3:15 pm | 15:40 ~ 3:40 am | 3:40 ~ 3:41 pm | Monday ~ 5
    listen ~ silent
"""
"""A kind of answers, then pairs of a candidate and a reference (~); an indented line goes on with the kind before."""
SAME_IN_UNICODE = [
    ("full width", "\uff12x\uff0b\uff12", "2(x+1)"),
    ("union", "(−∞, 0)\u222a(1, ∞)", r"(-\infty,0) \cup (1,\infty)"),
]
DIFFERENT_IN_SPACE = [
    ("two lines", "11\n5/6", "71/6"),
    ("two lines", "12\r\n345", "12345"),
    ("text", "", "5"),
    ("text", "", ""),
]


def pairs(table):
    """Return each pair with its kind."""
    entries, kind = [], ""
    for line in table.strip().splitlines():
        kind, _, line = (kind, "", line) if line.startswith(" ") else line.partition(":")
        entries += [(kind, *map(str.strip, pair.split(" ~ "))) for pair in line.split(" | ")]
    return entries


def _cases(entries):
    return [pytest.param(left, right, id=f"{kind}: {left!r}") for kind, left, right in entries]


@pytest.mark.parametrize(("candidate", "answer"), _cases(pairs(SAME) + SAME_IN_UNICODE))
def test_same(candidate, answer):
    assert equivalent(candidate, answer)
    assert quick(candidate, answer) is not False


@pytest.mark.parametrize(("candidate", "answer"), _cases(pairs(DIFFERENT) + DIFFERENT_IN_SPACE))
def test_different(candidate, answer):
    assert not equivalent(candidate, answer)
    assert quick(candidate, answer) is not True


SYMMETRIC = {
    True: r"""either way: 18 ~ $18 | (3,\frac\pi2) ~ \left( 3, \frac{\pi}{2} \right) | 11\sqrt{2} ~ 11\sqrt2
    1/2 + x ~ \frac{1}{2}+x | evelyn. ~ \text{Evelyn} | {x+1} ~ x+1 | 1, 2 ~ 1,2 | 5:6 ~ 5:6""",
    False: r"""either way: -0.5 ~ 0.5 | Evelyn ~ Eve | x ~ X | 12 ~ 1 2 | 23 ~ 2**3""",
}


@pytest.mark.parametrize(
    ("candidate", "answer", "same"),
    [
        *((*pair[1:], same) for same, table in SYMMETRIC.items() for pair in pairs(table)),
        ("9" * 100_000, "9" * 100_000, True),
        ("9" * 100_000, "9" * 99_999, False),
    ],
)
def test_symmetric_pairs(candidate, answer, same):
    assert equivalent(candidate, answer) is same
    assert equivalent(answer, candidate) is same


@pytest.mark.parametrize(
    ("candidate", "answer"),
    [("a(3)", "3a"), ("4s(t)", "4st"), ("n(n)", "n^2"), (r"\frac{m(5)}{4}", r"\frac{5m}{4}"), (r"\mu(2)", r"2\mu")],
)
def test_a_letter_before_parentheses_may_be_a_factor(candidate, answer):
    assert quick(candidate, answer) is None


@pytest.mark.parametrize(("candidate", "answer"), [("f(3)", "3f"), ("P(2)", "2P"), (r"\psi(0)", "0")])
def test_some_letters_are_functions(candidate, answer):
    assert quick(candidate, answer) is False


def test_an_equation_answers_with_its_right_side_but_no_number_answers_with_an_equation():
    assert equivalent("x + y = 5", "5")
    assert not equivalent("5", "x + y = 5")


@pytest.mark.parametrize(
    ("candidate", "answer"),
    [("50", "x > 3"), ("(1, 2)", "[1, 2]"), ("x+1", "x+2"), (r"3\sqrt{2}", "3"), ("a, b", "a"), ("7", "monday")],
)
def test_most_wrong_answers_need_no_symbolic_comparison(candidate, answer):
    assert quick(candidate, answer) in (False, None)
    assert candidate == "50" or quick(candidate, answer) is False


_NUMBERS = st.integers(-999, 999).map(str) | st.fractions(-99, 99, max_denominator=99).map(str)


@given(st.lists(_NUMBERS, min_size=2, max_size=5), st.randoms(use_true_random=False))
def test_sets_have_no_order_and_tuples_do(items, random):
    shuffled = random.sample(items, len(items))
    assert quick(r"\{" + ",".join(items) + r"\}", r"\left\{" + ", ".join(shuffled) + r"\right\}")
    assert quick("(" + ",".join(items) + ")", "(" + ", ".join(shuffled) + ")") is (
        [equivalent(a, b) for a, b in zip(items, shuffled, strict=True)] == [True] * len(items)
    )


# In a formula ! is a factorial, elsewhere it may be a mark.
@given(st.sampled_from([pair[1:] for pair in pairs(SAME) if "!" not in pair[1]]))
def test_spelling_does_not_matter(pair):
    candidate, answer = pair
    assert equivalent(f"$ {candidate} $", answer)
    assert equivalent(f"\\( {candidate} \\)", f"\u202a{answer}\x00")


@given(st.text(max_size=80), st.text(max_size=20).filter(str.strip))
def test_quick_takes_any_text_and_everything_equals_itself(candidate, answer):
    assert quick(candidate, answer) in (True, False, None)
    assert quick(answer, answer) is True
    assert equivalent(answer, answer)


@given(st.text(alphabet="0123456789xy+-*/^(){}[],=\\ frac sqrt pm.", max_size=40))
def test_quick_agrees_with_equivalent(text):
    other = text.replace("1", "2")
    decided = quick(text, other)
    assert decided is None or decided is equivalent(text, other)


def test_symbolic_comparison_works_from_threads():
    results: list[bool] = []
    threads = [
        threading.Thread(target=lambda: results.append(equivalent(r"\sqrt{72}", r"6\sqrt{2}"))) for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [True] * 3


@pytest.mark.parametrize("text", [r"3^{40}\cdot(3^{41}-7)", "3^{40}*(3^{41}-7)", "3^{81}-7*3^{40}", "3^81-7*3^40"])
def test_a_product_of_powers_is_no_tower_of_powers(text):
    assert equivalent("3^{40}(3^{41}-7)", text)
    assert not equivalent("3^{40}(3^{41}-8)", text)


@pytest.mark.parametrize(
    "text",
    [
        *("9^9^9^9", "9**9**9", "2^{10^{10}}", "10^{10^{100}}", "99999!", "7!!!!!!", "2^{99999999}"),
        *("(x+1)^{9999}", r"2^{\frac{1}{2^{1000}}}", "9^{9^{9}}", "9^{(9^9)}", "9^9^99", "9^(9^99)"),
        *("9^(3+9^99)", "9^{9}^{99}", "((2^{999})^{999})^{999}", "(" * 300 + "x" + ")" * 300),
        *(r"\frac{1}{" * 60 + "x" + "}" * 60, r"\sqrt{" * 60 + "x" + "}" * 60),
        *(r"\sum_{k=1}^{1000000000} k", "x^" * 300, "{" * 500, "__import__('os').system('true')"),
        *("().__class__", "lambda: 0", "1/0", "x" * 1000, "9" * 900 + "x"),
    ],
)
def test_the_symbolic_comparison_refuses_what_would_never_end(text):
    assert not equivalent(text, r"\sqrt{2} + x")
    assert not equivalent(r"\sqrt{2} + x", text)
    assert not grade("#### " + text, r"\sqrt{2} + x").correct
