"""Reads files as an importer would in a process of its own that may take little more memory than it has."""

import json
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

MEMORY = 2**28  # bytes of address space that reading may take
READER = f"""
import json, resource, sys, time
from pathlib import Path
from edge_steer.vectors import read
from edge_steer.core.errors import EdgeSteerError
used = next(int(line.split()[1]) * 1024 for line in open("/proc/self/status") if line.startswith("VmSize"))
resource.setrlimit(resource.RLIMIT_AS, (used + {MEMORY},) * 2)
for path in sys.argv[1:]:
    began = time.process_time()
    try:
        read.read(Path(path), convention="block")
        kind, said = "read", ""
    except EdgeSteerError as error:
        kind, said = "refused", str(error)
    except BaseException as error:
        kind, said = "crash", repr(error)
    print(json.dumps([path, kind, said, time.process_time() - began]), flush=True)
"""


@dataclass(frozen=True)
class Outcome:
    """What reading a file ended in, what was said and how many seconds of CPU it took."""

    path: str
    kind: str
    said: str
    seconds: float

    def assert_refused(self, words: str) -> None:
        assert (self.kind, self.said.count("\n")) == ("refused", 0), self
        assert re.search(words, self.said), self.said
        assert Path(self.path).name in self.said
        assert self.seconds < 1


def outcomes(paths: Sequence[Path]) -> list[Outcome]:
    """One outcome for each path. A process that dies fails here."""
    if not sys.platform.startswith("linux"):
        pytest.skip("the limit of memory is set by Linux's means")
    command = [sys.executable, "-c", READER, *map(str, paths)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=paths[0].parent)
    found = [Outcome(*json.loads(line)) for line in done.stdout.splitlines()]
    assert len(found) == len(paths), f"{paths[len(found)]} ended the reader: {done.stderr[-2000:]}"
    return found
