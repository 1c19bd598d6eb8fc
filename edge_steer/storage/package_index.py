"""Files of the Python package index, fetched by pip: a wheel or a source distribution, and nothing that it depends on.

Takes a pinned requirement, gives the archive. It installs nothing and runs no code of the package.
"""

import subprocess
import sys
from pathlib import Path

from edge_steer.core.errors import EdgeSteerError


def download(requirement: str, folder: str | Path, *, source: bool = False) -> Path:
    """The archive of a requirement such as name==1.0, in a folder that is empty. source: its source distribution.

    Errors: EdgeSteerError with the last line that pip wrote.
    """
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--retries", "1"]
    command += ["--no-deps", "--dest", str(folder)]
    command += ["--no-binary" if source else "--only-binary", requirement.partition("==")[0], requirement]
    process = subprocess.run(command, capture_output=True, text=True, errors="replace")
    archives = list(Path(folder).iterdir())
    if process.returncode or len(archives) != 1:
        lines = [line.strip() for line in process.stderr.splitlines() if line.strip()]
        raise EdgeSteerError(f"pip cannot fetch {requirement}: {lines[-1][:300] if lines else 'no archive came'}")
    return archives[0]
