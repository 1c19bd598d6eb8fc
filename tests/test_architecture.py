"""The ranks of docs/architecture.md, held against the imports of the code."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MODULES = sorted(path for path in (ROOT / "edge_steer").glob("*.py") if path.name != "__init__.py")
DOORS = {
    "click": {
        "cli",
        "cli_build",
        "cli_eval",
        "cli_pairs",
        "cli_parity",
        "cli_solutions",
        "cli_extract",
        "cli_sweep",
        "cli_vector",
        "cli_lm_eval",
        "console",
        "options",
    },
    "rich": {"console"},
    "jinja2": {"certificate_page", "chat_template"},
    "lm_eval": {"lm_eval_model"},
    "tqdm": {"lm_eval_model"},
    "gguf": {"export"},
    "llama_cpp": {"llama", "llama_hook", "llama_sampler"},
    "psutil": {"llama"},
    "torch": {"decoding", "hooks", "reference"},
    "transformers": {"reference"},
    "math_verify": {"answers"},
    "matplotlib": {"report"},
    "ray": {"ray_workers"},
    "safetensors": {"vector"},
    "huggingface_hub": {"hub"},
    "openai": {"chat_api"},
}


def ranks() -> dict[str, int]:
    table = (ROOT / "docs" / "architecture.md").read_text()
    return {name: int(rank) for rank, name in re.findall(r"^ +(\d+) +(\w+) ", table, re.MULTILINE)}


def imports(path: Path) -> set[str]:
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= (
                {f"{node.module}.{alias.name}" for alias in node.names}
                if node.module == "edge_steer"
                else {node.module}
            )
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_a_module_imports_only_from_lower_ranks(path: Path) -> None:
    rank = ranks()
    for name in imports(path):
        if name.startswith("edge_steer."):
            imported = name.split(".")[1]
            assert rank[imported] < rank[path.stem], f"{path.stem} imports {imported}"


def test_the_documented_modules_are_those_there_are() -> None:
    assert set(ranks()) == {path.stem for path in MODULES}


@pytest.mark.parametrize("package", DOORS)
def test_each_foreign_package_has_one_door(package: str) -> None:
    users = {path.stem for path in MODULES if any(name.split(".")[0] == package for name in imports(path))}
    assert users <= DOORS[package]


def test_help_loads_no_runtime() -> None:
    code = (
        "import sys\nfrom edge_steer.cli import main\n"
        "try: main(['--help'])\nexcept SystemExit: pass\n"
        "print(sorted({'torch', 'llama_cpp', 'transformers', 'numpy', 'rich'} & set(sys.modules)))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert output.splitlines()[-1] == "[]"
