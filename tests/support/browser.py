"""Debian's Chromium, without a window, driven over the pipe of its DevTools protocol."""

import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

PATIENCE = 60.0
"""Seconds for an answer, on a busy machine."""

_QUIET = (
    "--headless", "--disable-gpu", "--no-first-run", "--disable-background-networking", "--disable-component-update",
    "--disable-sync", "--disable-dev-shm-usage", "--remote-debugging-pipe",
)  # fmt: skip

_ON_PIPES = 'in=$1 out=$2; shift 2; exec "$@" 3<&"$in" 4>&"$out"'
"""Where the browser expects commands and writes answers, each ended by a NUL."""


class Tab:
    """A page in the browser: what it looks like for a window and a taste, what it asked for, what it says of itself.

    Attributes:
        requested: URLs that it made the browser fetch.
        complaints: what the browser has against it.
    """

    def __init__(self, commands: int, answers: int) -> None:
        self._commands, self._answers = commands, answers
        self._unread = b""
        self._last = 0
        self._session: str | None = None
        self._loaded = False
        self.requested: list[str] = []
        self.complaints: list[str] = []
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime"):
            self._call(f"{domain}.enable")

    def show(self, path: Path, *, width: int, scheme: str) -> None:
        """Load a file into a window of so many pixels, for a reader who likes ``scheme``, light or dark."""
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        self._call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": scheme}])
        self._loaded = False
        self.requested.clear()
        self.complaints.clear()
        self._call("Page.navigate", url=path.as_uri())
        while not self._loaded:
            self._next()

    def evaluate(self, script: str) -> Any:
        """Return the value of an expression in the page; of a promise, what it promises."""
        answer = self._call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def _call(self, method: str, **parameters: Any) -> Any:
        self._last += 1
        session = {} if self._session is None else {"sessionId": self._session}
        message = json.dumps({"id": self._last, "method": method, "params": parameters} | session).encode() + b"\0"
        while message:
            message = message[os.write(self._commands, message) :]
        while (answer := self._next()).get("id") != self._last:
            pass
        assert "error" not in answer, (method, answer["error"])
        return answer["result"]

    def _next(self) -> Any:
        """Take the next message, and note what it tells."""
        deadline = time.monotonic() + PATIENCE
        while b"\0" not in self._unread:
            ready, _, _ = select.select([self._answers], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"the browser said nothing for {PATIENCE:.0f} s"
            data = os.read(self._answers, 1 << 16)
            assert data, "the browser has ended"
            self._unread += data
        text, _, self._unread = self._unread.partition(b"\0")
        message = json.loads(text)
        match message.get("method"):
            case "Page.loadEventFired":
                self._loaded = True
            case "Network.requestWillBeSent":
                self.requested.append(message["params"]["request"]["url"])
            case "Log.entryAdded":
                self.complaints.append(message["params"]["entry"]["text"])
            case "Runtime.exceptionThrown":
                self.complaints.append(json.dumps(message["params"]["exceptionDetails"]))
        return message


def _unconfined() -> list[str]:
    """Its sandbox is namespaces, which root's browser refuses, and which containers do not let users make."""
    apart = ["unshare", "--user", "--pid", "--fork", "true"]
    if os.geteuid() != 0 and subprocess.run(apart, capture_output=True, check=False).returncode == 0:
        return []
    return ["--no-sandbox"]


@contextmanager
def browser(directory: Path) -> Iterator[Tab]:
    """Run one, with its files in ``directory``; skips the test where it is not installed."""
    program = shutil.which("chromium")
    if program is None:
        pytest.skip("no chromium here: apt-get install chromium")
    command = [program, *_QUIET, *_unconfined(), f"--user-data-dir={directory}", "about:blank"]
    for_browser, commands = os.pipe()
    answers, of_browser = os.pipe()
    process = subprocess.Popen(
        ["bash", "-c", _ON_PIPES, "-", str(for_browser), str(of_browser), *command],
        pass_fds=(for_browser, of_browser),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(for_browser)
    os.close(of_browser)
    try:
        yield Tab(commands, answers)
    finally:
        os.close(commands)  # which ends it
        os.close(answers)
        try:
            process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
