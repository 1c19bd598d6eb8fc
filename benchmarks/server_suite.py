"""llama-server's own tests, of the same source distribution, run against edge-steer's server.

    python benchmarks/server_suite.py                          the files of docs/serve.md, edge-steer
    python benchmarks/server_suite.py --llama-server PATH      the same tests on llama-server, beside it

The tests start what LLAMA_SERVER_BIN_PATH names; that is this file, which maps llama-server's flags to ours. Their
models are fetched from a hub; here the bundled model stands in, so tests of their model's exact words fail in both.
Prints passed and total by file, which tests did not pass, and a JSON line.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

import click

sys.path.insert(0, str(Path(__file__).parent))
from llama_tools import source

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "models" / "abacus" / "abacus-F16.gguf"
FILES = ("basic", "security", "tokenize", "chat_completion", "completion", "ctx_shift", "metrics", "ignore_eos")
PLUGIN = """
import pytest
from utils import server_instances

@pytest.fixture(autouse=True)
def stop_servers():
    yield
    for server in set(server_instances):
        server.stop()
"""
WGET = '"""Stands in for the package `wget`: nothing is downloaded here."""\n'


def shim(flags: list[str]) -> None:
    """Become `edge-steer serve` with llama-server's flags, or llama-server itself with the bundled model."""
    names = ("host", "port", "temp", "seed", "ctx-size", "parallel", "n-predict", "alias", "api-key", "threads")
    parser = argparse.ArgumentParser()
    for name in names:
        parser.add_argument(f"--{name}")
    given, others = parser.parse_known_args(flags)
    if program := os.environ.get("LLAMA_SERVER"):
        hub = [i for i, flag in enumerate(others) if flag in ("--hf-repo", "--hf-file", "--offline")]
        kept = [flag for i, flag in enumerate(others) if not any(i in (at, at + 1) for at in hub)]
        known = [
            word for name in names if (value := getattr(given, name.replace("-", "_"))) for word in (f"--{name}", value)
        ]
        os.execv(program, [program, "--model", str(MODEL), *known, *kept])
    slots = int(given.parallel or 4)
    command = [sys.executable, "-m", "edge_steer", "serve", str(MODEL), "--threads", given.threads or "1"]
    command += ["--host", given.host, "--port", given.port, "--parallel", str(slots), "--temperature", given.temp]
    command += ["--seed", str(int(given.seed) % 2**32)] if given.seed else []
    command += ["--context", str(int(given.ctx_size) // slots)] if given.ctx_size else []
    command += ["--max-tokens", given.n_predict] if given.n_predict and int(given.n_predict) > 0 else []
    command += [word for alias in (given.alias or "").split(",") if alias for word in ("--alias", alias.strip())]
    command += ["--api-key", given.api_key] if given.api_key else []
    command += [ours for flag, ours in {"--no-ui": "--no-page", "--no-slots": "--no-slots"}.items() if flag in others]
    os.execv(sys.executable, command)


def run(folder: Path, llama_server: Path | None) -> dict[str, dict[str, str]]:
    """File -> test -> how it ended."""
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "our_plugin.py").write_text(PLUGIN)
        (Path(scratch) / "wget.py").write_text(WGET)
        start = Path(scratch) / "start"
        start.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{Path(__file__).resolve()}" --shim "$@"\n')
        start.chmod(0o755)
        environment = {
            **os.environ,
            "LLAMA_SERVER_BIN_PATH": str(start),
            "PYTHONPATH": f"{scratch}:{folder}",
            "PORT": "8477",
        }
        if llama_server:
            environment["LLAMA_SERVER"] = str(llama_server.resolve())
        command = [sys.executable, "-m", "pytest", "--noconftest", "-p", "our_plugin", "-p", "no:cacheprovider", "-v"]
        command += ["-m", "not slow", "--rootdir", str(folder), *(f"unit/test_{name}.py" for name in FILES)]
        done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, errors="replace")
    outcomes: dict[str, dict[str, str]] = {name: {} for name in FILES}
    for name, test, outcome in re.findall(r"unit/test_(\w+)\.py::(.+?) (PASSED|FAILED|ERROR|SKIPPED)", done.stdout):
        outcomes[name][test] = outcome
    if not any(outcomes.values()):
        raise SystemExit(done.stdout[-2000:] + done.stderr[-2000:])
    return outcomes


@click.command(help=__doc__)
@click.option("--llama-server", type=click.Path(path_type=Path, exists=True))
def main(llama_server: Path | None) -> None:
    folder = source() / "tools" / "server" / "tests"
    results = {"edge-steer": run(folder, None)}
    if llama_server:
        results["llama-server"] = run(folder, llama_server)
    print(f"{'file':20}" + "".join(f"{name:>16}" for name in results))
    for file in FILES:
        passed = [list(result[file].values()) for result in results.values()]
        print(f"{file:20}" + "".join(f"{ends.count('PASSED'):>10}/{len(ends):<5}" for ends in passed))
    for name, result in results.items():
        for file in FILES:
            for test, outcome in result[file].items():
                if outcome not in ("PASSED", "SKIPPED"):
                    print(f"{name}: {file}: {test} {outcome.lower()}")
    print(json.dumps(results))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--shim"]:
        shim(sys.argv[2:])
    main()
