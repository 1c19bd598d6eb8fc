"""Tests' side of a server: `edge-steer serve` in a process of its own, and what requests it is sent."""

import re
import signal
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from paths import ABACUS

QUESTION = "Tom has 3 apples and buys 4 more. How many apples does Tom have?"
KEY = "sesame"
Json = dict[str, Any]


@dataclass
class Server:
    """A server's process and where it is reached."""

    process: subprocess.Popen[str]
    url: str
    said: str

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    @property
    def client(self) -> httpx.Client:
        return httpx.Client(base_url=self.url, timeout=60)

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


Start = Callable[..., Server]


def launch(*arguments: str, model: Path = ABACUS) -> Server:
    """`edge-steer serve` on a free port, ready to answer."""
    command = [sys.executable, "-m", "edge_steer", "serve", str(model), "--port", "0", "--threads", "1"]
    process = subprocess.Popen([*command, *arguments], stderr=subprocess.PIPE, text=True)
    assert process.stderr
    lines = []
    for line in process.stderr:
        lines.append(line)
        if match := re.search(r"at (http://\S+:\d+);", line):
            return Server(process, match[1], "".join(lines))
    raise AssertionError("".join(lines))
