"""Samples as a rollout hands them to rewards."""

from lightning_pspo.grading import Grade, Verdict, grade
from lightning_pspo.types import Problem, Sample


def sample(completion="It is 72", identity="p1", tokens=5, verdict=None, prompt=0):
    """Return a sample of a problem whose answer is 72, graded, or with the verdict that is given."""
    judged = grade(completion, "72") if verdict is None else Grade(Verdict(verdict), "1", "hash")
    return Sample(Problem(identity, "How many?", "72"), completion, judged, False, tokens, prompt)


RIGHT, RIGHT_FORM = sample(), sample("48 + 24\n#### 72")
WRONG, WRONG_FORM, SILENT = sample("It is 71"), sample("#### 71"), sample("I cannot say")
