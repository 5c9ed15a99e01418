import re
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_pspo.grading import equivalent, parse_number, quick
from lightning_pspo.grading.numbers import read_number, same_number, split_unit

VALUES = r"""
25 = 25 | 25 = 025 | 25 = 25°C | 3 = +3 | 3 = 3 square meters | 3 = 3 quarters | -7/2 = -3.50 | -7 = −7 | 1/2 = .5
1/2 = ½ | 1/2 = 1/2 (or 0.5) | 1234567 = 1,234,567 | 1234567 = 1.234.567 | 10080 = 10,\!080 | 10080 = 10{,}080
189/10 = $18.90 | 32348 = \$32,\!348 | -5 = -$5 | 50 = 50\% | 18 = 18. | 18 = **18** | 18 = 18 dollars | 7/4 = 7/4
-7/4 = -7/4 | -7/4 = \frac{-7}{4} | -7/4 = -\dfrac{7}{4} | 4/3 = \frac43 | 5/9 = \frac 59 | 3/2 = 1 1/2
-275/2 = -137 \frac{1}{2} | 72 = 72 clips | 9 = 9 (apples) | 27/5 = 5.4 \text{ cents} | 15 = 15\mbox{ cm}^2
90 = 90^\circ | 1200 = 1.2e3 | 3/50 = 6 \times 10^{-2} | 1500 = 1.5 × 10^3 | 100000 = 10^{5} | 100000 = Rs. 1,00,000
12 = 12 apples | 12 = 12cm | 45 = 45 miles per hour | 7 = 7 cm | 7 = 7 cm^2 | 10 = 10 degrees | 4 = 4 t-shirts
4 = 4 pieces of candy | 3000000 = 3 million | 1500000000 = $1.5 billion dollars | 10000000000 = 10**10
1250000 = 1 250 000 | 3/11 = 0.\overline{27} | 7/6 = 1.1\bar{6} | 40 = 40 km/h | 49/5 = 9.8 \mathrm{~m} / \mathrm{s}^2
2001/2 = 1,000.5 m² | 42 = ٤٢ | 42 = ४२ | 42 = 42 ✅ | 42 = 42 (forty-two) | 42 = forty-two
42 = 42\ \mathrm{m}\cdot\mathrm{s}^{-1} | 42 = 42\,\mathrm{kg\,m\,s^{-2}} | 42 = 42\,\frac{\mathrm{m}}{\mathrm{s}^2}
42 = 42\text{ N}\cdot\text{m} | 123456 = 1,23,456 | 12345 = 12'345 | 30864/25 = 1.234,56 | 500 = ₹500
1234 = 1 234 apples | 1234 = Rs. 1,234/- | 1234 = CHF 1'234.- | 500 = A$500 | 500 = 500 Rs | 500 = \pounds 500
42 = 42 J/(kg·K) | 42 = 42 sq. ft. | 42 = 42 m.p.h. | 42 = 42\ \mathrm{ms}^{-1} | 1/2 = 1/2 cup
25 = 25 degrees C | 25 = 25^o | 3/2 = one and a half cups | 3/2 = 1 and 1/2 | 29/4 = seven point two five
1/3 = 0.333... | 1/3 = 0.(3) | 1/3 = one third | 1/1000 = 10^{-3} | 1234 = USD 1,234 | 85/2 = 42 dollars and 50 cents
105000 = one hundred and five thousand | 123456 = 1'23'456 | 1234567 = 1_234_567
"""
"""Pairs of a value and its spelling."""
ODD_VALUES = [("5", "\u202e5\x00"), ("9/2", "\u0664\u066b\u0665")]


def values():
    return [tuple(pair.split(" = ")) for line in VALUES.strip().splitlines() for pair in line.split(" | ")]


@pytest.mark.parametrize(("value", "text"), values() + ODD_VALUES)
def test_parse_number(value, text):
    assert parse_number(text) == Fraction(value)


@pytest.mark.parametrize(
    "text",
    [
        *("", "x", "2x", "2 pi", r"2\pi", "1,2", "1,23", "12,345,6", "1/0", r"\frac{1}{0}", "5:6"),
        *("52_8", "52_8000", "1,23'456", "(1,2)", "1e101", "1e999999", "9" * 101, "2**3", "x = 5", "1 2/3/4"),
        *("0.\\overline{}", "1 2", "--5", "1.2.3", "nan", "inf", "3i", "1,23,45", "1'2345"),
        *("42 (forty-three)", "42 (or 43)", "42 (wrong)", "two three", r"42\,N m x"),
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


NUMBERS = r"""
0.333333 = 1/3 | 0.33333 = 1/3 | 0.3333 != 1/3 | 0.33334 != 1/3 | 2.6667 = 8/3 | 2.6666 != 8/3 | 2.66666 = 8/3
0.6667 = 2/3 | 0.667 != 2/3 | 1.333 != 4/3 | 16386.17 = 16386.169 | 16386.17 != 16386.16 | 0.30000000000000004 = 0.3
17.999999999999996 = 18 | 18.0001 != 18 | 12345.4 != 12345 | 1000000.5 != 1000001 | 3.3e-8 != 4e-8
3.30000001e-8 = 3.3e-8 | 10000000000000000000000000 != 10000000000000000000000001
50% = 50 | 50% = 0.5 | 50\% = 1/2 | 50 percent = 50\% | 50 != 0.5 | 50% != 0.05 | 50% != 5% | 0.5% != 50 | 12.5% = 1/8
5 cm = 5 centimeters | 5 cm = 5 | 5 cm != 5 m | 3 hours != 3 minutes | 2 hr = 2 hours | 7 apples = 7 pears
7 cents != 7 dollars
"""
"""Pairs of numbers that are the same (=) or not (!=): tolerance of rounded and cut decimals, percent signs, units."""


@pytest.mark.parametrize("pair", [pair for line in NUMBERS.strip().splitlines() for pair in line.split(" | ")])
def test_same_number(pair):
    a, sign, b = re.split(" (!?=) ", pair)
    assert quick(a, b) is (sign == "=")
    assert quick(b, a) is (sign == "=")


def test_split_unit_leaves_words_that_change_the_value():
    assert split_unit("5 square inches") == ("5", "in^2")
    assert split_unit("5 inches") == ("5", "in")
    assert split_unit("5 squared") == ("5 squared", "")
    assert split_unit("5 x") == ("5 x", "")


def test_number_keeps_how_it_was_written():
    assert read_number("012.50").digits == 4
    assert read_number("1.5e3").places == 0
    assert read_number("1.25e1").places == 1
    assert read_number(r"\frac{1}{2}").digits == 0
    assert same_number(read_number("5"), read_number("5.0"))


@given(st.integers(-(10**7), 10**7), st.integers(1, 97), st.integers(4, 9))
def test_a_rounded_decimal_is_the_fraction_and_its_neighbour_is_not(numerator, denominator, places):
    fraction = f"{numerator}/{denominator}"
    shown = round(Fraction(numerator, denominator) * 10**places)
    digits = str(abs(shown)).rjust(places + 1, "0")
    sign = "-" if shown < 0 else ""
    text = f"{sign}{digits[:-places]}.{digits[-places:]}"
    if len(digits.lstrip("0")) >= 5:
        assert quick(text, fraction)
    assert not quick(text + "1", str(numerator * 10 + 7)) or denominator > 1
    assert not quick(f"{sign}{int(digits[:-places]) + 1}.{digits[-places:]}", fraction)
