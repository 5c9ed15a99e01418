"""Rewards: what one completion is worth. A sound default, the paper's preset, and a weighted sum of terms."""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence

from lightning_pspo.grading import Verdict
from lightning_pspo.types import InputError, Sample


class Reward(ABC):
    """A number for each sample; the group-relative advantage is made from it.

    A reward of your own is a subclass in any importable module, named in YAML by its ``class_path``::

        class Brevity(Reward):
            '''1 for a correct completion of at most ``tokens`` tokens, else 0.'''

            def __init__(self, tokens: int = 200) -> None:
                self.tokens = tokens

            def __call__(self, samples: Sequence[Sample]) -> list[float]:
                return [float(s.grade.correct and s.length_tokens <= self.tokens) for s in samples]

    Every value must be finite, and there must be one per sample, in the order of the samples.
    """

    @abstractmethod
    def __call__(self, samples: Sequence[Sample]) -> Sequence[float]:
        """Return one value per sample."""

    def breakdown(self, samples: Sequence[Sample]) -> tuple[list[float], dict[str, list[float]]]:
        """Return the checked total of each sample, and the terms that it is made of, before their weights.

        Args:
            samples: The samples of whole groups, in row order.

        Returns:
            The totals, and term name -> values; a plain reward is its own only term, named after its class.

        Raises:
            InputError: The reward gave another number of values than there are samples, or a value that is not finite.
        """
        name = _snake_case(type(self).__name__)
        total = _checked(name, self(samples), samples)
        return total, {name: total}


class Correctness(Reward):
    """By the verifier's verdict alone. The default: nothing but a right answer can raise it.

    A term that also pays wrong answers (a format bonus, a length term) becomes a full-size advantage in a group without
    a right answer, because group-relative advantages are scaled by the group's own spread.

    Args:
        correct: Value of a correct answer.
        wrong: Value of a wrong answer.
        no_answer: Value of a completion in which no answer was found.

    Raises:
        InputError: A value is not finite.
    """

    def __init__(self, correct: float = 1.0, wrong: float = 0.0, no_answer: float = 0.0) -> None:
        self.values = {Verdict.CORRECT: correct, Verdict.WRONG: wrong, Verdict.NO_ANSWER: no_answer}
        for verdict, value in self.values.items():
            _finite(f"{verdict}", value)

    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        """Return the verdict's value per sample."""
        return [self.values[sample.grade.verdict] for sample in samples]


class FormatMatch(Reward):
    r"""1 where a line of the completion matches a pattern, else 0; it does not look at the answer's correctness.

    Args:
        pattern: Regular expression, looked for (``re.search``) in one line at a time, whose white space at both ends is
            taken away. The default wants a whole line like ``#### 72`` or ``#### -1,250.5``.
        last_line: True: only the last line that is not blank is looked at. False: any line will do.

    Raises:
        InputError: ``pattern`` is not a valid regular expression.
    """

    def __init__(self, pattern: str = r"^####\s*-?\.?\d[\d,.]*$", last_line: bool = True) -> None:
        try:
            self.pattern = re.compile(pattern)
        except re.error as error:
            raise InputError(f"`pattern` must be a valid regular expression, got {pattern!r}: {error}.") from None
        self.last_line = last_line

    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        """Return 1 or 0 per sample."""
        return [float(self._matches(sample.completion)) for sample in samples]

    def _matches(self, completion: str) -> bool:
        lines = [line.strip() for line in completion.splitlines()]
        if self.last_line:
            lines = [line for line in lines if line][-1:]
        return any(self.pattern.search(line) for line in lines)


class NoNumber(Reward):
    """1 where the completion holds no digit at all, else 0; meant for a negative weight."""

    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        """Return 1 or 0 per sample."""
        return [float(re.search(r"\d", sample.completion) is None) for sample in samples]


class SoftOverlong(Reward):
    """DAPO's soft overlong punishment (arXiv 2503.14476, eq. 13): a term for ``WeightedSum``, with weight 1 there.

    0 up to ``max_tokens - buffer`` tokens, then a straight line down to -1 at ``max_tokens``, and -1 beyond. A
    completion that the token limit cut has as many tokens as the limit: take ``max_tokens`` at or below it. The paper's
    are 20,480 and a buffer of 4,096.

    Args:
        max_tokens: Tokens from which the whole penalty is due, at least 1.
        buffer: Tokens before that over which it grows, in [1, ``max_tokens``].

    Raises:
        InputError: A number is out of range.
    """

    def __init__(self, max_tokens: int, buffer: int) -> None:
        if max_tokens < 1:
            raise InputError(f"`max_tokens` must be at least 1, got {max_tokens}.")
        if not 1 <= buffer <= max_tokens:
            raise InputError(f"`buffer` must lie in [1, `max_tokens`] = [1, {max_tokens}], got {buffer}.")
        self.max_tokens = max_tokens
        self.buffer = buffer

    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        """Return a number in [-1, 0] per sample."""
        free = self.max_tokens - self.buffer
        return [-min(max(sample.length_tokens - free, 0) / self.buffer, 1.0) for sample in samples]


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
            _finite(f"weights.{name}", weights[name])
        for name in terms:
            if name not in weights:
                raise InputError(f"`weights` must have a weight for every term, got none for {name!r}.")
        for bound, value in (("low", low), ("high", high)):
            if value is not None:
                _finite(bound, value)
        if low is not None and high is not None and low > high:
            raise InputError(f"`low` must not exceed `high`, got low={low} and high={high}.")
        self.terms, self.weights = dict(terms), dict(weights)
        self.low = -math.inf if low is None else low
        self.high = math.inf if high is None else high

    def __call__(self, samples: Sequence[Sample]) -> list[float]:
        """Return the clipped total per sample."""
        return self.breakdown(samples)[0]

    def breakdown(self, samples: Sequence[Sample]) -> tuple[list[float], dict[str, list[float]]]:
        """Return the clipped totals, and each term's values before its weight.

        Args:
            samples: The samples of whole groups, in row order.

        Returns:
            The totals, and term name -> values.

        Raises:
            InputError: A term gave another number of values than there are samples, or a value that is not finite.
        """
        values = {name: _checked(name, reward(samples), samples) for name, reward in self.terms.items()}
        rows = (
            math.fsum(self.weights[name] * column[row] for name, column in values.items())
            for row in range(len(samples))
        )
        return [min(max(total, self.low), self.high) for total in rows], values


class GSM8KPaperReward(WeightedSum):
    """The reward that the author of PSPO published for GSM8K (arXiv 2509.21282), kept to reproduce the paper's runs.

    1 if the answer is correct, + 0.05 if any line matches ``#### <number>``, - 0.2 if there is no digit at all, clipped
    to [0, 1]. The reachable values are therefore {0, 0.05, 1}: a correct answer is at 1 already, so the bonus pays
    wrong answers only, and the penalty is clipped away. In a group whose answers are all wrong, group-relative scaling
    turns the 0.05 into a full-size advantage: such a group teaches the ``####`` line and nothing else. ``Correctness``
    gives that group no gradient, and is the default for that reason.
    """

    def __init__(self) -> None:
        super().__init__(
            terms={"correctness": Correctness(), "format": FormatMatch(last_line=False), "no_number": NoNumber()},
            weights={"correctness": 1.0, "format": 0.05, "no_number": -0.2},
            low=0.0,
            high=1.0,
        )


def _checked(name: str, values: Sequence[float], samples: Sequence[Sample]) -> list[float]:
    """Return the values as floats, one per sample and all finite."""
    try:
        numbers = [float(value) for value in values]
    except (TypeError, ValueError) as error:
        raise InputError(f"reward `{name}` must return a sequence of numbers, got {values!r:.80}: {error}.") from None
    if len(numbers) != len(samples):
        raise InputError(f"reward `{name}` must return one value per sample, {len(samples)}, got {len(numbers)}.")
    for row, (number, sample) in enumerate(zip(numbers, samples, strict=True)):
        if not math.isfinite(number):
            raise InputError(
                f"reward `{name}` must be finite, got {number} in row {row} (problem {sample.problem.id!r})."
            )
    return numbers


def _finite(name: str, value: float) -> None:
    if not math.isfinite(value):
        raise InputError(f"`{name}` must be finite, got {value}.")


def _snake_case(name: str) -> str:
    """Return a class name as a log key: ``GSM8KPaperReward`` -> ``gsm8k_paper_reward``."""
    return re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z0-9])(?=[A-Z][a-z])", "_", name).lower()
