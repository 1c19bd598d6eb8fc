"""Is a sweep that is killed and taken up again the same as one that ran through?

A sweep of the bundled model is started, killed (SIGKILL) at a random moment, started again, and so on; each time one
ends by itself its rows are compared with those of an undisturbed sweep, and a new one is begun. Moments are drawn
evenly from the start of the process to somewhat past the end of an undisturbed run. Reported are how many rows were
lost, made twice under one key, or differ in anything but their time.
"""

import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

ROOT = Path(__file__).parents[1]
ABACUS = ROOT / "models" / "abacus"
SETTINGS = ("--layers", "3-5", "--strengths", "-0.3,0.3,0.35", "--choose", "density", "--no-recipe")
MARGIN = 1.05  # moments are drawn up to this many times an undisturbed run

Rows = dict[tuple[str, str, str, int], dict[str, Any]]


@click.command(help=__doc__)
@click.option("--model", type=click.Path(exists=True, path_type=Path), default=ABACUS / "abacus-F16.gguf")
@click.option("--vector", type=click.Path(exists=True, path_type=Path), help="Default: extracted from abacus' pairs.")
@click.option("--kills", default=50, show_default=True)
@click.option("--dev", default=6, show_default=True, help="Problems to choose on.")
@click.option("--test", default=4, show_default=True, help="Problems to report on.")
@click.option("--parallel", default=4, show_default=True)
@click.option("--threads", default=1, show_default=True)
@click.option("--seed", default=0, show_default=True, help="Draws the moments.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON line instead of a table.")
def main(
    model: Path,
    vector: Path | None,
    kills: int,
    dev: int,
    test: int,
    parallel: int,
    threads: int,
    seed: int,
    as_json: bool,
) -> None:
    draw = random.Random(seed)
    with tempfile.TemporaryDirectory() as name:
        scratch = Path(name)
        sizes = ("--dev-problems", dev, "--test-problems", test, "--parallel", parallel, "--threads", threads)
        source = vector or extract_vector(scratch / "vector.safetensors")
        command = [sys.executable, "-m", "edge_steer", "sweep", str(model), "--vector", str(source)]
        command += [*SETTINGS, "--task", "wordproblems", *map(str, sizes), "--out"]
        start = time.monotonic()
        finish([*command, str(scratch / "undisturbed")])
        length = time.monotonic() - start
        expected, _ = read(scratch / "undisturbed")

        counts: Counter[str] = Counter(rows=len(expected))
        sweeps = 0
        while counts["kills"] < kills:
            folder = scratch / str(sweeps)
            while counts["kills"] < kills and not ended([*command, str(folder)], draw.uniform(0, MARGIN * length)):
                counts["kills"] += 1
                counts[f"killed {moment(folder)}"] += 1
            finish([*command, str(folder)])
            counts.update(compare(expected, folder))
            sweeps += 1
    result = {"sweeps compared": sweeps, **counts}
    if as_json:
        click.echo(json.dumps(result))
    else:
        table = Table("", "count")
        for what, count in result.items():
            table.add_row(what, str(count))
        Console().print(table)
    if counts["lost or new"] or counts["twice"] or counts["different"]:
        sys.exit(1)


def extract_vector(path: Path) -> Path:
    finish([sys.executable, "-m", "edge_steer", "extract", str(ABACUS), str(ABACUS / "pairs.jsonl"), "-o", str(path)])
    return path


def finish(command: list[str]) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise click.ClickException(done.stderr.strip().splitlines()[-1])


def ended(command: list[str], seconds: float) -> bool:
    """Run, and kill after so many seconds: whether the command ended before."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.send_signal(signal.SIGKILL)
        process.wait()
        return False
    if process.returncode:
        raise click.ClickException(f"a sweep that was taken up again ended with status {process.returncode}")
    return True


def moment(folder: Path) -> str:
    """What was on disk when the process was killed."""
    files = sorted(path.name for path in folder.glob("*.jsonl"))
    if not files:
        return "before the first row"
    last = (folder / files[-1]).read_bytes()
    where = "in dev" if len(files) == 1 else "in test"
    if not last.endswith(b"\n"):
        return f"{where}, a row torn"
    return (
        f"{where}, between units"
        if last.count(b"\n") == 1 or b'"whole"' in last.splitlines()[-1]
        else f"{where}, in a unit"
    )


def read(folder: Path) -> tuple[Rows, int]:
    """Rows by file and key, without their times, and how many were there again with another text or score."""
    rows: Rows = {}
    again = 0
    for path in folder.glob("*.jsonl"):
        for record in map(json.loads, path.read_text().splitlines()[1:]):
            if "whole" in record:
                continue
            del record["seconds"]
            key = path.name, record["method"], record["id"], record["repeat"]
            again += key in rows and rows[key]["nll"] is not None
            rows[key] = record
    return rows, again


def compare(expected: Rows, folder: Path) -> Mapping[str, int]:
    rows, again = read(folder)
    return {
        "lost or new": len(expected.keys() ^ rows.keys()),
        "twice": again,
        "different": sum(rows[key] != row for key, row in expected.items() if key in rows),
    }


if __name__ == "__main__":
    main()
