"""A hub of our own for the tests: the bundled model as Hugging Face weights, and as a GGUF, served as the hub does.

huggingface_hub reads its address and folders when it is imported, so what asks this hub runs in a process of its own.
"""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

from paths import ABACUS

from edge_steer.storage.digests import digest

COMMIT = "6e4ed1a2a79af7d8630a6b768ec859cb5af4d3be"
REPOS: dict[str, dict[str, Path]] = {
    "we/abacus": {name: ABACUS / name for name in ("config.json", "model.safetensors", "tokenizer.json")},
    "we/abacus-GGUF": {
        "README.md": ABACUS / "README.md",
        "abacus-F16.gguf": ABACUS / "abacus-F16.gguf",
        "mmproj-abacus-Q4_K_M.gguf": ABACUS / "recipe.toml",
    },
}


@contextmanager
def serving(folder: Path) -> Iterator[dict[str, str]]:
    """The environment of a process that asks this hub and keeps its cache in `folder`."""
    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        address = f"http://127.0.0.1:{server.server_port}"
        yield {**os.environ, "HF_ENDPOINT": address, "HF_HUB_CACHE": str(folder), "HF_HUB_DISABLE_PROGRESS_BARS": "1",
               "HF_HUB_DISABLE_XET": "1", "HF_HUB_OFFLINE": "0",
               "EDGE_STEER_CACHE": str(folder / "edge-steer")}  # fmt: skip
        server.shutdown()


def printed(environment: Mapping[str, str], code: str) -> list[str]:
    """The lines that this code prints in a process of its own."""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=environment)
    return done.stdout.splitlines()


class Hub(BaseHTTPRequestHandler):
    """The three answers of the hub that are asked for: what a repository holds, its tree, and a file."""

    requests: ClassVar[list[str]] = []  # the paths that were asked for

    def do_GET(self) -> None:
        path, _, _ = self.path.partition("?")
        self.requests.append(path)
        for repo, files in REPOS.items():
            if path.startswith(f"/api/models/{repo}/tree/"):
                self.answer([{"type": "file", "path": n, "size": f.stat().st_size, "oid": n} for n, f in files.items()])
                return
            if path.startswith(f"/api/models/{repo}/revision/") or path == f"/api/models/{repo}":
                siblings = [{"rfilename": name, "size": file.stat().st_size} for name, file in files.items()]
                self.answer({"id": repo, "sha": COMMIT, "siblings": siblings})
                return
            for name, file in files.items():
                if path in (f"/{repo}/resolve/main/{name}", f"/{repo}/resolve/{COMMIT}/{name}"):
                    self.send(file)
                    return
        gated = path.startswith("/api/models/we/gated")
        self.send_response(403 if gated else 404)
        self.send_header("X-Error-Code", "GatedRepo" if gated else "RepoNotFound")
        self.end_headers()

    do_HEAD = do_GET

    def answer(self, value: object) -> None:
        content = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def send(self, file: Path) -> None:
        self.send_response(200)
        self.send_header("ETag", f'"{digest(file)}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(file.stat().st_size))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(file.read_bytes())

    def log_message(self, format: str, *args: object) -> None:
        pass
