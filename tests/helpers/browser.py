"""A headless Chromium, driven by its own protocol over a pipe: what a page draws, says and asks for."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from base64 import b64decode
from pathlib import Path
from types import TracebackType
from typing import Any, Self

PROGRAM = next((p for p in map(shutil.which, ("chromium", "chromium-browser", "google-chrome")) if p), None)
MISSING = "needs Chromium (apt-get install chromium); there is none here"
_FLAGS = (
    "--headless=new --no-sandbox --disable-gpu --no-first-run --disable-background-networking "
    "--disable-component-update --disable-sync --disable-dev-shm-usage --remote-debugging-pipe"
)


class Browser:
    """One page after another in one process.

    Attributes:
        said: What the page has put on the console, exceptions and refusals included.
        asked: Addresses that it has asked for.
    """

    def __init__(self) -> None:
        assert PROGRAM is not None
        self.said: list[str] = []
        self.asked: list[str] = []
        self._home = tempfile.mkdtemp()
        down, self._write = os.pipe()
        self._read, up = os.pipe()
        command = (
            f'exec "$0" {_FLAGS} --user-data-dir="$1" --window-size=1280,900 about:blank 3<&{down} 4>&{up}'
        )
        self._process = subprocess.Popen(
            ["bash", "-c", command, PROGRAM, self._home],
            pass_fds=(down, up),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(down)
        os.close(up)
        self._rest, self._number = b"", 0
        self._session: str | None = None
        (target,) = [t for t in self._call("Target.getTargets")["targetInfos"] if t["type"] == "page"]
        attached = self._call("Target.attachToTarget", targetId=target["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self._call(f"{domain}.enable")

    def open(self, path: Path, fragment: str = "", dark: bool = False, width: int = 1280) -> None:
        """Load a file, and wait until it has loaded."""
        self._call(
            "Emulation.setEmulatedMedia",
            features=[{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}],
        )
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self._call("Emulation.setDeviceMetricsOverride", **size)
        self._call("Page.navigate", url="about:blank")
        self.said.clear()
        self.asked.clear()
        self._call("Page.navigate", url=path.resolve().as_uri() + fragment)
        self.run(
            "new Promise(done => document.readyState == 'complete' ? done() : addEventListener('load', done))"
        )

    def run(self, script: str) -> Any:
        """The value of an expression in the page; a promise is waited for."""
        answer = self._call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def screenshot(self, path: Path) -> None:
        """The whole page as a PNG."""
        answer = self._call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(b64decode(answer["data"]))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._read)
        os.close(self._write)
        shutil.rmtree(self._home, ignore_errors=True)

    def _call(self, method: str, **parameters: Any) -> Any:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]
            self._note(answer)

    def _next(self) -> Any:
        while b"\0" not in self._rest:
            more = os.read(self._read, 1 << 20)
            assert more, "the browser has gone"
            self._rest += more
        first, _, self._rest = self._rest.partition(b"\0")
        return json.loads(first)

    def _note(self, event: Any) -> None:
        what, found = event.get("method"), event.get("params", {})
        if what == "Runtime.consoleAPICalled":
            self.said.append(" ".join(str(a.get("value", a.get("description"))) for a in found["args"]))
        elif what == "Runtime.exceptionThrown":
            self.said.append(found["exceptionDetails"]["exception"].get("description", "exception"))
        elif what == "Log.entryAdded":
            self.said.append(found["entry"]["text"])
        elif what == "Network.requestWillBeSent" and not found["request"]["url"].startswith(
            ("data:", "about:")
        ):
            self.asked.append(found["request"]["url"])
