"""A real Chromium that is asked through pipes: what a page does, and how it looks at a width.

Chromium speaks its DevTools protocol over file descriptors 3 and 4 with `--remote-debugging-pipe`,
so that no port is opened and no library is needed: JSON, each message ended by a zero byte.
"""

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium")
BASH = shutil.which("bash")
FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--host-resolver-rules=MAP * ~NOTFOUND",
    "--remote-debugging-pipe",
]
# Long enough for a busy machine, and the end of a test that would hang.
PATIENCE = 60.0
HEIGHT = 1200


@dataclass
class Tab:
    """A page in the browser.

    Args:
        errors: what the console says of errors: exceptions, and loads that were refused or failed.
        requests: the addresses that the page asked for, its own among them.
    """

    browser: "Browser"
    session: str
    errors: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def ask(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol, and return its result."""
        return self.browser.ask(method, self.session, **parameters)

    def run(self, expression: str) -> Any:
        """Return the value of JavaScript in the page."""
        result = self.ask("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def open(self, page: Path, width: int) -> None:
        """Load a file in a window of a width, until it and what it asks for are there."""
        self.resize(width)
        self.ask("Page.navigate", url=page.as_uri())
        deadline = time.monotonic() + PATIENCE
        while self.run("document.readyState + location.protocol") != "completefile:":
            assert time.monotonic() < deadline, f"{page} is not loaded after {PATIENCE} s"
            time.sleep(0.05)

    def resize(self, width: int, media: str = "screen") -> None:
        """Give the window a width, and show the page as on a screen or on paper."""
        size = {"width": width, "height": HEIGHT, "deviceScaleFactor": 1, "mobile": False}
        self.ask("Emulation.setDeviceMetricsOverride", **size)
        self.ask("Emulation.setEmulatedMedia", media=media)

    def print(self) -> bytes:
        """Print the page on A4 as a reader would; return the PDF."""
        paper = {"paperWidth": 8.27, "paperHeight": 11.69, "preferCSSPageSize": True}
        return base64.b64decode(self.ask("Page.printToPDF", **paper)["data"])

    def picture(self, file: Path) -> None:
        """Write a PNG of the whole page, for a person to look at."""
        # Without this it is cut by the width of a scroll bar, which it does not have.
        size = self.run("({width: innerWidth, height: document.documentElement.scrollHeight})")
        clip = {"x": 0, "y": 0, "scale": 1} | size
        taken = self.ask("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        file.write_bytes(base64.b64decode(taken["data"]))

    def heard(self, event: dict[str, Any]) -> None:
        """Keep what an event says."""
        told = event["params"]
        if event["method"] == "Network.requestWillBeSent":
            self.requests.append(told["request"]["url"])
        elif event["method"] == "Runtime.exceptionThrown":
            self.errors.append(str(told["exceptionDetails"]))
        elif event["method"] == "Log.entryAdded" and told["entry"]["level"] != "info":
            self.errors.append(told["entry"]["text"])
        elif event["method"] == "Runtime.consoleAPICalled":
            self.errors.append(str(told["args"]))


class Browser:
    """Chromium at the other end of two pipes."""

    def __init__(self, reads: int, writes: int) -> None:
        self._reads = reads
        self._writes = writes
        self._rest = b""
        self._asked = 0
        self._tabs: dict[str, Tab] = {}

    def tab(self) -> Tab:
        """Open an empty page that is listened to."""
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        made = self.ask("Target.attachToTarget", targetId=target, flatten=True)
        tab = self._tabs[made["sessionId"]] = Tab(self, made["sessionId"])
        for domain in ("Page", "Runtime", "Log", "Network"):
            tab.ask(f"{domain}.enable")
        return tab

    def ask(self, method: str, session: str | None = None, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol, and return its result."""
        self._asked += 1
        message = {"id": self._asked, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        os.write(self._writes, json.dumps(message).encode() + b"\0")
        deadline = time.monotonic() + PATIENCE
        while True:
            answer = self._next(deadline, method)
            if answer.get("id") == self._asked:
                assert "error" not in answer, (method, answer)
                return answer["result"]
            if answer.get("sessionId") in self._tabs and "method" in answer:
                self._tabs[answer["sessionId"]].heard(answer)

    def _next(self, deadline: float, method: str) -> dict[str, Any]:
        while b"\0" not in self._rest:
            left = deadline - time.monotonic()
            ready, _, _ = select.select([self._reads], [], [], max(left, 0))
            assert ready, f"Chromium has not answered {method} after {PATIENCE} s"
            piece = os.read(self._reads, 1 << 16)
            assert piece, f"Chromium ended at {method}"
            self._rest += piece
        message, _, self._rest = self._rest.partition(b"\0")
        return json.loads(message)


@contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """Start Chromium with an empty profile, and end it."""
    ours, theirs = _pipes()
    # Bash gives it the descriptors that it expects; those of the pipes are higher ones.
    script = f'exec "$@" 3<&{theirs[0]} 4>&{theirs[1]}'
    command = [str(BASH), "-c", script, "bash", str(CHROMIUM), *FLAGS, f"--user-data-dir={profile}"]
    with subprocess.Popen(
        command, pass_fds=theirs, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as process:
        for descriptor in theirs:
            os.close(descriptor)
        try:
            asked = Browser(*ours)
            yield asked
            asked.ask("Browser.close")
            process.wait(PATIENCE)
        finally:
            process.kill()
            for descriptor in ours:
                os.close(descriptor)


def _pipes() -> tuple[tuple[int, int], tuple[int, int]]:
    """Return the ends of two pipes: what we read and write, and what Chromium reads and writes."""
    pairs = []
    for _ in range(2):
        ends = os.pipe()
        pairs.append([fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends])
        for end in ends:
            os.close(end)
    (their_read, our_write), (our_read, their_write) = pairs
    return (our_read, our_write), (their_read, their_write)
