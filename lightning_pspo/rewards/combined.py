"""Sums of rewards."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from lightning_pspo.errors import InputError
from lightning_pspo.rewards.base import Reward, check_finite, check_values, evaluate
from lightning_pspo.rewards.correctness import Correctness
from lightning_pspo.rewards.form import FormatMatch, NoNumber
from lightning_pspo.types import Sample


class WeightedSum(Reward):
    """``clip(sum of weight * term, low, high)``, with every term logged by its name.

    Args:
        terms: Name -> reward; at least one.
        weights: Name -> weight; the same names as ``terms``. A negative weight makes a penalty.
        low: Smallest total; None for no bound.
        high: Largest total; None for no bound.

    Raises:
        InputError: There is no term, a name is in one of ``terms`` and ``weights`` only, a weight or bound is not
            finite, or ``low`` exceeds ``high``.
    """

    def __init__(
        self,
        *,
        terms: Mapping[str, Reward],
        weights: Mapping[str, float],
        low: float | None = None,
        high: float | None = None,
    ) -> None:
        if not terms:
            raise InputError("`terms` must name at least one reward, got none.")
        for name in weights:
            if name not in terms:
                raise InputError(f"`weights` must name the terms {sorted(terms)}, got the unknown {name!r}.")
            check_finite(f"weights.{name}", weights[name])
        for name in terms:
            if name not in weights:
                raise InputError(f"`weights` must have a weight for every term, got none for {name!r}.")
        for bound, value in (("low", low), ("high", high)):
            if value is not None:
                check_finite(bound, value)
        if low is not None and high is not None and low > high:
            raise InputError(f"`low` must not exceed `high`, got low={low} and high={high}.")
        self.terms, self.weights = dict(terms), dict(weights)
        self.low = -math.inf if low is None else low
        self.high = math.inf if high is None else high

    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        """Return the clipped total per sample."""
        return self.breakdown(samples)[0]

    def breakdown(self, samples: Sequence[Sample]) -> tuple[list[float], dict[str, list[float]]]:
        """Return the clipped totals, and term name -> its values before its weight.

        Raises:
            InputError: A term's values are not one per sample and finite, or a total is too large.
        """
        values = {name: evaluate(name, reward, samples) for name, reward in self.terms.items()}
        totals = (
            math.fsum(self.weights[name] * column[row] for name, column in values.items())
            for row in range(len(samples))
        )
        clipped = [min(max(total, self.low), self.high) for total in totals]
        return check_values(self._term_name(), clipped, samples), values


class GSM8KPaperReward(WeightedSum):
    r"""The reward that the author of PSPO published for GSM8K (arXiv 2509.21282), kept to reproduce the paper's runs.

    1 if the answer is correct, + 0.05 if the author's pattern of an answer occurs, - 0.2 if there is no digit at all,
    clipped to [0, 1]. The values are therefore 0, 0.05 and 1, and 0.8 for a correct answer in words alone: the bonus
    goes to wrong answers only, whose penalty is clipped away. In a group whose answers are all wrong, group-relative
    scaling turns the 0.05 into a full-size advantage: such a group teaches the ``####`` line and nothing else.
    ``Correctness`` gives that group no gradient, and is the default for that reason.

    The pattern is the author's, ``####\s*\d+[^\n]+``, which wants a digit and one more character: ``#### 7`` and
    ``#### -17`` do not match. Whether the answer is correct is the verifier's verdict. The author's code differs there:
    the first ``####`` counts instead of the last, and a percentage is divided by 100.
    """

    def __init__(self) -> None:
        super().__init__(
            terms={
                "correctness": Correctness(),
                "format": FormatMatch(pattern=r"####\s*\d+[^\n]+", last_line=None),
                "no_number": NoNumber(),
            },
            weights={"correctness": 1.0, "format": 0.05, "no_number": -0.2},
            low=0.0,
            high=1.0,
        )
