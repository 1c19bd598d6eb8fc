"""The wings of docs/architecture.md, held against the imports of the code."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
from paths import ROOT

PACKAGE = ROOT / "edge_steer"
MODULES = sorted(path for path in PACKAGE.glob("*/*.py") if path.name != "__init__.py")
PILLARS = {"vectors", "llama", "reference", "tasks"}
HANDED_A_MODEL = {"pairs", "extraction", "evaluation", "papers", "parity", "lens"}
LOADERS = {"models/load", "plugins/lm_eval_model"}
DOORS = {
    "click": {"terminal/", "commands/", "frontends/"},
    "rich": {"terminal/"},
    "prompt_toolkit": {"terminal/prompt"},
    "jinja2": {"llama/chat_template", "certificates/page", "lens/page"},
    "lm_eval": {"plugins/lm_eval_model"},
    "tqdm": {"plugins/lm_eval_model"},
    "gguf": {"vectors/gguf_writer", "adapters/", "models/describe", "reference/gguf_weights", "lens/weights"},
    "llama_cpp": {"llama/", "plugins/llama_cpp_python"},
    "psutil": {"llama/", "training/checks"},
    "torch": {"reference/", "training/"},
    "transformers": {"reference/"},
    "math_verify": {"tasks/answers"},
    "matplotlib": {"evaluation/plots", "evaluation/svg", "training/plots"},
    "ray": {"plugins/ray_workers"},
    "safetensors": {"vectors/native", "reference/adapter", "adapters/change"},
    "huggingface_hub": {"storage/hub"},
    "filelock": {"storage/records"},
    "platformdirs": {"storage/files"},
    "tomlkit": {"recipes/recipe"},
    "fastapi": {"serving/"},
    "starlette": {"serving/"},
    "uvicorn": {"serving/server"},
    "prometheus_client": {"serving/metrics"},
    "openai": {"pairs/endpoint"},
}


def allowed() -> dict[str, set[str]]:
    """Wing -> the wings it may import, from the table."""
    table = (ROOT / "docs" / "architecture.md").read_text()
    rows = re.findall(r"^\| `(\w+)` \| [^|]+ \| ([^|]+) \|$", table, re.MULTILINE)
    wings = {wing for wing, _ in rows}
    return {wing: _named(cell, wings) for wing, cell in rows}


def _named(cell: str, wings: set[str]) -> set[str]:
    named = set(re.findall(r"\w+", cell)) & wings
    return wings - named if cell.startswith("every wing but") else named


def imports(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Each module a file imports, anywhere in it, and the names it takes from it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((alias.name, []) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module, [alias.name for alias in node.names]


def wing_imports(path: Path) -> Iterator[tuple[str, list[str]]]:
    """The modules of this package a file imports, as `wing/module`, and the names it takes from them."""
    for module, names in imports(path):
        parts = module.split(".")
        if parts[0] != "edge_steer":
            continue
        if len(parts) == 2:
            yield from ((f"{parts[1]}/{name}", []) for name in names)
        elif len(parts) == 3:
            yield "/".join(parts[1:]), names


def place(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").as_posix()


def test_the_table_names_the_wings_there_are() -> None:
    assert set(allowed()) == {path.parent.name for path in PACKAGE.glob("*/__init__.py")}


@pytest.mark.parametrize("path", MODULES, ids=place)
def test_a_wing_imports_only_what_the_table_allows(path: Path) -> None:
    wing = path.parent.name
    for module, _ in wing_imports(path):
        imported = module.split("/")[0]
        assert imported == wing or imported in allowed()[wing], f"{place(path)} imports {module}"


def test_the_table_itself_keeps_the_rules() -> None:
    table = allowed()
    for wing in PILLARS:
        assert not table[wing] & (PILLARS - {wing})
    for wing in HANDED_A_MODEL:
        assert not table[wing] & {"llama", "reference", "models"}
    for wing in set(table) - {"commands", "frontends"}:
        assert not table[wing] & {"commands", "frontends", "terminal", "plugins"}
    assert "commands" not in table["frontends"]


@pytest.mark.parametrize("path", MODULES, ids=place)
def test_only_the_loaders_make_a_backend(path: Path) -> None:
    if path.parent.name in ("llama", "reference") or place(path) in LOADERS:
        return
    assert not {"llama/engine", "reference/model"} & {module for module, _ in running_imports(path)}


def running_imports(path: Path) -> Iterator[tuple[str, list[str]]]:
    """`wing_imports` without those for a type checker alone."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = [ast.Pass()]
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("edge_steer."):
            yield "/".join(node.module.split(".")[1:3]), [alias.name for alias in node.names]


@pytest.mark.parametrize("path", MODULES, ids=place)
def test_private_names_stay_in_their_file(path: Path) -> None:
    for module, names in wing_imports(path):
        assert not [name for name in names if name.startswith("_")], f"{place(path)} takes them from {module}"


def test_no_wing_has_a_circle() -> None:
    inside: dict[str, set[str]] = {place(path): set() for path in MODULES}
    for path in MODULES:
        own = {module for module, _ in wing_imports(path) if module.split("/")[0] == path.parent.name}
        inside[place(path)] = own & inside.keys()
    while leaves := [module for module, imported in inside.items() if not imported & inside.keys()]:
        for module in leaves:
            del inside[module]
    assert not inside, f"these import each other: {', '.join(inside)}"


@pytest.mark.parametrize("wing", sorted(allowed()))
def test_a_wing_is_a_few_short_files_behind_one_docstring(wing: str) -> None:
    files = [path for path in MODULES if path.parent.name == wing]
    assert 4 <= len(files) <= 12
    for path in files:
        lines = len(path.read_text().splitlines())
        assert lines <= 400, f"{place(path)} has {lines} lines"
    tree = ast.parse((PACKAGE / wing / "__init__.py").read_text())
    docstring = ast.get_docstring(tree)
    assert docstring and len(tree.body) == 1
    for path in files:
        assert re.search(rf"^(\w+, )*{path.stem}(, \w+)* {{3,}}", docstring, re.MULTILINE), f"{path.stem} is not named"


@pytest.mark.parametrize("package", DOORS)
def test_each_foreign_package_has_one_door(package: str) -> None:
    users = {place(path) for path in MODULES if any(name.split(".")[0] == package for name, _ in imports(path))}
    assert {user for user in users if not user.startswith(tuple(DOORS[package]))} == set()


def loaded_by(code: str, packages: Mapping[str, object] | set[str]) -> list[str]:
    """Which of these packages a fresh Python has loaded after the code."""
    script = f"import sys\n{code}\nprint(sorted({set(packages)!r} & set(sys.modules)))"
    output = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    names: list[str] = ast.literal_eval(output.splitlines()[-1])
    return names


def test_help_loads_no_runtime() -> None:
    code = "from edge_steer.commands.main import main\ntry: main(['--help'])\nexcept SystemExit: pass"
    assert loaded_by(code, {"torch", "llama_cpp", "transformers", "numpy", "rich"}) == []
