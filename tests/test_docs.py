"""Generated docs are fresh, and what the docs point to is there."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT

PAGES = [ROOT / "README.md", ROOT / "models" / "abacus" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def test_the_command_reference_is_fresh() -> None:
    made = subprocess.run([sys.executable, ROOT / "docs" / "cli.py"], capture_output=True, text=True, check=True).stdout
    assert made == (ROOT / "docs" / "cli.md").read_text(), "run: python docs/cli.py > docs/cli.md"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_local_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target
