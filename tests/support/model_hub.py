"""A Hugging Face hub on the loopback that gives the files of a folder, as a model or a data set, honestly or not."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants

COMMIT = "1" * 40
DRIP_S = 0.2  # between two bytes of a file that drips


class ModelHub(ThreadingHTTPServer):
    """A hub whose every repository has the files of a folder.

    Attributes:
        url: Its address, for HF_ENDPOINT.
        faults: File, or ``about`` or ``tree`` for the listings -> what is wrong with it: a status; ``silent`` (no
            answer), ``stall`` (the beginning, no more), ``drip`` (a byte now and then), ``html`` (a login page).
        headers: File -> headers of its answer.
        sha: Commit that it names for a repository.
        asked: Method and name of each file that was asked for.
    """

    daemon_threads = True

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.folder = folder
        self.faults: dict[str, Any] = {}
        self.headers: dict[str, dict[str, str]] = {}
        self.asked: list[tuple[str, str]] = []
        self.sha = COMMIT
        self.closing = threading.Event()
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def close(self) -> None:
        """End it, and every answer that it has not finished."""
        self.closing.set()
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: ModelHub

    def log_message(self, *_: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        hub, path = self.server, self.path.partition("?")[0]
        name = path.partition("/resolve/")[2].partition("/")[2] or ("tree" if "/tree/" in path else "about")
        hub.asked.append((self.command, name))
        file, fault, kind = hub.folder / name, hub.faults.get(name), "application/octet-stream"
        if fault == "silent":
            hub.closing.wait()
        if name == "about":
            names = [str(each.relative_to(hub.folder)) for each in hub.folder.rglob("*") if each.is_file()]
            about = {"id": "o/m", "sha": hub.sha, "siblings": [{"rfilename": each} for each in names]}
            content = json.dumps(about).encode()
        elif name == "tree":
            sizes = {each.name: each.stat().st_size for each in hub.folder.iterdir()}
            files = [{"type": "file", "path": each, "size": size, "oid": "2" * 40} for each, size in sizes.items()]
            content = json.dumps(files).encode()
        elif file.is_file():
            content = file.read_bytes()
        else:
            fault, content = 404, b""
        if fault == "html":
            content, kind = b"<html><body>Please log in.</body></html>\n", "text/html"
        self.answer(fault, content, {"Content-Type": kind} | hub.headers.get(name, {}))

    def answer(self, fault: Any, content: bytes, headers: dict[str, str]) -> None:
        status = fault if isinstance(fault, int) else 200
        self.send_response(status)
        usual = {
            "X-Error-Code": "EntryNotFound" if status == 404 else "",
            "X-Repo-Commit": COMMIT,
            "ETag": f'"{len(content)}-{hash(content) & 0xFFFF}"',
            "Content-Length": str(len(content) if status == 200 else 0),
        }
        for name, value in (usual | headers).items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD" or status != 200:
            return
        if fault == "stall":
            content = content[: len(content) // 2]
        if fault == "drip":
            for byte in content:
                self.wfile.write(bytes([byte]))
                if self.server.closing.wait(DRIP_S):
                    return
        self.wfile.write(content)
        self.wfile.flush()
        if fault == "stall":
            self.server.closing.wait()


def use_hub(monkeypatch: pytest.MonkeyPatch, url: str, folder: Path) -> None:
    """Make the hub's library ask this address, with a cache in the folder."""
    template = url + "/{repo_id}/resolve/{revision}/{filename}"
    values = {"ENDPOINT": url, "HUGGINGFACE_CO_URL_TEMPLATE": template, "HF_HUB_CACHE": str(folder / "cache")}
    for name, value in (values | {"HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True}).items():
        monkeypatch.setattr(constants, name, value)
