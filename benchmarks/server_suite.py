"""llama-server's own tests, of the same source distribution, run against edge-steer's server.

    python benchmarks/server_suite.py [FILE...]                the files of docs/serve.md, edge-steer
    python benchmarks/server_suite.py --llama-server PATH      the same tests on llama-server, beside it

The tests start what LLAMA_SERVER_BIN_PATH names; that is this file, which maps llama-server's flags to ours. Their
models are fetched from a hub; here the bundled model stands in, so tests of their model's exact words fail in both.
Some ask for a model by a name that llama-server overlooks and edge-steer refuses: there it is an alias of the model.
Prints passed and total by file, which tests did not pass, and a JSON line.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import cast

import click

sys.path.insert(0, str(Path(__file__).parent))
from llama_tools import source

ROOT = Path(__file__).parents[1]
MODEL = ROOT / "models" / "abacus" / "abacus-F16.gguf"
FILES = {  # file of tests -> what its clients call the model
    "basic": (),
    "security": ("gpt-3.5-turbo",),
    "tokenize": (),
    "chat_completion": ("gpt-3.5-turbo-instruct", "codellama70b"),
    "completion": ("davinci-002",),
    "ctx_shift": (),
    "metrics": (),
    "ignore_eos": (),
}
TEMPLATES = {"command-r": "CohereForAI-c4ai-command-r-plus-tool_use", "llama3": "meta-llama-Llama-3.1-8B-Instruct"}
SECONDS = 600  # for the tests of one file
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
    for name in (*names, "chat-template", "chat-template-file"):
        parser.add_argument(f"--{name}")
    flag, others = parser.parse_known_args(flags)
    if program := os.environ.get("LLAMA_SERVER"):
        hub = [i for i, other in enumerate(others) if other in ("--hf-repo", "--hf-file", "--offline")]
        kept = [other for i, other in enumerate(others) if not any(i in (at, at + 1) for at in hub)]
        known = [word for name, value in vars(flag).items() if value for word in (f"--{name.replace('_', '-')}", value)]
        os.execv(program, [program, "--model", str(MODEL), *known, *kept])
    slots = int(flag.parallel or 4)
    command = [sys.executable, "-m", "edge_steer", "serve", str(MODEL), "--threads", flag.threads or "1"]
    command += ["--host", flag.host, "--port", flag.port, "--parallel", str(slots), "--temperature", flag.temp]
    command += ["--seed", str(int(flag.seed) % 2**32)] if flag.seed else []
    command += ["--context", str(int(flag.ctx_size) // slots)] if flag.ctx_size else []
    command += ["--max-tokens", flag.n_predict] if flag.n_predict and int(flag.n_predict) > 0 else []
    aliases = [*(flag.alias or "").split(","), *os.environ["ALIASES"].split(",")]
    command += [word for alias in aliases if alias for word in ("--alias", alias.strip())]
    command += ["--api-key", flag.api_key] if flag.api_key else []
    command += ["--no-page"] if "--no-ui" in others else []
    command += ["--no-slots"] if "--no-slots" in others else []
    command += [] if "--metrics" in others else ["--no-metrics"]
    command += ["--template", template] if (template := template_of(flag)) else []
    os.execv(sys.executable, command)


def template_of(flag: argparse.Namespace) -> str | None:
    """The file of a chat template that llama-server knows by a name, or is given as text or as a file."""
    if flag.chat_template_file or not flag.chat_template:
        return cast("str | None", flag.chat_template_file)
    if name := TEMPLATES.get(flag.chat_template):
        return str(source() / "models" / "templates" / f"{name}.jinja")
    written = Path(tempfile.gettempdir()) / "server_suite.jinja"
    written.write_text(flag.chat_template)
    return str(written)


def run(folder: Path, files: Sequence[str], llama_server: Path | None) -> dict[str, dict[str, str]]:
    """File -> test -> how it ended."""
    with tempfile.TemporaryDirectory() as scratch:
        (Path(scratch) / "our_plugin.py").write_text(PLUGIN)
        (Path(scratch) / "wget.py").write_text(WGET)
        start = Path(scratch) / "start"
        start.write_text(f'#!/bin/sh\nexec "{sys.executable}" "{Path(__file__).resolve()}" --shim "$@"\n')
        start.chmod(0o755)
        environment = {**os.environ, "LLAMA_SERVER_BIN_PATH": str(start), "PYTHONPATH": f"{scratch}:{folder}:{ROOT}"}
        environment["PORT"] = "8577" if llama_server else "8477"
        if llama_server:
            environment["LLAMA_SERVER"] = str(llama_server.resolve())
        return {name: run_file(name, folder, {**environment, "ALIASES": ",".join(FILES[name])}) for name in files}


def run_file(name: str, folder: Path, environment: dict[str, str]) -> dict[str, str]:
    """Test -> how it ended, for one file; those that did not end in time are left out."""
    command = [sys.executable, "-m", "pytest", "--noconftest", "-p", "our_plugin", "-p", "no:cacheprovider", "-v"]
    command += ["-m", "not slow", "--rootdir", str(folder), f"unit/test_{name}.py"]
    with tempfile.TemporaryFile("w+", errors="replace") as log:
        tests = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log, start_new_session=True)
        with suppress(subprocess.TimeoutExpired):
            tests.wait(SECONDS)
        with suppress(ProcessLookupError):  # the tests, if they still run, and any server that they left
            os.killpg(tests.pid, signal.SIGKILL)
        log.seek(0)
        text = log.read()
    ends = dict(re.findall(r"^unit/test_\w+\.py::(.+) (PASSED|FAILED|ERROR|SKIPPED) +\[", text, re.MULTILINE))
    if not ends:
        raise SystemExit(text[-2000:])
    print(f"{name}: {Counter(ends.values())}", file=sys.stderr)
    return ends


@click.command(help=__doc__)
@click.argument("files", nargs=-1, type=click.Choice(list(FILES)))
@click.option("--llama-server", type=click.Path(path_type=Path, exists=True))
def main(files: tuple[str, ...], llama_server: Path | None) -> None:
    folder = source() / "tools" / "server" / "tests"
    files = files or tuple(FILES)
    results = {"edge-steer": run(folder, files, None)}
    if llama_server:
        results["llama-server"] = run(folder, files, llama_server)
    print(f"{'file':20}" + "".join(f"{name:>16}" for name in results))
    for file in files:
        ends = [list(result[file].values()) for result in results.values()]
        print(f"{file:20}" + "".join(f"{some.count('PASSED'):>10}/{len(some):<5}" for some in ends))
    for name, result in results.items():
        for file in files:
            for test, outcome in result[file].items():
                if outcome not in ("PASSED", "SKIPPED"):
                    print(f"{name}: {file}: {test} {outcome.lower()}")
    print(json.dumps(results))


if __name__ == "__main__":
    if sys.argv[1:2] == ["--shim"]:
        shim(sys.argv[2:])
    main()
