"""Generated docs are fresh, what the docs point to is there, and the code they print runs."""

import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from paths import ABACUS, DENSE, ROOT

from edge_steer.commands.main import main

PAGES = [ROOT / "README.md", ROOT / "models" / "abacus" / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TUTORIAL = ROOT / "docs" / "tutorial.md"


def blocks(page: Path, language: str) -> list[str]:
    """The fenced blocks of a page in a language, in their order."""
    return re.findall(rf"^```{language}\n(.*?)^```$", page.read_text(), re.MULTILINE | re.DOTALL)


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A folder that looks like a clone to the commands of the docs: the bundled model and its vector are there."""
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "abacus").symlink_to(ABACUS, target_is_directory=True)
    shutil.copytree(DENSE, tmp_path / "export" / "abacus" / "dense")
    return tmp_path


def test_the_command_reference_is_fresh() -> None:
    reference = subprocess.run(
        [sys.executable, ROOT / "docs" / "cli.py"], capture_output=True, text=True, check=True
    ).stdout
    assert reference == (ROOT / "docs" / "cli.md").read_text(), "run: python docs/cli.py > docs/cli.md"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_local_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
        assert (page.parent / target).exists(), target


def test_the_index_lists_every_page() -> None:
    index = (ROOT / "docs" / "index.md").read_text()
    pages = {page.name for page in (ROOT / "docs").glob("*.md")} - {"index.md"}
    assert pages == set(re.findall(r"\]\((\w[\w-]*\.md)\)", index))


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "python")], ids=name_of)
def test_the_python_of_the_docs_runs(page: Path, clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In this process, which has PyTorch loaded already."""
    monkeypatch.chdir(clone)
    exec(compile("\n".join(blocks(page, "python")), page, "exec"), {"__name__": "__main__"})


def test_the_tutorial_runs(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its commands one after the other, in this process."""
    monkeypatch.chdir(clone)
    output = ""
    for line in "".join(blocks(TUTORIAL, "sh")).replace("\\\n", " ").splitlines():
        command, *arguments = shlex.split(line)
        assert command == "edge-steer"
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 0, result.output
        output += result.output
    for line in re.findall(r"^> (.+)$", TUTORIAL.read_text(), re.MULTILINE):
        assert line in output, f"the tutorial promises {line!r}"


def test_the_tree_of_the_readme_is_the_package() -> None:
    """Every wing, in the order data flows, with the first line of its docstring."""
    tree = re.findall(r"^      (\w+)/ +(.+)$", (ROOT / "README.md").read_text(), re.MULTILINE)
    wings = {path.parent.name: path.read_text() for path in (ROOT / "edge_steer").glob("*/__init__.py")}
    assert {wing for wing, _ in tree} == set(wings)
    for wing, line in tree:
        assert wings[wing].strip('"').splitlines()[0].rstrip(".").lower().startswith(line.lower().rstrip("."))
