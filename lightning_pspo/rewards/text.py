"""Measures of a completion's text that do not judge its answer. Imports nothing of ours and no torch."""

from __future__ import annotations

import re

_WORD = re.compile(r"\w+")

REPETITION_WORDS = 4
PROMPT_WORDS = 8


def repetition(completion: str, words: int = REPETITION_WORDS) -> float:
    """Return the share of a text's word n-grams that occurred before in it (seq-rep-n of arXiv 1908.04319).

    Args:
        completion: Any text; white space separates words.
        words: n, at least 1.

    Returns:
        In [0, 1); 0 for a text of fewer than n words.

    >>> repetition("so it is so it is so it is", words=3)  # three of seven differ
    0.5714285714285714
    """
    tokens = completion.split()
    grams = [tuple(tokens[start : start + words]) for start in range(len(tokens) - words + 1)]
    return (len(grams) - len(set(grams))) / len(grams) if grams else 0.0


def repeats_prompt(completion: str, prompt: str, words: int = PROMPT_WORDS) -> bool:
    r"""Tell whether a completion repeats that many consecutive words of its prompt, case and punctuation aside.

    Args:
        completion: Any text.
        prompt: All that the model was given: instructions, template and question.
        words: At least 1; a prompt of fewer words is never repeated.

    >>> prompt = "Question: How many apples has Ann left after lunch? Answer:"
    >>> repeats_prompt("Seven.\nQuestion: how many apples has Ann left after lunch?", prompt)
    True
    >>> repeats_prompt("Ann has 7 apples left after lunch.", prompt)
    False
    """
    grams = _grams(completion, words)
    return bool(grams) and not grams.isdisjoint(_grams(prompt, words))


def _grams(text: str, words: int) -> set[tuple[str, ...]]:
    tokens = _WORD.findall(text.casefold())
    return {tuple(tokens[start : start + words]) for start in range(len(tokens) - words + 1)}
