"""Where the tests find the repository, the bundled model, and benchmark files that the repository does not hold."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
ABACUS = ROOT / "models" / "abacus"
DENSE = ROOT / "export" / "abacus" / "dense"
DATA = Path(os.environ.get("EDGE_STEER_DATA", "no-benchmark-files"))
