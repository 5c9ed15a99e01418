"""A judge's endpoint that fails on purpose: ``python tests/support/faulty_endpoint.py FAILURES LOG [SCORES]``.

FAILURES is JSON: kind of failure -> share of the requests. Every request is logged as a line of JSON: what was asked,
and how it ended. The same question fails again with the same share, by its number.
"""

import contextlib
import hashlib
import json
import random
import socket
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

NAMES = ("overall_quality", "constraint_adherence", "logical_coherence", "mathematical_soundness", "clarity")


def digest(messages):
    """Return what was asked, whatever the mark of this asking."""
    lines = [line for line in messages[-1]["content"].splitlines() if line.startswith("| ")]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:16]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    lock = threading.Lock()
    number = 0

    def log_message(self, *_):
        pass

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        with self.lock:
            type(self).number += 1
            number = self.number
        kind = self.kind(number, body)
        with self.lock:
            row = {"asked": digest(body["messages"]), "kind": kind, "key": self.headers.get("Authorization")}
            self.server.log.write(json.dumps(row | {"format": (body.get("response_format") or {}).get("type")}) + "\n")
            self.server.log.flush()
        self.answer(kind, body)

    def kind(self, number, body):
        if "refuse_format" in self.server.failures and "response_format" in body:
            return "refuse_format"
        if "die_after" in self.server.failures and number > self.server.failures["die_after"]:
            return "die"
        point = random.Random(number).random()
        for kind, share in self.server.failures.items():
            if kind not in ("refuse_format", "die_after"):
                point -= share
                if point < 0:
                    return kind
        return "ok"

    def answer(self, kind, body):
        headers = {"429": {"Retry-After": "0.05"}}.get(kind, {})
        if kind in ("429", "500", "401", "refuse_format"):
            status = 400 if kind == "refuse_format" else int(kind)
            key = self.headers.get("Authorization")
            return self.send(status, json.dumps({"error": {"message": f"no: {kind} for {key}"}}).encode(), headers)
        if kind == "die":
            return self.hang_up()
        if kind in ("timeout", "slow"):
            time.sleep(8.0 if kind == "timeout" else 0.2)
        if kind == "garbage":
            return self.send(200, b"<html>\xff not json {", {})
        said = json.dumps(self.reply(body))
        if kind == "wrong_json":
            said = json.dumps({**dict.fromkeys(NAMES, 3), "clarity": "5"})
        if kind == "echo":
            said = body["messages"][-1]["content"]
        choice = {"index": 0, "message": {"role": "assistant", "content": said}, "finish_reason": "stop"}
        usage = {"prompt_tokens": 100, "completion_tokens": 10, "total_tokens": 110}
        found = {"id": "1", "object": "chat.completion", "created": 1, "model": body["model"], "choices": [choice]}
        content = json.dumps(found | {"usage": usage}).encode()
        if kind == "cut":
            self.send(200, content, {}, cut=True)
            return self.hang_up()
        return self.send(200, content, {})

    def hang_up(self):
        self.close_connection = True
        self.connection.shutdown(socket.SHUT_RDWR)

    def reply(self, body):
        text = body["messages"][-1]["content"]
        if "SECOND RESPONSE" in text:
            first = text.partition("BEGIN FIRST RESPONSE")[2].partition("END FIRST RESPONSE")[0]
            second = text.partition("BEGIN SECOND RESPONSE")[2].partition("END SECOND RESPONSE")[0]
            good, other = "is right" in first, "is right" in second
            return {"preference": "tie" if good == other else "first" if good else "second"}
        return dict(zip(NAMES, self.server.scores, strict=True))

    def send(self, status, content, headers, cut=False):
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        with contextlib.suppress(OSError):  # whoever asked may have given up
            self.wfile.write(content[: len(content) // 2] if cut else content)
            self.wfile.flush()


def main():
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    server.failures = json.loads(sys.argv[1])
    server.log = Path(sys.argv[2]).open("a", encoding="utf-8")  # noqa: SIM115  until the process ends
    server.scores = json.loads(sys.argv[3]) if len(sys.argv) > 3 else [4, 3, 2, 1, 5]
    sys.stdout.write(f"{server.server_address[1]}\n")
    sys.stdout.flush()
    server.serve_forever()


if __name__ == "__main__":
    main()
