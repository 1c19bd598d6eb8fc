"""The fixture `edge_steer_parity`, used as a project of its own uses it: pytest finds it by its entry point."""

import re
import subprocess
import sys
from pathlib import Path

from paths import ROOT

from edge_steer.core.vector import SteeringVector
from edge_steer.vectors import gguf_writer

DENSE = ROOT / "export" / "abacus" / "dense" / "vector.gguf"
PROJECT = """
from pathlib import Path

HERE, ABACUS = Path(__file__).parent, Path({abacus!r})

PROMPTS = [f"Mia has {{n}} apples and buys {{n + 2}} more. How many apples has she?" for n in range(3, 8)]
GIVEN = dict(reference=ABACUS, strength=0.325, prompts=PROMPTS, threads=1)

def test_parity(edge_steer_parity):
    report = edge_steer_parity(ABACUS / "abacus-F16.gguf", {vector!r}, **GIVEN)
    assert report.quant == "F16"

def test_another_vector(edge_steer_parity):
    edge_steer_parity(ABACUS / "abacus-F16.gguf", {vector!r}, reference_vector=HERE / "other.gguf", **GIVEN)
"""


def test_a_project_of_its_own(tmp_path: Path, bundled_vector: SteeringVector) -> None:
    gguf_writer.write(bundled_vector * 1.1, tmp_path / "other.gguf", layers=[5])
    (tmp_path / "test_project.py").write_text(PROJECT.format(abacus=str(ROOT / "models" / "abacus"), vector=str(DENSE)))
    apart = ("-p", "no:cacheprovider", "-c", "/dev/null", "--rootdir", tmp_path)
    command = (sys.executable, "-m", "pytest", "-q", *apart, tmp_path)
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert "1 failed, 1 passed" in done.stdout, done.stdout + done.stderr
    assert "abacus-F16.gguf (F16) against its reference, steered: fail" in done.stdout
    assert re.search(r"effect: length, at least is 0\.9\d.*at least 0\.99 allowed: fail", done.stdout)
    assert "Traceback" not in done.stdout


def test_the_plugin_loads_nothing_before_it_is_used() -> None:
    code = (
        "import sys, edge_steer.plugins.pytest_parity; "
        "print([m for m in ('torch', 'llama_cpp', 'numpy', 'transformers') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"
