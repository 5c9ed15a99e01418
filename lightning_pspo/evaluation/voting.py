"""Cluster answers that mean the same: the candidates of a majority vote."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from lightning_pspo.grading import Grade, Grader, Verdict


@dataclass
class Votes:
    """How the samples of one prompt vote.

    Attributes:
        correct: Number of samples graded correct, one cluster however they are spelt.
        others: Sizes of the clusters of the other answers.
        abstentions: Number of samples without an answer.
    """

    correct: int = 0
    others: list[int] = field(default_factory=list)
    abstentions: int = 0


def count_votes(groups: Sequence[Sequence[Grade]], grader: Grader) -> list[Votes]:
    r"""Cluster the answers of each prompt's samples by mathematical equivalence.

    Correct answers are one cluster, with which no other answer is compared. Any other answer joins the first cluster
    whose first member it is equivalent to; a comparison that fails or times out counts as different. Answers that could
    not be graded are compared by their text only: each would time out again with every other answer.

    Args:
        groups: The grades of each prompt's samples.
        grader: Compares answers.

    >>> from lightning_pspo.grading import grade
    >>> answers = ["#### 4", "#### 0.5", r"#### \frac{1}{2}", "#### 7", "?"]
    >>> with Grader() as grader:
    ...     count_votes([[grade(answer, "4") for answer in answers]], grader)
    [Votes(correct=1, others=[2, 1], abstentions=1)]
    """
    votes: list[Votes] = []
    remaining: list[Counter[str]] = []  # answers without a cluster -> number of samples
    for grades in groups:
        by_verdict: dict[Verdict, Counter[str]] = {verdict: Counter() for verdict in Verdict}
        for grade in grades:
            by_verdict[grade.verdict][grade.extracted or ""] += 1
        ungraded = by_verdict[Verdict.ERROR] + by_verdict[Verdict.TIMEOUT]
        silent = by_verdict[Verdict.NO_ANSWER].total() + ungraded.pop("", 0)
        votes.append(Votes(by_verdict[Verdict.CORRECT].total(), list(ungraded.values()), silent))
        remaining.append(by_verdict[Verdict.WRONG])
    while any(remaining):
        # Each prompt opens a cluster with its first answer; one call for all prompts keeps the grader's workers busy.
        heads = [next(iter(answers), None) for answers in remaining]
        pairs = [
            (prompt, answer)
            for prompt, (head, answers) in enumerate(zip(heads, remaining, strict=True))
            for answer in answers
            if answer != head
        ]
        verdicts = grader.equivalent([(answer, heads[prompt] or "") for prompt, answer in pairs])
        for prompt, head in enumerate(heads):
            if head is not None:
                votes[prompt].others.append(remaining[prompt].pop(head))
        for (prompt, answer), same in zip(pairs, verdicts, strict=True):
            if same:
                votes[prompt].others[-1] += remaining[prompt].pop(answer)
    return votes
