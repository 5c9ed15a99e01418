import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_pspo.grading import extract, grade, last_boxed

EXTRACTED = r"""
hash: #### 5</s> => 5 | #### 5<eos>6 => 5
    it is #### 1 => 1 | ##### 5 => 5 | \boxed{3} #### \boxed{4} => 4 | #### Answer: 18 eggs => 18 eggs
boxed: \boxed{1} and 2 and \boxed{3}, 4 => 3 | \fbox{9} is it => 9
    $\boxed{\left\{1, \frac{a}{b}\right\}}$ => \left\{1, \frac{a}{b}\right\} | \boxed{\boxed{6}} => 6
    \boxed{8} or \boxed{} => 8 | escaped: \\boxed{-3} => -3 | \boxed{8} or \boxed{1 => 8
    the answer is 3, so \boxed{4} => 4 | \boxed{-2} \text{ and } \boxed{1} => -2, 1
    \boxed{3}, \boxed{5}, and \boxed{3} => 5, 3 | so \boxed 4 it is => 4 | <think>so \boxed{1}</think> => 1
    \boxed{5}. I hope that the final answer is correct. => 5
last_number: only \boxed{1 => 1 | 16 - 3 = 13 eggs, 1,300.50 grams. => 1,300.50 | the change is -4 => -4
    that is 20-4 => 20-4 | about 3/4. => 3/4 | The area is 12 m^2. => 12 | The area is 12 m^{2}. => 12
    The area is 12 m2. => 12 | so x_1 = 4 and not x_{2} => 4 | __5__ => 5 | 1.5 × 10^3 => 1.5 × 10^3
    it is 1.5 \times 10^{3}. => 1.5 \times 10^{3} | 16 × 10 => 16 × 10 | 1.5e3 => 1.5e3
    1.5 eggs => 1.5 | 2 1/2 => 2 1/2
    2 \frac{1}{2} => 2 \frac{1}{2} | from 2 to 1/2 => 1/2 | it is 10^{5} => 10^{5} | 2^{n+1} => 2^{n+1}
    4, the square of \sqrt[3]{8} => 4 | 3\sqrt{2} => 3\sqrt{2} | an area of 9\pi => 9\pi | 90^\circ => 90
    90^{\circ} => 90 | x = - 7 => -7 | x: - 7 => -7 | (- 7) => -7 | - 7 => -7 | it is - $7 => -7 | 3 - 7 => 3 - 7
    x - 7 => x - 7 | 3 apples - 7 => 7 | (3) - 7 => (3) - 7 | She pays ₹1,23,456 in all. => 1,23,456
    That makes CHF 12'345. => 12'345 | In all €1.234,50. => 1.234,50 | So n is 7 (mod 11). => 7 | It is ٤٢. => 42
    She has 1 234 apples. => 1 234 | In week 1 234 apples were sold. => 234 | She pays 7,25. => 7,25 | x = -0,5 => -0,5
    So 1_234_567 eggs. => 1_234_567 | So 1'23'456 eggs. => 1'23'456
    She has twelve apples. => 12 | Tom has 5 and gets 7. So he has twelve. => 12 | It takes one and a half hours. => 3/2
    It is 5. There are two ways to see this. => 5 | So 5 is one of them. => 5
    So x is minus 5. => -5 | It is 3×10⁸. => 3×10⁸
    It is 4, not 5. => 4 | It takes 2½ cups. => 2\frac{1}{2} | That is 5. I hope the answer is correct. => 5
    He keeps $400 000 - $282 000 = $118 000. => 118 000 | It costs $5 + $6 = $11. => 11
    It costs $5 and 3 days later $6. => 6 | There are 5 divisors of $n$. => 5
    <think>so \boxed{1}</think>It is 2. => 2 | so it costs $\$15$ => 15 | the ratio is 3:4. => 3:4
    It ends at 12:50 pm => 12:50 pm | the area is 43 / 48 => 43 / 48
last_formula: about $\frac{3}{4}$ => \frac{3}{4} | Hence $x = \frac{\sqrt{3}}{2}$. => x = \frac{\sqrt{3}}{2}
    so it is \frac{\sqrt{3}}{2}. => \frac{\sqrt{3}}{2} | The point is (3, -4). => (3, -4)
    The maximum of the 5 is $\sqrt{3}.$ => \sqrt{3}. | The roots are $x = 2$ and $x = -3$. => x = 2, x = -3
    The sum is $12,\!000,\!085$. => 12,\!000,\!085 | The points are $(1, 2)$ and $(3, 4)$. => (1, 2), (3, 4)
    so $a = 3$ and $b = 4$ => a = 3, b = 4 | The 5th letter is $k$. => k
stated: The answer is 12. => 12 | The answer is 1, 2, and 3. => 1, 2, and 3 | The answer is Rs. 500. => Rs. 500
    The answer is that she has twelve apples. => 12 | The answer is \pi/2 rad. => \pi/2 rad
    The answer is all reals except 0. => all reals except 0
    So the final answer is: $\frac{2}{7}$. That took 3 steps. => \frac{2}{7}
    **Answer:** She pays $72 in all. => 72 | <answer>3/4</answer> 5 => 3/4
    The answer is Tuesday. There are 7 days. => Tuesday | The correct answer is (C) since 5 > 3. => (C)
    the answer is 18 dollars a day for 3 eggs => 18 | The answer is 2 * 9 = 18 dollars => 18
    The answer is there are 36 ways to seat 2 of 9 guests and 4 of 5 hosts. => 36
    Answer: Tom pays $75 for 5 shirts. => 75 | The answer is that he has 5 hens and 4 ducks, so 9. => 9
    The answer is that she has 5 red and 7 blue ones. => 7 | The answer is the number of pairs is 6 * 5 / 2 = 15. => 15
    Answer: Tom has 5 shirts. He gives 2 away. That leaves 3. => 3
    The answer is that if a side is 4 the area of it will grow to 16. => 16 | The answer is $4$ and $-4$. => 4, -4
    The answer is $20$ percent. => 20% | Answer: Let x be 5. Then 2x = 10. That makes 10 apples. => 10
    The answer is 3. No: the answer is 4. => 4
    The answer is no, since every one of the 7 sums that we looked at is odd. => no
    All 7 sums are odd, so the answer is probably No - none of them is even. => No
    The answer is false because 7 is odd. => false | The answer is (2, 3). => (2, 3)
    A: \begin{pmatrix} 2 \\ 9 \end{pmatrix} => \begin{pmatrix} 2 \\ 9 \end{pmatrix} | The answer is $\$-6$. => \$-6
    The answer is 1,200, which is more than 7. => 1,200 | Therefore, the answer (arabic numerals) is 30%. => 30%
    \boxed{5} was wrong. The final answer is 6. => 6
    answer: \begin{align*} 6 &= 2 + 4 \\ &= 3 + 3 \end{align*} => \begin{align*} 6 &= 2 + 4 \\ &= 3 + 3 \end{align*}
    The answer is: the charge of 2 ions is 3.2 x 10^-19 C. => 3.2 x 10^-19
    {"answer": "42 apples", "steps": 3} => 42 apples | {"answer": "x = 5", "confidence": 0.9} => x = 5
    {"why": "1 + 2", "answer": "3/4", "n": 2} => 3/4 | {"answer": "Paris", "score": 1} => Paris
"""
"""A rule, then pairs of a text and its answer; an indented line goes on with the rule before."""


def extracted():
    rule = ""
    for line in EXTRACTED.strip().splitlines():
        rule, _, cells = (rule, "", line) if line.startswith(" ") else line.partition(": ")
        for completion, answer in (cell.strip().split(" => ") for cell in cells.split(" | ")):
            yield completion, (answer, rule)


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        *extracted(),
        ("so 5\n#### 72", ("72", "hash")),
        ("#### 1\nno wait\n#### 2\nthanks", ("2", "hash")),
        ("#### 7\n####", ("7", "hash")),  # an empty last line is no answer
        (r"\boxed{3}" + "\n#### 4", ("4", "hash")),
        ("no idea", (None, "none")),
        ("She had twelve apples and gave three away.", (None, "none")),
        ("The answer is not 42.", (None, "none")),
        ("", (None, "none")),
        ("x^{5}", (None, "none")),
        (r"\sqrt{2}", (None, "none")),
        ("so\n− 7", ("-7", "last_number")),
        ("y" * 60 + " - 7", ("7", "last_number")),
        ("Answer: **15**\n", ("15", "stated")),
        ("work\n### Final Answer\n\n(B)\n", ("(B)", "stated")),
        ("5 + 3\nA: 1,080", ("1,080", "stated")),
        ("A: 5 and B: 6\nso 7 it is", ("7", "last_number")),  # A: counts in the last line only
        ("answer = 16 - 3\nprint(answer)\n13", ("13", "last_number")),  # code
        ("#### Step 1: 5\n#### Step 2\nso 8", ("8", "last_number")),
        ("#### 5\n" + r"or \boxed{6}", ("6", "boxed")),  # the later marker
        ("#### Final Answer\n18 eggs", ("18 eggs", "stated")),
        ("```python\nprint(6 * 7)\n```", (None, "none")),  # what it would print nobody knows
        ("It is 42.\n```python\nprint(6 * 7)", ("42", "last_number")),
        ("<llm-code>\n6 * 7\n</llm-code>\n<llm-code-output>\n42\n</llm-code-output>", ("42", "last_number")),
        ("Final Answer:\n```text\n42\n```", ("42", "stated")),
        ("Answer:\n\nThis is what we get:\n\\[ 12 \\]", ("12", "last_number")),
        ("#### ~~5~~ 6", ("6", "hash")),
        ("#### ~~5~~", (None, "none")),
        ("<del>The answer is 5.</del> The answer is 6.", ("6", "stated")),
        ("#### 6\n<!-- #### 5 -->", ("6", "hash")),
        (r"\boxed{1}" * 3000 + r"\boxed{2}", ("1, 2", "boxed")),
    ],
)
def test_extract(completion, expected):
    assert extract(completion) == expected


IN_CONTEXT = r"""
? 40 + 1 = 41⏎⏎@ => last_number ; 40 + 1 = 41⏎⏎Answer: @ => stated
It will take the painter 30 hours to do the other 4 walls. => 30
Ann needs to read 9 pages a day for the next 6 days. => 9 | They needed 20 spoons of flour to bake 4 cakes. => 20
Ben must buy 14 cards so that he has 20 in all. => 14 | The rope will be 7 metres shorter from 2:00 PM on. => 7
There are 33 ounces in those 3 boxes. => 33 | Step 4: Therefore, Eve has 25 roses after 15 days. => 25
The total of all 3 boxes is 72. => 72 | He drives the other 9 miles at a speed of 3 miles an hour. => 3
She has 5 pens and buys 7 more, so she has 12. => 12 | After 5 days he has 10 apples. => 10
Ann has 16 hens, Ben has 8 hens, and Eve has 2 hens. => 2 | If he sells 4 there are 6. => 6
They have 8 hens and 9 ducks. => 9 | The lengths are 3, 5. => 5
? 2 + 3 = 5⏎@ => last_number
So he needs 8 / 2 = 4 boxes for 8 hens. => 4
It takes 30 minutes and she does it 13 times, so 30 * 13 = 390 minutes in 12 months. => 390
She has $15 left for 5 books so they would cost 15/5 = $3.00 each. => 3.00
They need 100 / 6 = 16.7 buses, which rounds up to 17. => 17 | That is 30 / 50 = 0.6 or 60%. => 60%
The price is $80 000 + $16 000 = $96 000. => 96 000 | She pays 4 * 3 = 12 dollars, 1,300 cents more. => 1,300 cents
The car needs x = 3300/275 = 12 litres for 100 km. => 12 | It takes 900/90 = 10 hours to fill the pool to 3/4. => 10
With $T=60$, the number of minutes to run is 101. => 101
The area is $\frac{12}{2} = 6$ for each and all have $18$. => 18
He fills 4 jars per shelf for 5 shelves, making 20 jars. => 20 | She sold 8 lamps, earning $96. => 96
Ben earns $12 an hour for a daily wage of $84. => 84 | Eve sells 7 cakes for $35. => 35
He uses 3 crates → 36 bottles. => 36 | The tip is 20% of $30 and the bill becomes $36. => 36
Ann reads 6 pages each evening for 5 evenings, totaling 30. => 30 | She has 5 coins worth 50 cents. => 50 cents
He has 4 bags (each of 9 balls). => 4 | Gain = $90 sales - $40 rent is $50. => 50
Taking total weight = 60 kg we find the number of sacks to be 4. => 4
With distance = 80 km the ride takes 2 hours. => 2
? @ => stated
Answer:⏎n = k + 30⏎n = 40 + 30⏎n = 70⏎⏎Ann has 70 coins. => 70
Answer: n = 70⏎m = 4 * 70 => n = 70
60 / 6 = 10 hours⏎⏎Answer: Ann paid 80 dollars to rent a boat for 9 hours. => 80
Ben has 15 - 8 = 7 cakes. The answer is that he sells 7 cakes and makes $21. => 21
The answer is 7 cakes * $3 = $21. => 21 | The answer is 7 cakes, since 5 + 5 = 10 and 3 were eaten. => 7
? So it is \boxed{2.75}. @ => boxed
The final answer is rounded to 3 digits. => 2.75 | Note that the final answer is a decimal. => 2.75
The final answer is between 2 and 3 => 2.75 | The final answer is 3 less than the 5 of before. => 2.75
The final answer is $n$ rounded to 3 digits. => 2.75
? So it is \boxed{2.75}. @ => stated
The final answer is 6. => 6 | The final answer is: 6 square metres. => 6 square metres
The final answer is $\frac{5}{2}$. I hope it is right. => \frac{5}{2} | The final answer is \(n + 1\) => n + 1
The final answer is 6. No, the final answer is **7**. => 7
? ```python⏎print(n)⏎```⏎```output⏎16.0⏎```⏎@ => printed
16 people think that horse #12 will win. => 16.0 | Sixteen of them, 16 in fact, sat in 3 rows. => 16.0 |  => 16.0
? ```python⏎print(n)⏎```⏎```output⏎16.0⏎```⏎@ => last_number
That makes 16 * 2 = 32 people. => 32 | There are 17 people. => 17
? ```python⏎print(n)⏎```⏎```output⏎16.0⏎```⏎@ => boxed
So \boxed{17}. => 17
? ```output⏎3.0⏎```⏎@ => printed
Three lorries can take the 80 stones. => 3.0
? <think>It is \boxed{9}.</think>@ => last_number ; <think>The answer is 9. No, wait.</think>@ => last_number
8 => 8 | ⏎⏎n = 8 => 8 | ⏎In all she owes 8 dollars => 8
? <think>It is \boxed{9}.</think>@ => last_formula ; <think>The answer is 9. No, wait.</think>@ => last_formula
⏎It is $z$. => z
? @ => last_number
Answer:⏎Ann has 16 hens, Ben has 8 and Eve has 2.⏎⏎The sum: 16 + 8 + 2 = 26 hens. => 26
? @ => boxed
<think>It is \boxed{9}.</think>⏎That was not easy => 9
"""
"""Texts around (@) with the rule that they lead to, then pairs of what stands there and its answer; ⏎ ends a line."""


def in_context():
    for block in IN_CONTEXT.strip().removeprefix("? ").split("\n? "):
        contexts, *lines = block.splitlines()
        for text, rule in (context.split(" => ") for context in contexts.split(" ; ")):
            for inner, answer in (cell.split(" => ") for line in lines for cell in line.split(" | ")):
                yield text.replace("@", inner).replace("⏎", "\n"), (answer, rule)


@pytest.mark.parametrize(("completion", "expected"), [*in_context()])
def test_what_stands_around_an_answer(completion, expected):
    assert extract(completion) == expected


@pytest.mark.parametrize(
    ("completion", "expected"),
    [
        ("so\n#### 72", ("72", "hash")),
        (r"so \boxed{x^2}, or 5", ("x^2", "boxed")),
        ("The answer is 72.", (None, "none")),
        ("it is 72", (None, "none")),
        (r"only \boxed{1", (None, "none")),
        (r"<think>\boxed{3}</think> so 4", ("3", "boxed")),
        ("", (None, "none")),
    ],
)
def test_strict_mode_wants_a_marker(completion, expected):
    assert extract(completion, "strict") == expected


@given(st.text(alphabet="aA#5$ \\{}()boxed.:=answeri\n", max_size=200))
def test_strict_finds_what_lenient_finds_or_nothing(completion):
    strict, lenient = extract(completion, "strict"), extract(completion)
    assert strict[0] is None or "</think>" in completion or strict == lenient
    assert (lenient[0] is None) == (lenient[1] == "none")


@pytest.mark.parametrize(
    "answer", ["72", "-3.5", r"\frac{\sqrt{3}}{2}", "x^2 + 1", "(1, 2]", r"\{1, 2\}", "Tuesday", "(C)"]
)
@pytest.mark.parametrize(
    "template",
    [
        "1 + 1 = 2\n#### {}",
        r"2, so \boxed{{{}}}, at 7.",
        "So the answer is ${}$. I hope 5 is right.",
        "<answer>{}</answer>",
    ],
)
def test_the_answer_is_found_in_every_style(template, answer):
    extracted = extract(template.format(answer))[0]
    assert extracted == answer


def test_last_boxed_returns_one_box():
    assert last_boxed(r"\boxed{1} and \boxed{2}") == "2"
    assert last_boxed(r"\boxed 2") is None


def test_a_cut_off_last_line_is_graded_as_it_stands():
    assert not grade("#### 1", "18").correct
    assert grade("#### 18", "18").correct
