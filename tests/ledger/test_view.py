"""Rows as text for a terminal."""

from hypothesis import given
from hypothesis import strategies as st

from lightning_pspo.errors import visible


@given(st.text())
def test_no_text_controls_a_terminal(text: str) -> None:
    shown = visible(text)
    assert shown.isprintable()
    assert visible(text, lines=True).count("\n") == text.count("\n")
    if text.isprintable():
        assert shown == text
