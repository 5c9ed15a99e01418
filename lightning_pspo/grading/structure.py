"""Take an answer with several parts apart: lists, tuples, sets, intervals, unions and matrices."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_TOKEN = re.compile(
    r"\\begin\s*\{[a-zA-Z*]{1,20}\}|\\end\s*\{[a-zA-Z*]{1,20}\}|\\[A-Za-z]+|\\.|[(\[{]|[)\]}]|[,;]|=|(?<=[)\]\s])U(?=[(\[\s])",
    re.DOTALL,
)
_AND = re.compile(r"(?:\s*,)?\s*(?<![A-Za-z\\])(?:and|or|\\(?:land|lor|wedge|vee)|&)(?![A-Za-z])\s*")
_THOUSANDS = re.compile(r"(?<![0-9.,])[1-9][0-9]{0,2}(?:,[0-9]{3})+(?![0-9])")
_MATRIX = re.compile(
    r"[(\[]?\s*\\begin\{(?P<kind>[pbBvV]?matrix|smallmatrix|array)\}(?P<columns>\{[^{}]{0,20}\})?(?P<body>.*)"
    r"\\end\{(?P=kind)\}\s*[)\]]?",
    re.DOTALL,
)
_CASES = re.compile(
    r"\\?\{?\s*\\begin\{(?:cases|aligned|gathered|array\}\{[lcr]{1,3})\}(?P<body>.*)\\end\{(?:cases|aligned|gathered|array)\}",
    re.DOTALL,
)
_DIAGONAL = re.compile(r"\\?diag\s?\(([^()]*)\)")
_IF = re.compile(r"\A(?:,|if|for|when|\s)+(?![A-Za-z])")
_ORDER = re.compile(r"\\(?:le|ge)(?![A-Za-z])|[<>=]")
_TURNED = {"<": ">", ">": "<", r"\le": r"\ge", r"\ge": r"\le", "=": "="}
_ROW_ENDS = re.compile(r"\\\\(?:\s?\[[0-9.]{1,5}\s?(?:pt|ex|em|mm)\])?|\\cr(?![A-Za-z])")
_MAX_DEPTH = 20  # a text whose brackets are nested deeper is one answer


@dataclass(frozen=True, slots=True)
class Collection:
    """Several answers in one."""

    opening: str  # a bracket; empty for a bare list; ``cup`` for a union; ``matrix`` or ``determinant``
    items: tuple[str, ...]  # at least one
    closing: str  # a bracket; the numbers of columns, joined by commas, for a matrix; else empty

    @property
    def ordered(self) -> bool:
        """Whether the order of the items means something."""
        return self.opening not in ("", "{", "cup")


def split_collection(text: str) -> Collection | None:
    r"""Take a cleaned answer apart; None when it is a single one.

    >>> split_collection("(1, 2]")
    Collection(opening='(', items=('1', '2'), closing=']')
    >>> split_collection(r"1,000, 2 and \{3,4\}").items, split_collection(r"f(1,2)")
    (('1,000', '2', '\\{3,4\\}'), None)
    """
    if any(depth > _MAX_DEPTH for _, _, depth in _tokens(text)):
        return None
    if match := _DIAGONAL.fullmatch(text):
        entries = split_top(match[1], (",",))
        rows = [["0"] * row + [entry] + ["0"] * (len(entries) - row - 1) for row, entry in enumerate(entries)]
        return _matrix(rows) if len(entries) <= _MAX_DEPTH else None
    if "\\begin" in text:
        return _split_environment(text)
    parts = split_top(text, ("\\cup", "U"))
    if len(parts) > 1:
        return Collection("cup", tuple(parts), "")
    opening, inner, closing = _brackets(text)
    if not opening and ("and" in inner or "or" in inner or "\\" in inner or "&" in inner):
        inner = _AND.sub(", ", inner)
    if re.search(r"[,;]\s", inner):  # then a comma without a space belongs to a number
        inner = _THOUSANDS.sub(lambda number: number.group().replace(",", "{,}"), inner)
    items = tuple(item.replace("{,}", ",") for item in split_top(inner, (",", ";")) if item)
    if opening == "[" and len(items) > 1 and all(_brackets(item)[::2] == ("[", "]") for item in items):
        return _matrix([split_top(_brackets(item)[1], (",",)) for item in items])  # as programs print it
    return Collection(opening, items, closing) if opening or len(items) > 1 else None


def chain(text: str) -> tuple[list[str], list[str]]:
    """Return the sides of a relation and its signs, turned so that the first sign is no ``>``.

    >>> chain("x > y > 2"), chain("x = 2")
    ((['2', 'y', 'x'], ['<', '<']), (['x', '2'], ['=']))
    """
    sides, signs = [side.strip() for side in _ORDER.split(text)], _ORDER.findall(text)
    return (sides[::-1], [_TURNED[sign] for sign in signs[::-1]]) if signs[:1] in ([">"], [r"\ge"]) else (sides, signs)


def split_top(text: str, separators: tuple[str, ...]) -> list[str]:
    """Split at separators that stand outside all brackets, and strip the parts."""
    parts, start = [], 0
    for token, position, depth in _tokens(text):
        if depth == 0 and token in separators:
            parts.append(text[start:position].strip())
            start = position + len(token)
    return [*parts, text[start:].strip()]


def _tokens(text: str) -> Iterator[tuple[str, int, int]]:
    """Yield each token with its position and the depth of brackets around it; a bracket is outside itself."""
    depth = 0
    for match in _TOKEN.finditer(text):
        token = match.group()
        if token in (")", "]", "}", r"\}") or token.startswith(r"\end"):
            depth = max(0, depth - 1)
        yield token, match.start(), depth
        if token in ("(", "[", "{", r"\{") or token.startswith(r"\begin"):
            depth += 1


def _brackets(text: str) -> tuple[str, str, str]:
    """Return the brackets around the whole of a text, and what is inside; empty ones if there are none."""
    if not text.startswith(("(", "[", r"\{")):
        return "", text, ""
    for number, (token, position, depth) in enumerate(_tokens(text)):
        if number and depth == 0 and token in (")", "]", r"\}"):
            if position + len(token) < len(text) or (text[0] == "\\") != (token[0] == "\\"):
                break
            size = len(token)
            return text[size - 1], text[size:position].strip(), token[-1]
    return "", text, ""


def _split_environment(text: str) -> Collection | None:
    """Read a system of equations as a list of them, a definition by cases as one of pairs, a matrix by its entries."""
    cases = _CASES.fullmatch(text)
    if cases and "\\begin" not in cases["body"] and not ("array" in text and "=" not in text):
        items = tuple(_case(row.rstrip(",;.")) for row in rows(cases["body"]))
        if len(items) > 1:
            return Collection("", items, "")
    match = _MATRIX.fullmatch(text)
    if not match or "\\begin" in match["body"]:
        return None
    cells = [[cell.strip() for cell in row.split("&")] for row in rows(match["body"])]
    return _matrix(cells, "determinant" if match["kind"] in ("vmatrix", "Vmatrix") else "matrix") if cells else None


def rows(body: str) -> list[str]:
    """Return the rows of what stands in an environment."""
    return [row for row in map(str.strip, _ROW_ENDS.split(body)) if row and row != "\\"]


def _case(row: str) -> str:
    value, sign, condition = (part.strip() for part in row.partition("&"))
    if not sign or condition.startswith(("=", "<", ">", "\\")) or not value:
        return value + condition
    return f"({value.rstrip(',')}, {_IF.sub('', condition)})"


def _matrix(rows: list[list[str]], kind: str = "matrix") -> Collection:
    return Collection(kind, tuple(cell for row in rows for cell in row), ",".join(str(len(row)) for row in rows))
