"""A real browser for pages: Chromium without a window, spoken to over a pipe (the DevTools protocol).

    python -m tests.instruments.browser REPORT.html OUT.png [WIDTH] [light|dark] [SELECTOR]

takes a picture of the page, or of the element that SELECTOR names.  Debian: apt-get install chromium.
"""

import base64
import json
import os
import re
import select
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "headless_shell")
_WAIT_S = 60.0
# The pipe of the protocol is descriptors 3 and 4 of the browser.
_LAUNCHER = """
import fcntl, os, sys
high = [fcntl.fcntl(int(number), fcntl.F_DUPFD, 10) for number in sys.argv[1:3]]
for place, number in zip((3, 4), high):
    os.dup2(number, place)
os.execvp(sys.argv[3], sys.argv[3:])
"""


def found() -> str | None:
    """The browser of this machine, None where there is none; CHROMIUM names another."""
    names = [name for name in (os.environ.get("CHROMIUM", ""), *NAMES) if name]
    return next((path for name in names if (path := shutil.which(name))), None)


class Browser:
    """One page at a time; used with `with`."""

    def __init__(self) -> None:
        self._profile = tempfile.TemporaryDirectory(prefix="tutelage-browser-", ignore_cleanup_errors=True)
        to_read, self._write = os.pipe()
        self._read, to_write = os.pipe()
        switches = ["--headless", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-extensions"]
        switches += ["--disable-background-networking", "--disable-component-update", "--hide-scrollbars"]
        command = [str(found()), *switches, f"--user-data-dir={self._profile.name}", "--remote-debugging-pipe"]
        launcher = [sys.executable, "-c", _LAUNCHER, str(to_read), str(to_write)]
        self._process = subprocess.Popen(
            [*launcher, *command], pass_fds=(to_read, to_write), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        os.close(to_read)
        os.close(to_write)
        self._rest, self._serial = b"", 0
        self.events: list[dict[str, Any]] = []
        try:
            target = self._call("Target.createTarget", {"url": "about:blank"}, session=None)["targetId"]
            attached = self._call("Target.attachToTarget", {"targetId": target, "flatten": True}, session=None)
            self._session = attached["sessionId"]
            for domain in ("Page", "Runtime", "Log", "Network"):
                self._call(f"{domain}.enable", {})
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._write)
        os.close(self._read)
        self._profile.cleanup()

    def open(self, path: Path, *, width: int = 1280, height: int = 844, dark: bool = False) -> None:
        """Loads a file at a width; what it logs and asks for is in `events`."""
        self.events.clear()
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self._call("Emulation.setDeviceMetricsOverride", size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", {"features": [scheme]})
        self._call("Page.navigate", {"url": path.resolve().as_uri()})
        end = time.monotonic() + _WAIT_S
        while not any(e["method"] == "Page.loadEventFired" for e in self.events):
            assert time.monotonic() < end, f"{path} did not load"
            self._take(self._message())

    def value(self, script: str) -> Any:
        """The JSON value of an expression on the page."""
        found = self._call("Runtime.evaluate", {"expression": script, "returnByValue": True, "awaitPromise": True})
        assert "exceptionDetails" not in found, found["exceptionDetails"]
        return found["result"].get("value")

    def press(self, key: str) -> None:
        """A key, as from a keyboard."""
        for kind in ("keyDown", "keyUp"):
            self._call("Input.dispatchKeyEvent", {"type": kind, "key": key})

    def click(self, selector: str) -> None:
        """A click in the middle of the first element that the selector names, scrolled into view."""
        script = """(() => {
            const element = document.querySelector(SELECTOR);
            element.scrollIntoView({block: "center"});
            const box = element.getClientRects()[0];
            return [box.x + box.width / 2, box.y + box.height / 2];
        })()"""
        box = self.value(script.replace("SELECTOR", json.dumps(selector)))
        for kind in ("mousePressed", "mouseReleased"):
            point = {"x": box[0], "y": box[1], "button": "left", "clickCount": 1}
            self._call("Input.dispatchMouseEvent", {"type": kind, **point})

    def complaints(self) -> list[str]:
        """Errors and warnings of the console, exceptions, and everything that was asked for but the page itself."""
        said = []
        for event in self.events:
            parameters = event["params"]
            if event["method"] == "Runtime.exceptionThrown":
                said.append(str(parameters["exceptionDetails"]))
            elif event["method"] == "Runtime.consoleAPICalled" or event["method"] == "Log.entryAdded":
                said.append(str(parameters.get("entry", parameters.get("args"))))
            elif event["method"] == "Network.requestWillBeSent" and parameters["type"] != "Document":
                said.append(parameters["request"]["url"])
        return said

    def picture(self, path: Path, *, selector: str | None = None, most_px: int = 16_000) -> None:
        """A PNG of the whole page, or of one element, written by the test that asks for it."""
        script = "[document.documentElement.scrollWidth, document.documentElement.scrollHeight]"
        width, height = self.value(script)
        clip = {"x": 0, "y": 0, "width": width, "height": min(height, most_px), "scale": 1}
        if selector is not None:
            box = """(() => {
                const box = document.querySelector(SELECTOR).getBoundingClientRect();
                return {x: box.x + scrollX, y: box.y + scrollY, width: box.width, height: box.height};
            })()"""
            clip |= dict(self.value(box.replace("SELECTOR", json.dumps(selector))))
        data = self._call("Page.captureScreenshot", {"clip": clip, "captureBeyondViewport": True})["data"]
        path.write_bytes(base64.b64decode(data))

    # --- the protocol ---
    def _call(self, method: str, parameters: dict[str, Any], *, session: str | None = "page") -> dict[str, Any]:
        self._serial += 1
        serial = self._serial
        message = {"id": serial, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._message()
            if answer.get("id") == serial:
                assert "error" not in answer, (method, answer["error"])
                return dict(answer["result"])
            self._take(answer)

    def _take(self, message: dict[str, Any]) -> None:
        if "method" in message:
            self.events.append(message)

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._read], [], [], _WAIT_S)
            assert ready, "the browser says nothing"
            data = os.read(self._read, 1 << 20)
            assert data, "the browser has ended"
            self._rest += data
        one, _, self._rest = self._rest.partition(b"\0")
        return dict(json.loads(one))


def main(arguments: list[str]) -> None:
    """The picture of the command line."""
    page, out, *rest = arguments
    width = int(next((a for a in rest if re.fullmatch(r"\d+", a)), "1280"))
    selector = next((a for a in rest if not re.fullmatch(r"\d+|light|dark", a)), None)
    with Browser() as browser:
        browser.open(Path(page), width=width, dark="dark" in rest)
        browser.picture(Path(out), selector=selector)
        print("\n".join(browser.complaints()), file=sys.stderr)


if __name__ == "__main__":
    main(sys.argv[1:])
