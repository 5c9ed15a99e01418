"""Clusters of answers that mean the same: the candidates of a majority vote."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from lightning_pspo.grading import Grade, Grader, Verdict


@dataclass
class Votes:
    """How the samples of one prompt vote.

    Attributes:
        correct: Samples that were graded correct: one cluster, whatever their spelling.
        others: Sizes of the clusters of the other answers.
        abstentions: Samples without an answer.
    """

    correct: int = 0
    others: list[int] = field(default_factory=list)
    abstentions: int = 0


def count_votes(groups: Sequence[Sequence[Grade]], grader: Grader) -> list[Votes]:
    r"""Cluster the answers of each prompt's samples by mathematical equivalence.

    Correct answers are one cluster and are never compared with the others: the reference answer has decided that.
    Another answer joins the first cluster whose first member it is equivalent to; a comparison that ends in an error or
    at its deadline counts as different. Equal texts are one answer without a comparison. An answer that could not be
    graded is compared in no other way: it would run into its deadline with each of the others.

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
    remaining: list[Counter[str]] = []  # answers without a cluster, and how often each was given
    for grades in groups:
        by_verdict: dict[Verdict, Counter[str]] = {verdict: Counter() for verdict in Verdict}
        for grade in grades:
            by_verdict[grade.verdict][grade.extracted or ""] += 1
        stuck = by_verdict[Verdict.ERROR] + by_verdict[Verdict.TIMEOUT]
        silent = by_verdict[Verdict.NO_ANSWER].total() + stuck.pop("", 0)
        votes.append(Votes(by_verdict[Verdict.CORRECT].total(), list(stuck.values()), silent))
        remaining.append(by_verdict[Verdict.WRONG])
    while any(remaining):
        # Each prompt opens a cluster with its first answer; one call for all prompts keeps the grader's workers busy.
        heads = [next(iter(answers), None) for answers in remaining]
        asked = [
            (place, answer)
            for place, (head, answers) in enumerate(zip(heads, remaining, strict=True))
            for answer in answers
            if answer != head
        ]
        same = grader.equivalent([(answer, heads[place] or "") for place, answer in asked])
        for place, head in enumerate(heads):
            if head is not None:
                votes[place].others.append(remaining[place].pop(head))
        for (place, answer), joins in zip(asked, same, strict=True):
            if joins:
                votes[place].others[-1] += remaining[place].pop(answer)
    return votes
