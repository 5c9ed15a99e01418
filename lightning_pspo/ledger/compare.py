"""Compare two ledgers: how often the same prompts are solved, and where the completions first differ."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import takewhile

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
    """How often a run solved a prompt."""

    passed: int
    completions: int  # at least 1

    @property
    def rate(self) -> Estimate:
        """The share with Wilson's 95 % interval, which assumes that the completions are independent."""
        return Estimate(self.passed / self.completions, *wilson_interval(self.passed, self.completions))


@dataclass(frozen=True)
class Divergence:
    """The first completion, in the order of rollout, position and sample, that differs between two runs."""

    rollout: int
    position: int  # of the prompt in the run's stream
    sample: int
    prompts: tuple[str | None, str | None]  # id in each run; they differ where the runs drew other prompts
    texts: tuple[str | None, str | None]  # completion in each run; None where it has none
    character: int  # index of the first that differs


@dataclass(frozen=True)
class LedgerComparison:
    """How a second run differs from a first."""

    prompts: dict[Prompt, tuple[PassCount, PassCount]]  # those that both have
    left_out: tuple[int, int]  # number of prompts that only the first, and only the second, has
    difference: Difference | None  # second minus first, clustered by prompt; None for fewer than two prompts
    equal: int  # completions before the divergence, which are the same in both
    divergence: Divergence | None


def compare(first: Ledger, second: Ledger, rollouts: Span | None = None) -> LedgerComparison:
    """Compare two runs on the prompts that both have; InputError where there are none, or a column is missing."""
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
            whole = ", ".join(f"TRY_CAST({name} AS BIGINT) AS {name}" for name in key.split(", "))  # no nan
            connection.execute(f"CREATE TABLE {table} AS SELECT {whole}, hash(id, completion) AS content FROM rows")
            query = f"SELECT {key} FROM {table} GROUP BY ALL HAVING count(*) > 1 OR position + sample IS NULL LIMIT 1"
            if (row := connection.execute(query).fetchone()) is not None:  # it would meet each of its like
                raise InputError(f"{ledger.folder}: each row must have a {key} of its own, got {row} for several.")
        connection.execute(
            f"CREATE VIEW both_runs AS SELECT {key}, first.content IS NOT DISTINCT FROM second.content AS same "
            f"FROM first FULL JOIN second USING ({key})"
        )
        query = f"SELECT {key} FROM both_runs WHERE NOT same ORDER BY ALL LIMIT 1"
        first_difference = connection.execute(query).fetchone()
        before = "true" if first_difference is None else f"({key}) < {first_difference}"
        (equal,) = connection.execute(f"SELECT count(*) FROM both_runs WHERE same AND {before}").fetchone() or (0,)
    if first_difference is None:
        return equal, None
    rollout, position, sample = first_difference
    where = f"position = {position} AND sample = {sample}"
    tables = [next(run.scan(["id", "completion"], where, (rollout, rollout)), None) for run in (first, second)]
    rows = [{} if table is None else table.to_pylist()[0] for table in tables]
    ids, texts = ((rows[0].get(name), rows[1].get(name)) for name in ("id", "completion"))
    characters = zip(*(text or "" for text in texts), strict=False)
    same = sum(1 for _ in takewhile(lambda both: both[0] == both[1], characters))
    return equal, Divergence(rollout, position, sample, ids, texts, character=same)
