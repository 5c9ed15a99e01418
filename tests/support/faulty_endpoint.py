"""A judge's endpoint that fails on purpose, and logs a hash of each question and how it ended as a line of JSON."""

import contextlib
import hashlib
import json
import random
import socket
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

NAMES = ("overall_quality", "constraint_adherence", "logical_coherence", "mathematical_soundness", "clarity")
GOOD = dict(zip(NAMES, (4, 3, 2, 1, 5), strict=True))
TENTHS = dict.fromkeys(("429", "500", "timeout", "garbage", "cut"), 0.04)
"""A fifth of the requests fails, in equal parts."""


def completion(content: Any) -> dict[str, Any]:
    """Return the body of a chat completion."""
    choice = {"index": 0, "message": {"role": "assistant", "content": content}, "finish_reason": "stop"}
    usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
    return {"id": "1", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}


class FaultyEndpoint(ThreadingHTTPServer):
    """A server on a free port of this machine, in threads of this process.

    ``failures`` are kinds with their shares of the requests (but ``refuse_format`` and ``die_after``); ``respond``
    answers in their place: it takes the handler of a request, and writes to its ``wfile``.
    """

    daemon_threads = True

    def __init__(
        self, failures: dict[str, float], log: Path, respond: Callable[[BaseHTTPRequestHandler], None] | None = None
    ) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.failures, self.log, self.respond = failures, log, respond
        log.touch()
        self.number, self.lock = 0, threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def handle_error(self, *_: Any) -> None:
        """Say nothing of clients that hang up."""

    def kind(self, body: dict[str, Any], key: str | None) -> str:
        """Return how a request ends, and log it."""
        with self.lock:
            self.number += 1
            kind = self._kind(body)
            # The marks of an asking differ, the quoted lines do not.
            lines = [line for line in body["messages"][-1]["content"].splitlines() if line.startswith("| ")]
            asked = hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]
            form = (body.get("response_format") or {}).get("type")
            with self.log.open("a") as file:
                file.write(json.dumps({"asked": asked, "kind": kind, "key": key, "format": form}) + "\n")
        return kind

    def _kind(self, body: dict[str, Any]) -> str:
        if "refuse_format" in self.failures and "response_format" in body:
            return "refuse_format"
        if self.number > self.failures.get("die_after", self.number):
            return "die"
        point = random.Random(self.number).random()
        for kind, share in self.failures.items():
            point -= share if kind not in ("refuse_format", "die_after") else 0.0
            if point < 0:
                return kind
        return "ok"


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: FaultyEndpoint

    def log_message(self, *_: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        key = self.headers.get("Authorization")
        kind = self.server.kind(body, key)
        if self.server.respond is not None:
            self.close_connection = True
            return self.server.respond(self)
        if kind in ("429", "500", "401", "refuse_format"):
            content = json.dumps({"error": {"message": f"no: {kind} for {key}"}}).encode()
            return self.send(400 if kind == "refuse_format" else int(kind), content)
        if kind == "die":
            return self.hang_up()
        if kind == "timeout":
            time.sleep(8.0)
        if kind == "garbage":
            return self.send(200, b"<html>\xff not json {")
        question = body["messages"][-1]["content"]
        wrong = json.dumps({**dict.fromkeys(NAMES, 3), "clarity": "5"})
        text = {"wrong_json": wrong, "echo": question}.get(kind) or json.dumps(_reply(question))
        content = json.dumps(completion(text)).encode()
        if kind == "cut":
            self.send(200, content, cut=True)
            return self.hang_up()
        return self.send(200, content)

    def hang_up(self) -> None:
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def send(self, status: int, content: bytes, *, cut: bool = False) -> None:
        """Send a response; ``cut`` sends half of its body."""
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        if status == 429:
            self.send_header("Retry-After", "0.05")
        with contextlib.suppress(OSError):  # the client may have given up
            self.end_headers()
            self.wfile.write(content[: len(content) // 2] if cut else content)
            self.wfile.flush()


def _reply(text: str) -> dict[str, Any]:
    """Return what a judge says that prefers a response with "is right" in it."""
    if "SECOND RESPONSE" not in text:
        return GOOD
    first, second = ("is right" in part for part in text.split("BEGIN SECOND RESPONSE"))
    return {"preference": "tie" if first == second else "first" if first else "second"}
