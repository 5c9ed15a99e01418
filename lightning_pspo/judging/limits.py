"""How fast and how much a judge may be asked, and when to stop asking a dead one."""

from __future__ import annotations

import asyncio
import time

from lightning_pspo.errors import InputError
from lightning_pspo.judging.base import JudgeError


class Budget:
    """Caps on everything that is asked of an endpoint.

    Args:
        max_requests: Most requests, retries included; None sets no cap.
        max_tokens: Most tokens of messages and replies together, as far as the endpoint reports them.
        max_cost: Most money, in the currency of the prices.
        prompt_price: Price of a million tokens of messages.
        completion_price: Price of a million tokens of replies.

    Raises:
        InputError: A number is negative, or a cap on money comes without prices.
    """

    def __init__(
        self,
        *,
        max_requests: int | None = None,
        max_tokens: int | None = None,
        max_cost: float | None = None,
        prompt_price: float = 0.0,
        completion_price: float = 0.0,
    ) -> None:
        numbers = {"max_requests": max_requests, "max_tokens": max_tokens, "max_cost": max_cost}
        for name, value in {**numbers, "prompt_price": prompt_price, "completion_price": completion_price}.items():
            if value is not None and not value >= 0:
                raise InputError(f"`{name}` must be at least 0, got {value}.")
        if max_cost is not None and prompt_price == completion_price == 0.0:
            raise InputError(f"`max_cost` needs `prompt_price` or `completion_price` above 0, got {max_cost} and 0.")
        self.max_requests, self.max_tokens, self.max_cost = max_requests, max_tokens, max_cost
        self.prompt_price, self.completion_price = prompt_price, completion_price
        self.requests = self.prompt_tokens = self.completion_tokens = 0

    @property
    def cost(self) -> float:
        """Return the money spent so far."""
        return (self.prompt_tokens * self.prompt_price + self.completion_tokens * self.completion_price) / 1e6

    def take_request(self) -> None:
        """Count a request that is about to be made.

        Raises:
            JudgeError: A cap is reached.
        """
        caps = (
            ("max_requests", self.requests, self.max_requests),
            ("max_tokens", self.prompt_tokens + self.completion_tokens, self.max_tokens),
            ("max_cost", self.cost, self.max_cost),
        )
        for name, value, cap in caps:
            if cap is not None and value >= cap:
                raise JudgeError(f"not asked: `{name}` = {cap:g} is used up")
        self.requests += 1

    def add_tokens(self, prompt: int, completion: int) -> None:
        """Count what a reply used."""
        self.prompt_tokens += prompt
        self.completion_tokens += completion

    def share(self, processes: int) -> None:
        """Keep one part of ``processes`` of every cap."""
        if self.max_requests is not None:
            self.max_requests //= processes
        if self.max_tokens is not None:
            self.max_tokens //= processes
        if self.max_cost is not None:
            self.max_cost /= processes


class Pace:
    """Spreads requests evenly over time.

    Args:
        requests_per_minute: Highest rate, above 0; None sets no cap.
    """

    def __init__(self, requests_per_minute: float | None) -> None:
        if requests_per_minute is not None and not requests_per_minute > 0:
            raise InputError(f"`requests_per_minute` must be above 0, got {requests_per_minute}.")
        self.interval_s = 0.0 if requests_per_minute is None else 60.0 / requests_per_minute
        self._next = 0.0

    async def wait(self) -> None:
        """Wait for this request's turn."""
        if self.interval_s:
            now = time.monotonic()
            turn = max(now, self._next)
            self._next = turn + self.interval_s
            await asyncio.sleep(turn - now)


class Breaker:
    """Stops asking an endpoint that fails again and again, and tries it once more after a while.

    Args:
        give_up_after: Failures in a row, over all questions, that make it dead; at least 1.
        cooldown_s: Seconds until it is tried again, above 0.
        give_up_after_s: Seconds that failures that may pass must have lasted, at least 0: many questions at a time fail
            as often in a moment, such as when a server restarts.
    """

    def __init__(self, *, give_up_after: int, cooldown_s: float, give_up_after_s: float = 0.0) -> None:
        if give_up_after < 1 or not cooldown_s > 0 or not give_up_after_s >= 0:
            raise InputError(
                f"`give_up_after` must be at least 1, `cooldown_s` above 0 and `give_up_after_s` at least 0, "
                f"got {give_up_after}, {cooldown_s} and {give_up_after_s}."
            )
        self.give_up_after, self.cooldown_s, self.give_up_after_s = give_up_after, cooldown_s, give_up_after_s
        self._failures = 0  # in a row
        self._since = 0.0
        self._dead_until = 0.0
        self._last = ""

    def check(self) -> None:
        """Return where the endpoint may be asked.

        Raises:
            JudgeError: It is taken for dead.
        """
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
