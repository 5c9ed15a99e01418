"""Limit a judge's requests: a budget, a rate, and a circuit breaker for a dead endpoint."""

from __future__ import annotations

import asyncio
import time
from dataclasses import dataclass, field

from lightning_pspo.errors import InputError, check_at_least, check_coefficient, check_positive
from lightning_pspo.judging.base import JudgeError

_CAPS = ("max_requests", "max_tokens", "max_cost")


@dataclass(kw_only=True)
class Budget:
    """Caps on everything that is asked of an endpoint, and what is used so far; ``EndpointJudge`` describes them."""

    max_requests: int | None
    max_tokens: int | None
    max_cost: float | None
    prompt_price: float
    completion_price: float
    requests: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0

    def __post_init__(self) -> None:
        for name in (*_CAPS, "prompt_price", "completion_price"):
            check_coefficient(name, getattr(self, name) or 0.0)
        if self.max_cost is not None and self.prompt_price == self.completion_price == 0.0:
            raise InputError("`max_cost` needs `prompt_price` or `completion_price` above 0, got 0 for both.")

    @property
    def cost(self) -> float:
        """Return the money spent so far."""
        return (self.prompt_tokens * self.prompt_price + self.completion_tokens * self.completion_price) / 1e6

    def take_request(self) -> None:
        """Count a request that is about to be made; JudgeError where a cap is reached."""
        used = (self.requests, self.prompt_tokens + self.completion_tokens, self.cost)
        for name, value in zip(_CAPS, used, strict=True):
            cap = getattr(self, name)
            if cap is not None and value >= cap:
                raise JudgeError(f"not asked: `{name}` = {cap:g} is used up")
        self.requests += 1

    def share(self, processes: int) -> None:
        """Keep one part of ``processes`` of every cap."""
        for name in _CAPS:
            cap = getattr(self, name)
            if cap is not None:
                setattr(self, name, cap // processes if isinstance(cap, int) else cap / processes)


class Pace:
    """Spreads requests evenly over time, at most ``requests_per_minute``; None sets no cap."""

    def __init__(self, requests_per_minute: float | None) -> None:
        if requests_per_minute is not None:
            check_positive("requests_per_minute", requests_per_minute)
        self.interval_s = 0.0 if requests_per_minute is None else 60.0 / requests_per_minute
        self._next = 0.0

    async def wait(self) -> None:
        """Wait for this request's turn."""
        if self.interval_s:
            now = time.monotonic()
            turn = max(now, self._next)
            self._next = turn + self.interval_s
            await asyncio.sleep(turn - now)


@dataclass(kw_only=True)
class Breaker:
    """Stops asking an endpoint that fails again and again, and tries it once more after a while.

    Many questions at a time fail as often in a moment, such as when a server restarts: failures that may pass must have
    lasted ``give_up_after_s`` as well.
    """

    give_up_after: int
    cooldown_s: float
    give_up_after_s: float
    _failures: int = field(default=0, init=False)  # in a row
    _since: float = field(default=0.0, init=False)
    _dead_until: float = field(default=0.0, init=False)
    _last: str = field(default="", init=False)

    def __post_init__(self) -> None:
        check_at_least("give_up_after", self.give_up_after, 1)
        check_positive("cooldown_s", self.cooldown_s)
        check_coefficient("give_up_after_s", self.give_up_after_s)

    def check(self) -> None:
        """Raise JudgeError while the endpoint is taken for dead."""
        if time.monotonic() < self._dead_until:
            raise JudgeError(f"not asked: the endpoint failed {self._failures} times in a row, last with: {self._last}")

    def failed(self, why: str, *, passing: bool = False) -> None:
        """Count a failed request; ``passing`` is whether it may work later."""
        now = time.monotonic()
        if not self._failures:
            self._since = now
        self._failures += 1
        self._last = why
        if self._failures >= self.give_up_after and (not passing or now - self._since >= self.give_up_after_s):
            self._dead_until = now + self.cooldown_s

    def worked(self) -> None:
        """Count a reply."""
        self._failures, self._dead_until = 0, 0.0
