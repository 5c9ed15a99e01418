"""Judges behind an OpenAI-compatible endpoint."""

from __future__ import annotations

import asyncio
import html
import json
import os
import random
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlsplit

from lightning_pspo.errors import InputError, check_at_least, check_positive
from lightning_pspo.judging.base import Judge, JudgeError, Messages, Reply, UnusableReplyError
from lightning_pspo.judging.limits import Breaker, Budget, Pace
from lightning_pspo.judging.parsing import completion_text, error_message, one_line, reported_tokens
from lightning_pspo.judging.transport import Connection, Response, TransportError, retry_after

_FORMATS = ("json_schema", "json_object", "text")
_RETRIED = (408, 409, 425, 429)
_REFUSALS = (400, 404, 422, 501)  # of a request's form, by servers that do not know all of it
_MAX_PAUSE_S = 30.0
_SECRET = 8  # shortest key, in characters, that nobody could guess


class EndpointJudge(Judge):
    """A model behind an OpenAI-compatible endpoint: vLLM, ``transformers serve``, Ollama, a hosted one.

    Asks at temperature 0 for structured output; a server that refuses a JSON schema is asked for a JSON object, and one
    that refuses that as well for plain text. Requests that fail temporarily (429, 5xx, a time-out, a lost connection, a
    broken body) are retried after exponential pauses with jitter, or after ``Retry-After``. Redirects are not followed.
    The key comes from the environment alone and is cut out of everything that leaves this object.

    Args:
        base_url: Address of the endpoint, such as ``http://localhost:8000/v1``, without user and password.
        model: Name of the model there.
        api_key_env: Environment variable with the key; a local server needs none.
        concurrency: Requests at a time, at least 1.
        timeout_s: Seconds for one request from beginning to end, above 0.
        max_retries: Retries of a request, at least 0.
        backoff_s: Seconds before the first retry, above 0; doubles up to 30 s and is shortened by up to half.
        max_retry_after_s: Longest pause that a server may ask for; one that asks for more has refused.
        requests_per_minute: Cap on the rate; None sets no cap.
        max_reply_tokens: Longest reply, at least 1 token; a model that thinks aloud needs thousands.
        max_requests: Cap on requests, retries included.
        max_tokens: Cap on tokens of messages and replies.
        max_cost: Cap on money, by the prices.
        prompt_price: Price of a million tokens of messages.
        completion_price: Price of a million tokens of replies.
        give_up_after: Failed requests in a row, over all questions, after which the endpoint is taken for dead.
        cooldown_s: Seconds until a dead endpoint is tried again.
        give_up_after_s: Seconds that the failures in a row must have lasted, unless they are refusals such as 401.

    Raises:
        InputError: A setting is out of range.
    """

    portable = True

    def __init__(
        self,
        *,
        base_url: str,
        model: str,
        api_key_env: str = "OPENAI_API_KEY",
        concurrency: int = 16,
        timeout_s: float = 30.0,
        max_retries: int = 5,
        backoff_s: float = 0.5,
        max_retry_after_s: float = 60.0,
        requests_per_minute: float | None = None,
        max_reply_tokens: int = 512,
        max_requests: int | None = None,
        max_tokens: int | None = None,
        max_cost: float | None = None,
        prompt_price: float = 0.0,
        completion_price: float = 0.0,
        give_up_after: int = 20,
        cooldown_s: float = 30.0,
        give_up_after_s: float = 15.0,
    ) -> None:
        _check_url(base_url)
        if not model or not model.isprintable():
            raise InputError(f"`model` must name the judge's model, got {model!r}.")
        if not re.fullmatch(r"[A-Za-z_]\w*", api_key_env, re.ASCII):
            raise InputError("`api_key_env` must name an environment variable that holds the key, not be the key.")
        check_at_least("concurrency", concurrency, 1, 10**4)
        check_at_least("max_reply_tokens", max_reply_tokens, 1)
        check_at_least("max_retries", max_retries, 0)
        check_positive("timeout_s", timeout_s)
        check_positive("backoff_s", backoff_s)
        if not max_retry_after_s >= 0:
            raise InputError(f"`max_retry_after_s` must be at least 0, got {max_retry_after_s}.")
        self.base_url, self.model, self.api_key_env = base_url, model, api_key_env
        self.concurrency, self.timeout_s, self.max_retries = concurrency, timeout_s, max_retries
        self.backoff_s, self.max_retry_after_s, self.max_reply_tokens = backoff_s, max_retry_after_s, max_reply_tokens
        self.budget = Budget(
            max_requests=max_requests,
            max_tokens=max_tokens,
            max_cost=max_cost,
            prompt_price=prompt_price,
            completion_price=completion_price,
        )
        self.pace = Pace(requests_per_minute)
        self.breaker = Breaker(give_up_after=give_up_after, cooldown_s=cooldown_s, give_up_after_s=give_up_after_s)
        self._options: dict[str, Any] = {"temperature": 0, "max_tokens": max_reply_tokens}
        self._format = 0  # index of the first of _FORMATS that the server has not refused
        self._connection: Connection | None = None

    def identity(self) -> Mapping[str, Any]:
        """Return the model's name and how it is sampled; the same model elsewhere is the same judge."""
        return {"model": self.model, "temperature": 0, "max_reply_tokens": self.max_reply_tokens}

    def spent(self) -> dict[str, float]:
        """Return requests, tokens and money so far."""
        return {name: getattr(self.budget, name) for name in ("requests", "prompt_tokens", "completion_tokens", "cost")}

    def shared_by(self, processes: int) -> None:
        """Keep this process's share of the caps, those on the rate included."""
        self.budget.share(processes)
        self.pace.interval_s *= processes

    async def aclose(self) -> None:
        """Close the connections."""
        if self._connection is not None:
            await self._connection.close()
            self._connection = None

    async def ask(self, messages: Messages, name: str, schema: Mapping[str, Any]) -> Reply:
        """Return the reply to ``messages``, after retries."""
        key = self._key()
        if not (key.isascii() and key.isprintable()):
            raise JudgeError(f"not asked: the key in {self.api_key_env} has characters that a header cannot hold")
        for retry in range(self.max_retries + 1):
            self.breaker.check()
            try:
                reply = await self._ask_once(messages, name, schema)
            except TransportError as error:
                if error.counts:
                    self.breaker.failed(str(error), passing=True)
                if retry == self.max_retries:
                    raise JudgeError(f"{error}, {retry + 1} times") from None
                if error.pause_s is not None and error.pause_s > self.max_retry_after_s:
                    raise JudgeError(f"{error}, and asks to wait for {error.pause_s:.0f} s") from None
                pause = min(_MAX_PAUSE_S, self.backoff_s * 2 ** min(retry, 30)) * random.uniform(0.5, 1.0)
                await asyncio.sleep(max(pause, error.pause_s or 0.0))
            except UnusableReplyError:
                self.breaker.worked()
                raise
            else:
                self.breaker.worked()
                return reply
        raise AssertionError("unreachable")

    async def _ask_once(self, messages: Messages, name: str, schema: Mapping[str, Any]) -> Reply:
        """Make one request, in other forms where the server refuses one."""
        index, options = self._format, dict(self._options)
        while True:
            self.budget.take_request()
            await self.pace.wait()
            body: dict[str, Any] = {"model": self.model, "messages": messages, **options}
            if _FORMATS[index] != "text":
                body["response_format"] = {"type": _FORMATS[index]}
            if _FORMATS[index] == "json_schema":
                body["response_format"]["json_schema"] = {"name": name, "schema": dict(schema), "strict": True}
            response = await self._post(body)
            if response.status in _REFUSALS and (changed := _other_options(response.message, options)) is not None:
                options = changed
            elif response.status in _REFUSALS and index + 1 < len(_FORMATS):
                index += 1
            else:
                break
        if not 200 <= response.status < 300:
            raise self._failure(response)
        self._format, self._options = max(self._format, index), options
        tokens = reported_tokens(response.body)
        self.budget.prompt_tokens += tokens[0]
        self.budget.completion_tokens += tokens[1]
        try:
            text = completion_text(response.body)
        except UnusableReplyError as error:
            raise UnusableReplyError(self._line(str(error))) from None
        if text is None:
            raise self._failure(response)
        return Reply(self._redacted(text) if len(self._key()) >= _SECRET else text, *tokens)

    async def _post(self, body: Mapping[str, Any]) -> Response:
        key = self._key()
        try:
            if self._connection is None:
                self._connection = Connection(f"{self.base_url.rstrip('/')}/chat/completions", self.timeout_s)
            return await self._connection.post(body, {"Authorization": f"Bearer {key}"} if key else {})
        except ValueError as error:
            raise JudgeError(self._line(f"not asked: the proxy in the environment cannot be used: {error}")) from None
        except TransportError as error:
            raise TransportError(self._line(str(error))) from None

    def _failure(self, response: Response) -> Exception:
        """Return the error for a response that is not a chat completion."""
        status = response.status
        if 300 <= status < 400:
            location = response.headers.get("location", "").partition("?")[0]
            message = f"redirects are not followed, here to {location}; is `base_url` right?"
        elif 200 <= status < 300:
            code = response.body.get("error") if isinstance(response.body, dict) else None
            code = code.get("code") if isinstance(code, dict) else None
            status = code if type(code) is int and 400 <= code < 600 else 500
            words = error_message(response.body)
            message = f"the endpoint's body is not a chat completion{f': {words}' if words else ''}"
        else:
            message = response.message
        why = self._line(f"HTTP {response.status}: {message}")
        if status in _RETRIED or status >= 500:
            return TransportError(why, retry_after(response.headers), counts=status != 429)
        self.breaker.failed(why)
        return JudgeError(why)

    def _key(self) -> str:
        return os.environ.get(self.api_key_env, "").strip()  # a file with the key may end in a line break

    def _redacted(self, text: str) -> str:
        """Return a text without the key, however it is spelled."""
        for form in _spellings(self._key()):
            text = text.replace(form, "[key]")
        return text

    def _line(self, text: str) -> str:
        """Return a text for rows and messages: one short printable line without keys or passwords."""
        text = re.sub(r"(?i)\b(bearer\s+|sk-)[\w.-]{6,}", "[key]", self._redacted(text))
        return one_line(re.sub(r"//[^/\s]*@", "//", text))


def _other_options(message: str, options: dict[str, Any]) -> dict[str, Any] | None:
    """Return options without the one that a server refuses by name, None if it names none of them.

    >>> _other_options("Unsupported parameter: 'max_tokens'", {"temperature": 0, "max_tokens": 9})
    {'temperature': 0, 'max_completion_tokens': 9}
    """
    for name, other in (("max_tokens", "max_completion_tokens"), ("temperature", None)):
        if name in options and name in message and not (other and "context" in message):
            changed = {key: value for key, value in options.items() if key != name}
            return changed | ({other: options[name]} if other else {})
    return None


def _spellings(key: str) -> list[str]:
    r"""Return the ways in which a server or a library may write a key, the longest first.

    >>> _spellings('a"b')
    ['a&quot;b', 'a%22b', 'a\\"b', 'a"b']
    """
    forms = {key, json.dumps(key)[1:-1], repr(key)[1:-1], quote(key, safe=""), quote(key), html.escape(key)}
    return sorted(forms - {""}, key=lambda form: (-len(form), form))


def _check_url(url: str) -> None:
    if any(mark in url for mark in "@?#"):
        raise InputError(
            "`base_url` must have no user or password, and nothing after `?` or `#`: it is written into the run's "
            "settings; give the key in the environment variable that `api_key_env` names."
        )
    try:
        parts = urlsplit(url)
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:  # a port that is not a number, or half an IPv6 address
        valid = False
    if not valid or not url.isprintable() or " " in url:
        raise InputError(f"`base_url` must be an http(s) address such as http://localhost:8000/v1, got {url!r}.")
