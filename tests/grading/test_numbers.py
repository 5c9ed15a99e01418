from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_pspo.grading import equivalent, parse_number, quick
from lightning_pspo.grading.numbers import read_number, same_number, split_unit


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
        ("3 million", Fraction(3_000_000)),
        ("$1.5 billion dollars", Fraction(1_500_000_000)),
        ("10**10", Fraction(10**10)),
        ("1 250 000", Fraction(1_250_000)),
        (r"0.\overline{27}", Fraction(3, 11)),
        (r"1.1\bar{6}", Fraction(7, 6)),
        ("½", Fraction(1, 2)),
        ("12cm", Fraction(12)),
        ("40 km/h", Fraction(40)),
        (r"9.8 \mathrm{~m} / \mathrm{s}^2", Fraction(49, 5)),
        ("1,000.5 m²", Fraction(2001, 2)),
        ("\u202e5\x00", Fraction(5)),
        ("٤٢", Fraction(42)),
        ("४२", Fraction(42)),
        ("\u0664\u066b\u0665", Fraction(9, 2)),
        ("1,23,456", Fraction(123456)),
        ("12'345", Fraction(12345)),
        ("1.234,56", Fraction(123456, 100)),
        ("1.234.567", Fraction(1234567)),
        ("₹500", Fraction(500)),
        ("USD 1,234", Fraction(1234)),
        ("Rs. 1,00,000", Fraction(100000)),
        ("42 dollars and 50 cents", Fraction(85, 2)),
        ("42 ✅", Fraction(42)),
        ("42 (forty-two)", Fraction(42)),
        ("forty-two", Fraction(42)),
        ("one hundred and five thousand", Fraction(105000)),
        ("1/2 (or 0.5)", Fraction(1, 2)),
        ("25°C", Fraction(25)),
        (r"42\ \mathrm{m}\cdot\mathrm{s}^{-1}", Fraction(42)),
        (r"42\,\mathrm{kg\,m\,s^{-2}}", Fraction(42)),
        (r"42\,\frac{\mathrm{m}}{\mathrm{s}^2}", Fraction(42)),
        (r"42\text{ N}\cdot\text{m}", Fraction(42)),
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
        "2**3",
        "x = 5",
        "6 dozen",
        "1 2/3/4",
        "0.\\overline{}",
        "1 2",
        "--5",
        "1.2.3",
        "nan",
        "inf",
        "3i",
        "5 am",
        "1,23,45",
        "1'2345",
        "42 (forty-three)",
        "42 (or 43)",
        "42 (wrong)",
        "two three",
        r"42\,N m x",
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
    ("a", "b", "same"),
    [
        ("0.333333", "1/3", True),
        ("0.33333", "1/3", True),  # five digits, correctly rounded
        ("0.3333", "1/3", False),
        ("0.33334", "1/3", False),
        ("2.6667", "8/3", True),
        ("2.6666", "8/3", False),  # cut off, not rounded
        ("2.66666", "8/3", True),  # six digits: cut off is near enough
        ("0.6667", "2/3", True),  # four digits, within 1e-4 of it
        ("0.667", "2/3", False),
        ("1.333", "4/3", False),
        ("16386.17", "16386.169", True),
        ("16386.17", "16386.16", False),
        ("0.30000000000000004", "0.3", True),
        ("17.999999999999996", "18", True),
        ("18.0001", "18", False),
        ("12345.4", "12345", False),  # an integer is no rounded value
        ("1000000.5", "1000001", False),
        ("3.3e-8", "4e-8", False),  # the tolerance is relative for small numbers
        ("3.30000001e-8", "3.3e-8", True),
        ("1" + "0" * 25, "1" + "0" * 24 + "1", False),
    ],
)
def test_tolerance(a, b, same):
    assert quick(a, b) is same
    assert quick(b, a) is same


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("50%", "50", True),
        ("50%", "0.5", True),
        (r"50\%", "1/2", True),
        ("50 percent", r"50\%", True),
        ("50", "0.5", False),
        ("50%", "0.05", False),
        ("50%", "5%", False),
        ("0.5%", "50", False),
        ("12.5%", "1/8", True),
    ],
)
def test_a_percent_sign_means_a_hundredth_or_nothing(a, b, same):
    assert quick(a, b) is same
    assert quick(b, a) is same


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        ("5 cm", "5 centimeters", True),
        ("5 cm", "5", True),
        ("5 cm", "5 m", False),
        ("3 hours", "3 minutes", False),
        ("2 hr", "2 hours", True),
        ("7 apples", "7 pears", True),  # not common units, so they do not count
        ("7 cents", "7 dollars", False),
    ],
)
def test_units(a, b, same):
    assert quick(a, b) is same


def test_split_unit_leaves_words_that_change_the_value():
    assert split_unit("5 square inches") == ("5", "")
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
