"""A model's text on the page: escaped, and its formulas as MathML."""

import re
from html.parser import HTMLParser

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_pspo.report.escaping import text
from lightning_pspo.report.tex import _ELEMENTS, render, to_mathml

ALLOWED = _ELEMENTS | {"span", "code"}


class Tags(HTMLParser):
    """Collects elements, attributes and text as a browser reads them."""

    def __init__(self, page: str) -> None:
        super().__init__(convert_charrefs=True)
        self.names: list[str] = []
        self.attributes: set[str] = set()
        self.text = ""
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.names.append(tag)
        self.attributes |= {name for name, _ in attrs}

    def handle_data(self, data: str) -> None:
        self.text += data


def assert_harmless(page: str) -> Tags:
    tags = Tags(page)
    assert set(tags.names) <= ALLOWED
    assert not any(name.startswith("on") or name in ("href", "src", "style") for name in tags.attributes)
    assert "<!--" not in page
    assert not re.search(r"[\0-\x08\x0b-\x1f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", page)
    return tags


@given(st.text(alphabet=st.sampled_from("$\\(){}[]<>&\"'/=frac textboxed script\0\u202e^_12"), max_size=60))
def test_any_text_is_harmless(source: str) -> None:
    assert_harmless(render(source))


@given(st.text(alphabet=st.characters(codec="utf-8", exclude_categories=["Cc", "Cf", "Zl", "Zp"])))
def test_plain_text_is_unchanged(source: str) -> None:
    assert Tags(text(source)).text == source


@pytest.mark.parametrize(
    ("source", "inside", "rest"),
    [
        (r"so \(\frac{1}{2}\) it is", "<mfrac><mrow><mn>1</mn></mrow><mrow><mn>2</mn></mrow></mfrac>", "so |it is"),
        (r"\[ \sqrt{2} \]", 'display="block"', ""),
        (r"thus \boxed{\frac{3}{4}}.", 'class="boxed"', "thus |."),
        (r"\begin{align*} x &= 1 \\ y &= 2 \end{align*}", "<mtable", ""),
        (r"$\begin{pmatrix}1 & 2\\3 & 4\end{pmatrix}$", "<mtable", ""),
        (r"$\text{if } x<3$", "&lt;", ""),
    ],
)
def test_formulas(source: str, inside: str, rest: str) -> None:
    shown = render(source)
    assert inside in shown
    assert shown.count("<math") == 1
    for part in filter(None, rest.split("|")):
        assert part in shown


@pytest.mark.parametrize(
    "source",
    [
        "It costs $5 and then $6.",
        "from $5-$6 or US$7$",
        r"a \$5 bill and \$6",
        "$unclosed",
        r"\boxed{never closed",
        "$a\nb$",
    ],
)
def test_what_is_no_formula(source: str) -> None:
    assert render(source) == text(source)


@pytest.mark.parametrize("source", [r"\frac{1}", r"\nosuchcommand{x}", "x^", "{" * 500 + "}" * 500, "x" * 3000])
def test_what_cannot_be_converted_stays_as_written(source: str) -> None:
    assert to_mathml(source) is None
    written = f"\\({source}\\)"
    assert Tags(render(written)).text == written
    assert "<math" not in render(written)


def test_what_was_written_stays_on_the_page() -> None:
    assert 'data-tex="$a &lt; &#34;b&#34;$"' in render('$a < "b"$')
