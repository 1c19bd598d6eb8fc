"""Whole commands of this checkout against the same commands of an earlier commit, side by side.

Processor seconds (user and system, child processes too) of `edge-steer --help`, `extract`, `eval` and `parity` as a
user runs them, start of Python included, on one thread: by default the bundled model, with `--large` random weights of
Qwen2.5-0.5B's shape (extract and eval alone). Processor seconds, because other processes hardly change them. The
commit is unpacked into a temporary folder and runs with the same packages. The two take turns; shown are medians, and
the median, smallest and largest of the ratios now / before within a round. No time is asserted.

    python benchmarks/against.py be046aa --rounds 5 --rename problems=limit --rename text-file=texts
"""

import os
import resource
import statistics
import subprocess
import sys
import tarfile
import tempfile
from configparser import ConfigParser
from io import BytesIO
from pathlib import Path

import click
import random_model
from rich.console import Console
from rich.table import Table

HERE = Path(__file__).parents[1]
BUNDLED = HERE / "models" / "abacus"
VECTOR = f"{HERE / 'export' / 'abacus' / 'dense' / 'vector.gguf'}:0.325"


@click.command(help=__doc__)
@click.argument("commit")
@click.option("--rounds", default=5, show_default=True)
@click.option("--rename", multiple=True, help="NOW=BEFORE: an option that had another name in the commit.")
@click.option("--large", is_flag=True, help="Random weights of Qwen2.5-0.5B's shape.")
def main(commit: str, rounds: int, rename: tuple[str, ...], large: bool) -> None:
    names = {f"--{now}": f"--{then}" for now, then in (pair.split("=") for pair in rename)}
    with tempfile.TemporaryDirectory() as folder:
        before = Path(folder, "before")
        archive = subprocess.run(["git", "archive", commit], cwd=HERE, check=True, capture_output=True).stdout
        with tarfile.open(fileobj=BytesIO(archive)) as files:
            files.extractall(before, filter="data")
        table = Table("command", "before, s", "now, s", "now / before", title=f"against {commit}, {rounds} rounds")
        for name, arguments in (on_random_weights(Path(folder)) if large else on_the_bundled()).items():
            seconds: dict[Path, list[float]] = {before: [], HERE: []}
            for round_ in range(-1, rounds):  # the round before the first warms up
                for tree in (before, HERE) if round_ % 2 else (HERE, before):
                    options = [names.get(str(a), a) for a in arguments] if tree == before else arguments
                    elapsed = run(tree, options, Path(folder))
                    if round_ >= 0:
                        seconds[tree].append(elapsed)
            ratios = [now / then for now, then in zip(seconds[HERE], seconds[before], strict=True)]
            medians = [f"{statistics.median(seconds[tree]):.2f}" for tree in (before, HERE)]
            table.add_row(name, *medians, f"{statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})")
    Console(width=None if Console().is_terminal else 110).print(table)


def on_the_bundled() -> dict[str, list[object]]:
    gguf, pairs = BUNDLED / "abacus-F16.gguf", BUNDLED / "pairs.jsonl"
    steered = ["--vector", VECTOR, "--phase", "all", "--threads", 1]
    return {
        "--help": ["--help"],
        "extract": ["extract", BUNDLED, pairs, "-o", "vector.safetensors", "--threads", 1],
        "eval": ["eval", gguf, "--task", "wordproblems", "--problems", 60, "--methods", "unsteered,steered",
                 "--out", "rows", *steered],
        "parity": ["parity", gguf, "--reference", BUNDLED, "--text-file", pairs, *steered],
    }  # fmt: skip


def on_random_weights(scratch: Path) -> dict[str, list[object]]:
    pairs = scratch / "few.jsonl"
    pairs.write_text("".join((BUNDLED / "pairs.jsonl").read_text().splitlines(keepends=True)[:24]))
    return {
        "extract": ["extract", random_model.folder(), pairs, "-o", "vector.safetensors", "--threads", 1],
        "eval": ["eval", random_model.gguf(), "--task", "wordproblems", "--problems", 16, "-n", 16,
                 "--methods", "unsteered", "--out", "rows", "--threads", 1],
    }  # fmt: skip


def run(tree: Path, arguments: list[object], scratch: Path) -> float:
    """Processor seconds of one command in an empty folder."""
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        command = [sys.executable, "-c", start_of(tree), *map(str, arguments)]
        start = spent()
        ended = subprocess.run(
            command, cwd=folder, env={**os.environ, "PYTHONPATH": str(tree)}, capture_output=True, text=True
        )
    if ended.returncode:
        raise click.ClickException(f"{' '.join(command)} in {tree}: {ended.stderr.strip()[-500:]}")
    return spent() - start


def spent() -> float:
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return children.ru_utime + children.ru_stime


def start_of(tree: Path) -> str:
    """Python that calls the command named in the tree's setup.cfg."""
    setup = ConfigParser()
    setup.read(tree / "setup.cfg")
    module, function = setup["options.entry_points"]["console_scripts"].split("=")[1].strip().split(":")
    return f"import sys; sys.argv[0] = 'edge-steer'; from {module} import {function}; {function}()"


if __name__ == "__main__":
    main()
