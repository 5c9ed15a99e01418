"""Render a model's text as HTML: formulas as MathML, everything else escaped."""

from __future__ import annotations

import html
import re
from collections.abc import Iterator
from functools import lru_cache
from xml.etree import ElementTree

from markupsafe import Markup

from lightning_pspo.report.escaping import finalize, text

MAX_FORMULA = 2_000
"""Characters of the longest formula that is converted; a longer one stays text."""
_MAX_DEPTH = 40  # of its braces and environments

_FORMULA = re.compile(
    r"""
    \$\$(?P<display>[^$]{1,2000}?)\$\$
    | \\\[(?P<bracket>.{1,2000}?)\\\]
    | \\\((?P<paren>.{1,2000}?)\\\)
    | (?P<environment>\\begin\{(?P<kind>
        (?:equation|align|aligned|gather|gathered|split|[pbvBV]?matrix|cases|array)\*?)\}.{1,2000}?\\end\{(?P=kind)\})
    | (?<![\\$\w])\$(?=[^\s$])(?P<inline>(?:\\.|[^$\\\n]){1,500}?)(?<=[^\s\\])\$(?![\d$])
    | (?P<boxed>\\(?:boxed|fbox)\s*(?=\{))
    """,
    re.VERBOSE | re.DOTALL,
)
_ELEMENTS = {
    *("math", "merror", "mfrac", "mi", "mmultiscripts", "mn", "mo", "mover", "mpadded", "mphantom", "mprescripts"),
    *("mroot", "mrow", "ms", "mspace", "msqrt", "mstyle", "msub", "msubsup", "msup", "mtable", "mtd", "mtext", "mtr"),
    *("munder", "munderover", "none"),
}
_PARTS = {"mfrac": 2, "mroot": 2, "msub": 2, "msup": 2, "msubsup": 3, "mover": 2, "munder": 2, "munderover": 3}
_ATTRIBUTES = {
    *("accent", "accentunder", "depth", "displaystyle", "fence", "form", "height", "largeop", "linethickness"),
    *("lspace", "mathvariant", "maxsize", "minsize", "movablelimits", "rspace", "scriptlevel", "separator"),
    *("stretchy", "symmetric", "voffset", "width"),
}
_PLAIN_VALUE = re.compile(r"-?[\w.%+ -]{1,24}")
_CANCELS = ("updiagonalstrike", "downdiagonalstrike", "horizontalstrike")


def render(value: str) -> Markup:
    r"""Return a model's text as HTML, with the formulas between ``$``, ``$$``, ``\( \)``, ``\[ \]`` or in boxes.

    What cannot be converted stays as it was written. A dollar sign may stand for money: one that opens a formula has no
    space behind it, one that closes it has none before and no digit behind it.

    >>> str(render("costs $5 and <b>"))
    'costs $5 and &lt;b&gt;'
    >>> "<mfrac>" in render(r"so \(\frac{1}{2}\)")
    True
    """
    parts: list[Markup] = []
    end = 0
    for start, stop, source, display in _formulas(value):
        converted = to_mathml(source, display)
        own_line = display and converted is not None  # drawn as a block, which needs no line break around it
        parts += [text(value[end:start].removesuffix("\n") if own_line else value[end:start])]
        parts += [_formula(value[start:stop], converted, display)]
        end = stop + (own_line and value.startswith("\n", stop))
    return Markup("").join([*parts, text(value[end:])])


def _formulas(value: str) -> Iterator[tuple[int, int, str, bool]]:
    """Yield where formulas begin and end, their TeX, and whether they have a line of their own."""
    position = 0
    while match := _FORMULA.search(value, position):
        position = match.end()
        kind = match.lastgroup if match["environment"] is None else "environment"
        if kind == "boxed":
            stop = _closing_brace(value, match.end())
            if stop is not None:
                yield match.start(), stop, r"\boxed" + value[match.end() : stop], False
                position = stop
        elif kind == "environment":
            yield match.start(), match.end(), match["environment"], True
        else:
            yield match.start(), match.end(), str(match[str(kind)]), kind in ("display", "bracket")


def _closing_brace(value: str, start: int) -> int | None:
    """Return where the group that opens at ``start`` has ended; None if it does not within a formula's length."""
    depth = 0
    position = start
    while position < min(len(value), start + MAX_FORMULA):
        sign = value[position]
        if sign == "\\":
            position += 1
        depth += (sign == "{") - (sign == "}")
        position += 1
        if depth == 0:
            return position
    return None


def _formula(written: str, converted: Markup | None, display: bool) -> Markup:
    if converted is None:
        return Markup('<code class="tex">{}</code>').format(text(written))
    kind = "formula display" if display else "formula"
    return Markup('<span class="{}" data-tex="{}">{}</span>').format(kind, finalize(written), converted)


@lru_cache(maxsize=4096)
def to_mathml(source: str, display: bool = False) -> Markup | None:
    r"""Return TeX as MathML that holds nothing but mathematics, None if it cannot be converted.

    The converter's tree is rewritten with elements and attributes from a fixed list, because its text comes from a
    model: ``\text{<script>}`` is text.

    >>> str(to_mathml("x^2"))
    '<math><mrow><msup><mi>x</mi><mn>2</mn></msup></mrow></math>'
    """
    from latex2mathml.converter import convert_to_element

    if len(source) > MAX_FORMULA or _depth(source) > _MAX_DEPTH or re.search(r"[\0-\x08\x0b-\x1f]", source):
        return None
    try:
        tree = convert_to_element(_prepared(source))
        return _written(tree, display)
    except Exception:  # the converter raises anything for what a model wrote
        return None


def _prepared(source: str) -> str:
    """Return TeX without labels, and without what the converter does not know and a reader does not miss."""
    source = re.sub(r"\\(?:tag|label)\*?\{[^{}]*\}", "", source)
    source = re.sub(r"\\(begin|end)\{(?:aligned|gathered|gather\*?)\}", r"\\\1{split}", source)
    return source.replace(r"\dotsb", r"\dots").replace(r"\!", "").strip()


def _depth(source: str) -> int:
    deepest = depth = 0
    for sign in re.findall(r"[{}]|\\(?:begin|end|left|right)\b", source):
        depth += 1 if sign in ("{", r"\begin", r"\left") else -1
        deepest = max(deepest, depth)
    return deepest


class _UnknownError(ValueError):
    """An element or command that is not in the list."""


def _written(node: ElementTree.Element, display: bool = False) -> Markup:
    name = node.tag.rpartition("}")[2]
    shown: dict[str, str] = {}
    if name == "menclose":  # which browsers do not draw: the style sheet does
        notation = node.get("notation", "")
        shown["class"] = "cancel" if any(mark in notation for mark in _CANCELS) else "boxed"
        name = "mrow"
    if name not in _ELEMENTS:
        raise _UnknownError(f"`{name}` is not allowed.")
    if name == "math" and display:
        shown["display"] = "block"
    if len(node) != _PARTS.get(name, len(node)):
        raise _UnknownError(f"`{name}` has {len(node)} parts.")
    shown |= {key: value for key, value in node.items() if key in _ATTRIBUTES and _PLAIN_VALUE.fullmatch(value)}
    if node.get("columnalign") in ("left", "right"):
        shown["class"] = f"to-{node.get('columnalign')}"
    attributes = Markup("").join(Markup(' {}="{}"').format(key, value) for key, value in shown.items())
    inside = Markup("").join([_plain(node.text), *(_written(child) + _plain(child.tail) for child in node)])
    return Markup("<{}{}>{}</{}>").format(name, attributes, inside, name)


def _plain(value: str | None) -> Markup:
    """Return text of the converter, which writes special characters as references."""
    content = html.unescape(value or "")
    if re.match(r"\\[A-Za-z]", content):
        raise _UnknownError(f"{content} is not a known command.")
    return text(re.sub(r"\\([$%&#_{} ])", r"\1", content))
