"""errors.py: which packages an extra asks for, and the first line of an error."""

import configparser
import os
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

from edge_steer.core.errors import first_line, need, packages_of

SETUP = configparser.ConfigParser()
SETUP.read(ROOT / "setup.cfg")


@pytest.mark.parametrize("extra", ["hub", "extract", "pairs", "evaluate", "convert", "plots", "ray", "lm-eval"])
def test_the_packages_of_an_extra_are_those_of_setup_cfg(extra: str) -> None:
    lines = SETUP["options.extras_require"][extra].split()
    own = {line.partition(">")[0] for line in lines if not line.startswith("edge-steer")}
    assert own <= set(packages_of(extra))
    assert not [package for package in packages_of(extra) if package.startswith("edge-steer")]
    need(extra)


def test_an_extra_within_an_extra_is_asked_for_too() -> None:
    assert {"torch", "transformers", "huggingface_hub", "sentencepiece"} <= set(packages_of("convert"))


def test_a_missing_package_is_named_with_the_line_that_installs_it(tmp_path: Path) -> None:
    metadata = tmp_path / "edge_steer-9.dist-info" / "METADATA"
    metadata.parent.mkdir()
    lines = ['click; extra == "fly"', 'no-such-wing>=2; extra == "fly"', 'edge-steer[fly]; extra == "all"']
    metadata.write_text("Name: edge-steer\nVersion: 9\n" + "".join(f"Requires-Dist: {line}\n" for line in lines))
    code = (
        "from edge_steer.core import errors\n"
        "try: errors.need('all')\n"
        "except errors.EdgeSteerError as error: print(error)"
    )
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, cwd=tmp_path, capture_output=True, text=True, check=True
    )
    assert done.stdout == "no-such-wing not installed; run: pip install 'edge-steer[all]'\n"


def test_the_first_line_of_an_error() -> None:
    assert first_line(ValueError("\n one\ntwo")) == "one"
    assert first_line(KeyboardInterrupt()) == "KeyboardInterrupt"
