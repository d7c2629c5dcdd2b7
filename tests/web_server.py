"""Pages served in a thread, or by the program in a process of its own, and a visitor with a cookie jar."""

from __future__ import annotations

import http.cookiejar
import json
import os
import re
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn

from stylex.web.serving import address, listen

CHROMIUM = next(
    (Path(name) for name in ("/usr/bin/chromium", "/usr/bin/chromium-browser") if Path(name).exists()), None
)


@contextmanager
def served(app: Any) -> Iterator[str]:
    listening = listen("127.0.0.1", 0)
    server = uvicorn.Server(uvicorn.Config(app, log_level="critical", access_log=False, lifespan="off"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    try:
        yield address(listening)
    finally:
        server.should_exit = True
        thread.join(10)


class Program:
    """`stylex …` as a process that serves; `url` once it has said so."""

    def __init__(self, *arguments: str) -> None:
        source = Path(__file__).parent.parent / "src"
        environment = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "stylex", *arguments, "--json"]
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
        )
        assert self.process.stdout is not None
        text = ""
        while not text.rstrip().endswith("}"):
            line = self.process.stdout.readline()
            assert line, self.process.stderr and self.process.stderr.read()
            text += line
        self.said = text
        self.result = json.loads(text)
        self.url: str = self.result["url"]

    def kill(self) -> None:
        """SIGKILL: nothing can be put in order."""
        self.process.kill()
        self.process.communicate()

    def stop(self) -> tuple[int, str]:
        """SIGTERM; the exit code and everything that was said, on standard output and error."""
        self.process.terminate()
        output, errors = self.process.communicate(timeout=30)
        return self.process.returncode, self.said + output + errors


class _Stay(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        return None


class Visitor:
    """A browser without a screen: keeps cookies, follows no redirect."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.jar = http.cookiejar.CookieJar()
        self.opener = urllib.request.build_opener(_Stay, urllib.request.HTTPCookieProcessor(self.jar))

    def get(self, path: str, **headers: str) -> tuple[int, str, Any]:
        return self._ask(urllib.request.Request(self.url + path, headers=_headers(headers)))

    def post(self, path: str, values: dict[str, str] | bytes, **headers: str) -> tuple[int, str, Any]:
        data = values if isinstance(values, bytes) else urllib.parse.urlencode(values).encode()
        return self._ask(urllib.request.Request(self.url + path, data, headers=_headers(headers)))

    def token(self, path: str = "/") -> str:
        """What the forms of a page carry."""
        found = re.search(r'name="token" value="(\w+)"', self.get(path)[1])
        assert found
        return found[1]

    def upload(self, content: bytes, name: str, token: str) -> tuple[int, str, Any]:
        mark = "----boundary"
        head = f'--{mark}\r\nContent-Disposition: form-data; name="token"\r\n\r\n{token}\r\n'
        head += f'--{mark}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n'
        body = head.encode() + b"Content-Type: image/png\r\n\r\n" + content + f"\r\n--{mark}--\r\n".encode()
        return self.post("/upload", body, content_type=f"multipart/form-data; boundary={mark}")

    def _ask(self, request: urllib.request.Request) -> tuple[int, str, Any]:
        try:
            with self.opener.open(request, timeout=60) as answer:
                return answer.status, answer.read().decode("utf-8", "replace"), answer.headers
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode("utf-8", "replace"), error.headers


def _headers(given: dict[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in given.items()}


def wait_for(condition: Any, seconds: float = 20) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.05)
