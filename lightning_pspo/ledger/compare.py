"""Two ledgers side by side: how often the same prompts are solved, and where the completions first differ."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from lightning_pspo.errors import InputError
from lightning_pspo.ledger.query import connect
from lightning_pspo.ledger.reader import Ledger, Span
from lightning_pspo.statistics import Difference, Estimate, compare_arms, wilson_interval

Prompt = tuple[str, str, str]
"""Id, question, reference answer."""

_PROMPT = ["id", "question", "answer"]


@dataclass(frozen=True)
class PassCount:
    """How often a run solved a prompt.

    Attributes:
        passed: Completions graded correct.
        completions: All completions, at least 1.
    """

    passed: int
    completions: int

    @property
    def rate(self) -> Estimate:
        """The share with Wilson's 95 % interval, which assumes that the completions are independent."""
        return Estimate(self.passed / self.completions, *wilson_interval(self.passed, self.completions))


@dataclass(frozen=True)
class Divergence:
    """The first completion, in the order of rollout, position and sample, that differs between two runs.

    Attributes:
        rollout: Its rollout.
        position: Position of its prompt in the run's stream of prompts.
        sample: Number of the completion among those of its prompt.
        prompts: The prompt's id in each run; they differ where the runs drew other prompts.
        texts: The completion in each run; None where the other run has none.
        character: Index of the first character that differs, from 0.
    """

    rollout: int
    position: int
    sample: int
    prompts: tuple[str | None, str | None]
    texts: tuple[str | None, str | None]
    character: int


@dataclass(frozen=True)
class LedgerComparison:
    """How a second run differs from a first.

    Attributes:
        prompts: Prompt -> its counts in both runs; the prompts that both have.
        left_out: Number of prompts that only the first, and only the second, has.
        difference: Second minus first, clustered by prompt; None for fewer than two common prompts.
        equal: Completions before the divergence, which are the same in both.
        divergence: Where the completions first differ; None if they never do.
    """

    prompts: dict[Prompt, tuple[PassCount, PassCount]]
    left_out: tuple[int, int]
    difference: Difference | None
    equal: int
    divergence: Divergence | None


def compare(first: Ledger, second: Ledger, rollouts: Span | None = None) -> LedgerComparison:
    """Compare two runs on the prompts that both have.

    Args:
        first: The run to compare with.
        second: The other run.
        rollouts: First and last rollout to look at, in both; None for all.

    Raises:
        InputError: They have no prompt in common, or one lacks a column that this needs.
    """
    counts = pass_counts(first, rollouts), pass_counts(second, rollouts)
    common = {prompt: (count, counts[1][prompt]) for prompt, count in counts[0].items() if prompt in counts[1]}
    if not common:
        sizes = f"{first.folder} has {len(counts[0])}, {second.folder} has {len(counts[1])}"
        raise InputError(f"the runs must have prompts in common (id, question and answer), got none: {sizes}.")
    difference = None
    if len(common) > 1:
        rates = np.array([[count.passed / count.completions for count in pair] for pair in common.values()])
        difference = compare_arms(rates[:, :1].T, rates[:, 1:].T)
    left_out = (len(counts[0]) - len(common), len(counts[1]) - len(common))
    return LedgerComparison(common, left_out, difference, *find_divergence(first, second, rollouts))


def pass_counts(ledger: Ledger, rollouts: Span | None = None) -> dict[Prompt, PassCount]:
    """Return how often each prompt was solved, in the order in which they first occur."""
    with connect() as connection:
        connection.register("rows", ledger.stream([*_PROMPT, "verdict"], rollouts))
        rows = connection.execute(
            "SELECT id, question, answer, count(*) FILTER (verdict = 'correct'), count(*) FROM rows GROUP BY ALL "
            "ORDER BY min((rollout, file, row))"
        ).fetchall()
    return {(id_, question, answer): PassCount(passed, total) for id_, question, answer, passed, total in rows}


def find_divergence(first: Ledger, second: Ledger, rollouts: Span | None = None) -> tuple[int, Divergence | None]:
    """Return how many completions are the same before the first that differs, and that one."""
    key = "rollout, position, sample"
    with connect() as connection:
        for table, ledger in (("first", first), ("second", second)):
            connection.register("rows", ledger.stream(["position", "sample", "id", "completion"], rollouts))
            connection.execute(f"CREATE TABLE {table} AS SELECT {key}, hash(id, completion) AS content FROM rows")
        connection.execute(
            f"CREATE VIEW both_runs AS SELECT {key}, first.content IS NOT DISTINCT FROM second.content AS same "
            f"FROM first FULL JOIN second USING ({key})"
        )
        first_difference = connection.execute(
            f"SELECT {key} FROM both_runs WHERE NOT same ORDER BY ALL LIMIT 1"
        ).fetchone()
        before = "true" if first_difference is None else f"({key}) < {first_difference}"
        (equal,) = connection.execute(f"SELECT count(*) FROM both_runs WHERE same AND {before}").fetchone() or (0,)
    if first_difference is None:
        return equal, None
    rollout, position, sample = first_difference
    ids: list[str | None] = []
    texts: list[str | None] = []
    for ledger in (first, second):
        where = f"position = {position} AND sample = {sample}"
        row = next(ledger.scan(["id", "completion"], where, (rollout, rollout)), None)
        ids.append(None if row is None else row["id"][0].as_py())
        texts.append(None if row is None else row["completion"][0].as_py())
    character = differs_at(texts[0] or "", texts[1] or "")
    return equal, Divergence(rollout, position, sample, (ids[0], ids[1]), (texts[0], texts[1]), character)


def differs_at(first: str, second: str) -> int:
    """Return the index of the first character that differs; the shorter length if one text begins the other.

    >>> differs_at("So 4", "So 5"), differs_at("So", "So 5")
    (3, 2)
    """
    shorter = min(len(first), len(second))
    return next((index for index in range(shorter) if first[index] != second[index]), shorter)
