"""llama.cpp's own tools, built from the source distribution of the installed llama-cpp-python.

Takes a tool's name, gives the path of its program. The sources are fetched once by pip into the cache folder; the
tools are linked to the llama.cpp library that llama-cpp-python has installed, so that a comparison with edge-steer
runs the same compiled kernels on both sides and differs in what is around them. Needs cmake and a C++ compiler.

    python benchmarks/llama_tools.py        builds them all and prints where they are
"""

import hashlib
import importlib.metadata
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import click
import llama_cpp

from edge_steer.core.errors import EdgeSteerError
from edge_steer.storage.files import cache_folder

TOOLS = ("llama-completion", "llama-perplexity", "llama-bench", "llama-batched-bench", "llama-cvector-generator")
VERSION = importlib.metadata.version("llama-cpp-python")
LIBRARIES = Path(llama_cpp.__file__).parent / "lib"
RECIPE = Path(__file__).parent / "tools"


def tool(name: str) -> Path:
    """The program `name`, one of TOOLS, built if it is not there. Errors: EdgeSteerError when that fails."""
    if name not in TOOLS:
        raise EdgeSteerError(f"no tool {name!r}; built are {', '.join(TOOLS)}")
    recipe = "".join(path.read_text() for path in sorted(RECIPE.iterdir()))
    key = hashlib.sha256(f"{VERSION} {LIBRARIES} {recipe}".encode()).hexdigest()[:12]
    build = cache_folder() / f"llama.cpp-tools-{VERSION}-{key}"
    program = build / "bin" / name
    if not program.is_file():
        definitions = [f"-DSOURCE={source()}", f"-DLIBRARIES={LIBRARIES}", f"-DVERSION={VERSION}"]
        run("cmake", "-S", RECIPE, "-B", build, *definitions)
        print(f"building {name} (the first tool takes some minutes)", file=sys.stderr)
        run("cmake", "--build", build, "--parallel", os.cpu_count() or 1, "--target", name)
    return program


def source() -> Path:
    """The folder of llama.cpp's sources of the installed version, fetched by pip if it is not there."""
    folder = cache_folder() / f"llama.cpp-source-{VERSION}"
    if folder.is_dir():
        return folder
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        requirement = f"llama-cpp-python=={VERSION}"
        pip = (sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "llama-cpp-python")
        run(*pip, requirement, "--dest", scratch)
        with tarfile.open(next(Path(scratch).glob("*.tar.gz"))) as archive:
            members = [member for member in archive if "/vendor/llama.cpp/" in member.name]
            archive.extractall(scratch, members, filter="data")
        next(Path(scratch).glob("*/vendor/llama.cpp")).rename(folder)
    return folder


def run(*command: object, errors: bool = False) -> str:
    """Standard output of a command, or with `errors` its standard error. Errors: EdgeSteerError for a bad status."""
    try:
        done = subprocess.run([str(word) for word in command], capture_output=True, text=True, errors="replace")
    except FileNotFoundError:
        raise EdgeSteerError(f"{command[0]} not found; install it and run again") from None
    if done.returncode:
        words = "\n".join((done.stdout + done.stderr).strip().splitlines()[-5:])
        raise EdgeSteerError(f"{command[0]} ended with status {done.returncode}: {words}")
    return done.stderr if errors else done.stdout


@click.command(help=__doc__)
def main() -> None:
    for name in TOOLS:
        click.echo(tool(name))


if __name__ == "__main__":
    main()
