"""Read tables of texts that are right or wrong for a question."""

import pytest


def cases(table, frames=("{}",)):
    """Yield question, reference and verdicts of the blocks of a table.

    A block begins with a question and its reference, or a reference; right answers (+) and wrong ones (-) follow; ⏎
    ends a line. Each text stands in every frame.
    """
    for block in table.strip().removeprefix("? ").split("\n? "):
        (head, *lines), verdicts = block.splitlines(), {}
        for line in lines:
            for text in line[2:].replace("⏎", "\n").split(" | "):
                verdicts |= {frame.format(text): line[0] == "+" for frame in frames}
        question, _, answer = head.rpartition(" => ")
        yield pytest.param(question, answer, verdicts, id=head)
