"""A headless Chromium for the tests of pages, driven through its debugging pipe; no driver is needed."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
BINARY = next(filter(None, (os.environ.get("CHROMIUM"), *map(shutil.which, NAMES))), None)
MISSING = "no Chromium on this machine (apt-get install chromium, or set CHROMIUM to the program)"


class Browser:
    """One Chromium with one page."""

    def __init__(self) -> None:
        self.folder = tempfile.mkdtemp(prefix="chromium-")
        command_read, self.commands = os.pipe()
        self.answers, answer_write = os.pipe()

        def hand_over() -> None:  # Chromium reads from 3 and writes to 4
            first, second = os.dup(command_read), os.dup(answer_write)
            os.dup2(first, 3)
            os.dup2(second, 4)

        self.process = subprocess.Popen(
            [
                str(BINARY),
                *("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run"),
                *("--hide-scrollbars", "--disable-background-networking", "--remote-debugging-pipe"),
                *(f"--user-data-dir={self.folder}", "about:blank"),
            ],
            preexec_fn=hand_over,
            close_fds=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(command_read)
        os.close(answer_write)
        self.number = 0
        self.rest = b""
        self.events: list[dict[str, Any]] = []
        self.session: str | None = None
        targets = self.call("Target.getTargets")["targetInfos"]
        page = next(target["targetId"] for target in targets if target["type"] == "page")
        self.session = self.call("Target.attachToTarget", targetId=page, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log", "Accessibility"):
            self.call(f"{domain}.enable")

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        for end in (self.commands, self.answers):
            os.close(end)
        shutil.rmtree(self.folder, ignore_errors=True)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Send a command of the DevTools protocol and return its result."""
        self.number += 1
        message = {"id": self.number, "method": method, "params": parameters}
        if self.session is not None:
            message["sessionId"] = self.session
        os.write(self.commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self.number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return dict(answer["result"])
            self.events.append(answer)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self.rest:
            part = os.read(self.answers, 1 << 20)
            assert part, "Chromium has ended"
            self.rest += part
        line, _, self.rest = self.rest.partition(b"\0")
        return dict(json.loads(line))

    def open(self, page: Path, width: int = 1440, height: int = 900, **media: str) -> float:
        """Open a file at a width and with media features, such as ``prefers_color_scheme="dark"``; return seconds."""
        features = [{"name": name.replace("_", "-"), "value": value} for name, value in media.items()]
        self.call("Emulation.setEmulatedMedia", features=features)
        mobile = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.call("Emulation.setDeviceMetricsOverride", **mobile)
        self.events.clear()
        started = time.perf_counter()
        self.call("Page.navigate", url=page.resolve().as_uri())
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(self._next())
        self.run("new Promise(done => requestAnimationFrame(() => setTimeout(done, 0)))")
        return time.perf_counter() - started

    def run(self, script: str) -> Any:
        """Return what an expression of JavaScript is worth."""
        answer = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def press(self, key: str) -> None:
        """Press a key by its name."""
        codes = {"Tab": 9, "Enter": 13, " ": 32, "ArrowRight": 39, "ArrowLeft": 37, "Escape": 27, "End": 35}
        event = {"key": key, "code": "Space" if key == " " else key, "windowsVirtualKeyCode": codes[key]}
        self.call("Input.dispatchKeyEvent", type="rawKeyDown", **event)
        if key in (" ", "Enter"):
            self.call("Input.dispatchKeyEvent", type="char", text="\r" if key == "Enter" else key, **event)
        self.call("Input.dispatchKeyEvent", type="keyUp", **event)

    def problems(self) -> list[str]:
        """Return what the console and the log say since the page was opened: errors, warnings, violations."""
        self.run("0")
        lines = []
        for event in self.events:
            parameters = event.get("params", {})
            if event.get("method") == "Runtime.exceptionThrown":
                lines.append(str(parameters["exceptionDetails"]))
            elif event.get("method") == "Runtime.consoleAPICalled":
                lines.append(f"console.{parameters['type']}: {parameters['args']}")
            elif event.get("method") == "Log.entryAdded":
                lines.append(str(parameters["entry"]))
        return lines

    def requests(self) -> list[str]:
        """Return what was asked for since the page was opened, the page itself left out."""
        asked = [event["params"] for event in self.events if event.get("method") == "Network.requestWillBeSent"]
        urls = [request["request"]["url"] for request in asked if request["type"] != "Document"]
        return [url for url in urls if not url.startswith("data:")]
