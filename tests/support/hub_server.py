"""A small stand-in for the Hugging Face hub: what its client asks for when it uploads a model folder."""

import base64
import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

DRIP_S = 0.2
TOKENS = {"hf_writer": "write", "hf_reader": "read"}


class HubServer(ThreadingHTTPServer):
    """A hub on a free port, in threads of this process, whose user is ``me``.

    Attributes:
        url: Its address, for HF_ENDPOINT.
        repos: Name -> ``private``, commit messages, and the content of each file.
        lose: Name of a file that a commit forgets.
        fail_at: Part of a path at which it refuses with status 400.
        silent_at, drip_at: Part of a path at which it does not answer, or sends a byte now and then.
    """

    daemon_threads = True

    def __init__(self, *, lose: str = "", fail_at: str = "", silent_at: str = "", drip_at: str = "") -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.repos: dict[str, dict[str, Any]] = {}
        self.blobs: dict[str, bytes] = {}
        self.lose, self.fail_at, self.silent_at, self.drip_at = lose, fail_at, silent_at, drip_at
        self.closing = threading.Event()
        threading.Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()

    def create(self, body: dict[str, Any]) -> Any:
        """Make a repository; return its address, or a status."""
        if body["organization"] not in (None, "me"):
            return 403
        name = f"me/{body['name']}"
        if name in self.repos:
            return 409
        self.repos[name] = {"private": body.get("visibility") == "private", "messages": [], "files": {}}
        return {"url": f"{self.url}/{name}"}

    def commit(self, name: str, lines: list[Any]) -> dict[str, Any]:
        """Store the files of a commit."""
        repo = self.repos[name]
        for line in lines:
            value = line["value"]
            if line["key"] == "header":
                repo["messages"].append(value["summary"])
            elif value["path"] != self.lose:
                is_large = line["key"] == "lfsFile"
                content = self.blobs[value["oid"]] if is_large else base64.b64decode(value["content"])
                repo["files"][value["path"]] = content
        return {"success": True, "commitOid": "1" * 40, "commitUrl": f"{self.url}/{name}/commit/{'1' * 40}"}


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: HubServer

    def log_message(self, *_: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.respond(b"")

    def do_POST(self) -> None:
        self.respond(self.rfile.read(int(self.headers["Content-Length"])))

    do_PUT = do_POST

    def respond(self, body: bytes) -> None:
        answer = self.answer(self.path.partition("?")[0], body)
        status, document = (answer, {"error": "refused"}) if isinstance(answer, int) else (200, answer)
        content = json.dumps(document).encode()
        drips = bool(self.server.drip_at) and self.server.drip_at in self.path
        content = content.ljust(1000 * drips)
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        if status == 404:
            self.send_header("X-Error-Code", "RepoNotFound")
        self.end_headers()
        for byte in content if drips else ():
            self.wfile.write(bytes([byte]))
            if self.server.closing.wait(DRIP_S):
                self.close_connection = True
                return
        self.wfile.write(content)

    def answer(self, path: str, body: bytes) -> Any:
        """Return a document, or the status of a refusal."""
        hub, right = self.server, TOKENS.get((self.headers.get("Authorization") or "").removeprefix("Bearer "))
        if hub.fail_at and hub.fail_at in path:
            return 400
        if hub.silent_at and hub.silent_at in path:
            hub.closing.wait()
        if path.startswith("/blob/"):
            hub.blobs[path.rpartition("/")[2]] = body
            return {}
        if right is None:
            return 401
        if path == "/api/whoami-v2":
            return {"name": "me", "type": "user", "auth": {"type": "access_token"}}
        if path == "/api/validate-yaml":
            return {"errors": [], "warnings": []}
        if path == "/api/repos/create":
            return hub.create(json.loads(body)) if right == "write" else 403
        match = re.fullmatch(r"/(?:api/models/)?([\w-]+/[\w-]+)(?:\.git)?(/.*)?", path)
        repo = hub.repos.get(match[1]) if match else None
        if repo is None or match is None:
            return 404
        return self.about(repo, match[1], match[2] or "", body)

    def about(self, repo: dict[str, Any], name: str, action: str, body: bytes) -> Any:
        """Answer a request about a repository."""
        sizes = {path: len(content) for path, content in repo["files"].items()}
        if action.startswith("/commit/"):
            return self.server.commit(name, [json.loads(line) for line in body.splitlines()])
        if action.startswith("/preupload/"):
            paths = [file["path"] for file in json.loads(body)["files"]]
            modes = {path: "lfs" if path.endswith(".safetensors") else "regular" for path in paths}
            return {"files": [{"path": path, "uploadMode": modes[path], "shouldIgnore": False} for path in paths]}
        if action == "/info/lfs/objects/batch":
            objects = json.loads(body)["objects"]
            for entry in objects:
                entry["actions"] = {"upload": {"href": f"{self.server.url}/blob/{entry['oid']}"}}
            return {"transfer": "basic", "objects": objects}
        if action.startswith("/tree/"):
            return [{"type": "file", "path": path, "size": size, "oid": "0" * 40} for path, size in sizes.items()]
        siblings = [{"rfilename": path, "size": size} for path, size in sizes.items()]
        return {"id": name, "sha": "1" * 40, "private": repo["private"], "siblings": siblings}
