"""Make one HTTP request to an untrusted server: bounded in time and size, without redirects."""

from __future__ import annotations

import asyncio
import ipaddress
import math
import re
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from http.client import responses
from typing import Any
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from lightning_pspo.judging.parsing import error_message, one_line, parse_body

_MAX_BODY = 4_000_000  # bytes; reading more would hold up the training


class TransportError(Exception):
    """A request failed that may work later, after ``pause_s`` if the server says so.

    ``counts`` is whether it indicates a dead endpoint; one that limits the rate is alive.
    """

    def __init__(self, message: str, pause_s: float | None = None, *, counts: bool = True) -> None:
        super().__init__(message)
        self.pause_s, self.counts = pause_s, counts


@dataclass(frozen=True, slots=True)
class Response:
    """What came back for one request."""

    status: int
    headers: Mapping[str, str]
    content: bytes
    body: Any  # JSON value of the content, None where it is not JSON

    @property
    def message(self) -> str:
        """Return the server's own words about an error, or the name of its status."""
        text = self.content.decode(errors="replace").strip()
        plain = text if self.body is None and not text.startswith("<") else None
        return error_message(self.body) or plain or responses.get(self.status, "unknown status")


class Connection:
    """An HTTP client for one address; ValueError where the proxy that the environment names cannot be used."""

    def __init__(self, url: str, timeout_s: float) -> None:
        import httpx2  # not at the top: most of the program starts without it

        self.url, self.timeout_s = url, timeout_s
        host = urlsplit(url).hostname or ""
        local = f"all://[{host}]" if ":" in host else f"all://{host}"
        try:
            self._client = httpx2.AsyncClient(
                headers={"Accept-Encoding": "identity"},
                follow_redirects=False,  # questions, completions and key go to this address alone
                timeout=None,  # the deadline covers all of a request
                limits=httpx2.Limits(max_connections=None),
                mounts={local: None} if _is_loopback(host) else None,  # a proxy cannot reach it
            )
        except Exception as error:  # not an address, or a kind of proxy that is not installed
            raise ValueError(f"{type(error).__name__}: {error}") from None

    async def post(self, body: Mapping[str, Any], headers: Mapping[str, str]) -> Response:
        """Send a JSON body, and return the response, whatever its status; TransportError where none can be read."""
        raw = bytearray()
        try:
            async with (
                asyncio.timeout(self.timeout_s),
                self._client.stream("POST", self.url, json=body, headers=headers) as response,
            ):
                async for chunk in response.aiter_raw():
                    raw += chunk
                    if len(raw) > _MAX_BODY:
                        raise TransportError(f"the endpoint's reply is longer than {_MAX_BODY:,} bytes")
        except TransportError:
            raise
        except TimeoutError:
            raise TransportError(f"no reply within {self.timeout_s:g} s") from None
        except Exception as error:  # connection, protocol, address: the client has no common class for them
            parts = urlsplit(self.url)
            host, has_proxy = parts.hostname or "", bool(getproxies().keys() & {parts.scheme, "all"})
            proxied = has_proxy and not _is_loopback(host) and not proxy_bypass(host)
            via = " (through the proxy that the environment names)" if proxied else ""
            innermost: BaseException = error  # the client's own message is only `All connection attempts failed`
            while innermost.__cause__ is not None:
                innermost = innermost.__cause__
            raise TransportError(f"{type(error).__name__}{via}: {innermost}") from None
        content = _decoded(bytes(raw), response.headers.get("content-encoding", "identity"))
        return Response(response.status_code, response.headers, content, parse_body(content))

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds that a server asks to wait, None where it says nothing that can be read.

    >>> retry_after({"retry-after": "2"}), retry_after({"retry-after-ms": "250"}), retry_after({"retry-after": "soon"})
    (2.0, 0.25, None)
    """
    text = headers.get("retry-after", "")
    try:
        if "retry-after-ms" in headers:
            seconds = float(headers["retry-after-ms"]) / 1000
        elif re.fullmatch(r"[\d.]+", text):
            seconds = float(text)
        else:
            seconds = parsedate_to_datetime(text).timestamp() - time.time()
    except (ValueError, TypeError, OverflowError):
        return None
    return max(0.0, seconds) if math.isfinite(seconds) else None


def _decoded(raw: bytes, encoding: str) -> bytes:
    """Return a body without its compression, which nobody asked for; a body that grows without bound is refused."""
    if encoding in ("", "identity"):
        return raw
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise TransportError(f"the endpoint's reply is encoded, which was not asked for: {one_line(encoding, 40)}")
    try:
        return zlib.decompressobj(wbits=47).decompress(raw, _MAX_BODY)  # 47: zlib or gzip, whichever it is
    except zlib.error as error:
        raise TransportError(f"the endpoint's reply is broken {encoding}: {error}") from None


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
