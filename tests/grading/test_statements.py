"""What is said around a number: denials, corrections, lists, undone calculations; and other forms of an answer."""

import pytest

from lightning_pspo.grading import grade

WRONG = r"""
She does not pay 18. | She never makes 18 dollars. | It is impossible that she makes 18. | Nobody would say 18.
She won't have 18. | She has no 18 eggs. | It's not the case that the answer is 18. | She fails to sell 18.
Suppose x = 18.
16, 3, 4, 9, 18 | 5 7 18 | 16⏎17⏎18 | (16) (17) (18) | 9 + 18 | log 18 | x/18 | f(18) | 36 - 18 | 18 - x | 18 \cdot x
The answer is 18. Hmm, that is wrong. | The answer is 18. No wait, it's 19. | The answer is 18. Actually, 19.
The answer is 18. But this cannot be right. | The answer is 18. Scratch that: 19. | The answer is a multiple of 18.
The answer is different from 18. | The answer is 18 doubled. | The answer is divisible by 18. | 18 is too many.
x = 18 does not work, so no solution | no solution; 18 is extraneous | 18 BC | 0x18 | 19. See Step 18
The answer is 18% | {"answer": 20, "steps": 18} | {"answers": [17, 18]} | 18_{16} | x = \boxed{18}, y = \boxed{3}
"""
RIGHT = r"""
She does not eat the rest, so she sells 18. | She doesn't keep any, thus 18 are left. | It is not 19 but 18.
18, not 19. | {"answer": "18", "steps": 3} | {"final_answer": 18, "confidence": 0.95} | 9 * 2 = 18 | 18 = 9 * 2
The answer is 19. Wait, no, the answer is 18. | The answer is 18. Actually, this is simple.
The answer is 18. This is correct. | The answer is 18. Check: 9 * 2 = 18.
Step 1: 16 - 7 = 9⏎Step 2: 9 * 2 = 18 | So 9 x 2 = $18.
"""


@pytest.mark.parametrize(("texts", "correct"), [(WRONG, False), (RIGHT, True)])
def test_what_stands_around_a_number(texts, correct):
    question = "Janet sells her 9 eggs for $2 each. How much does she make?"
    for text in texts.replace("\n", " | ").strip(" |").split(" | "):
        assert grade(text.replace("⏎", "\n"), "18", question=question).correct is correct, text


@pytest.mark.parametrize(
    ("question", "answer", "right", "wrong"),
    [
        ("Solve the equation.", r"\emptyset", "There is no solution.", "There is one solution."),
        ("Name the largest planet.", "Jupiter", "The largest planet is Jupiter.", "It is not Jupiter."),
        ("How many hours and minutes?", "3:20", "3 hours and 20 minutes", "3 hours and 33 minutes"),
        ("How long does it take, in hours?", "2.5", "It takes 2 hours and 30 minutes.", "It takes 2 hours 5 minutes."),
        ("How tall is he?", "5 feet 6 inches", "66 inches", "56 inches"),
        ("What is the angle in degrees?", "45", "45 degrees", "45 radians"),
        ("Convert 1011 from base 2.", "11", "11 (base 10)", "11_2"),
        ("Write 11 in base 2.", "1011_2", "1011 in base 2", "1011 in base 3"),
        ("What is the probability?", "0.25", "25%", "0.25%"),
        ("Solve 2x = 10 for x.", "5", "x = 5", "2x = 5"),
        ("Factor it.", "(x-2)(x-3)", "(x-3)(x-2)", "x(x-5) + 6"),
        ("What comes next in the pattern 5, 7, 10, 14?", "19", "5, 7, 10, 14, 19", "5, 7, 10, 14, 18"),
        ("What is the area?", r"9\pi", "The area is 9π square units.", r"9\pi^2"),
    ],
)
def test_other_forms(question, answer, right, wrong):
    assert grade(right, answer, question=question).correct
    assert not grade(wrong, answer, question=question).correct
