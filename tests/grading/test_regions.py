"""Sets of real numbers in other words."""

import pytest

from lightning_pspo.grading import quick


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [
        (r"x<3, x≠-2", r"(-\infty,-2)\cup(-2,3)", True),
        (r"x < 3 \text{ and } x \ne -2", r"(-\infty,-2)\cup(-2,3)", True),
        (r"\{x < 3 : x \neq -2\}", r"(-\infty,-2)\cup(-2,3)", True),
        ("x < 3", r"(-\infty,-2)\cup(-2,3)", False),
        (r"x \le 3, x \ne -2", r"(-\infty,-2)\cup(-2,3)", False),
        ("all reals except 1 and 2", r"x \ne 1, 2", True),
        (r"x \ne \pm 1", r"(-\infty,-1)\cup(-1,1)\cup(1,\infty)", True),
        (r"x < -1 or x \ge 3", r"[3,\infty)\cup(-\infty,-1)", True),
        ("2 > x > 1", "]1, 2[", True),
        ("1 < x < 2", "[1, 2)", False),
        (r"-\infty<x<\infty", r"(-\infty, \infty)", True),
        (r"\mathbb{R}", r"-\infty < x < \infty", True),
        (r"x < \infty", r"x > 0", False),
        (r"1 < x < \sqrt{4}", "(1, 2)", True),
    ],
)
def test_sets_of_real_numbers(left, right, same):
    assert quick(left, right) is same
