"""A trained vector, exported, in plain llama.cpp: what llama-server gains by --control-vector on held-out problems.

    python benchmarks/training_exported.py VECTOR --llama-server PATH

exports VECTOR, which has been trained on the bundled model, as a control vector, so without layer 0. llama-server
answers held-out problems with it and without, edge-steer with the same layers, all in Q4_K_M at temperature 1. Prints a
table; gains are paired by problem.
"""

import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click
import httpx
from serve import free_port, running, theirs
from training import LONGEST, QUANT

import edge_steer as es
from edge_steer.core.backend import Completion, EngineOptions, OnDone, Request
from edge_steer.core.sampling import Sampling
from edge_steer.evaluation.figures import compare, figure_text, summarise
from edge_steer.models.quantize import gguf_for
from edge_steer.models.recipe import bundled_model
from edge_steer.storage.provenance import RunningModel
from edge_steer.tasks.grading import Graders
from edge_steer.tasks.rows import Row, complete, jobs_of
from edge_steer.tasks.task import Task
from edge_steer.terminal.tables import print_table

CLIENTS = 32
CONTEXT = 768  # tokens of a problem and its answer
FINISH = {"eos": "stop", "word": "stop", "limit": "length"}


class Served:
    """llama-server in the place of the engine that writes its prompts."""

    def __init__(self, url: str, engine: RunningModel) -> None:
        self._http = httpx.Client(base_url=url, timeout=600)
        self.model, self.chat = engine.model, engine.chat

    def generate(self, requests: Sequence[Request], on_done: OnDone) -> None:
        with ThreadPoolExecutor(CLIENTS) as clients:
            for index, completion in enumerate(clients.map(self._answer, requests)):
                on_done(index, completion)

    def _answer(self, request: Request) -> Completion:
        plain = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "return_tokens": True}
        asked = {"prompt": request.prompt, "n_predict": request.max_tokens, "seed": request.sampling.seed}
        answer = self._http.post("/completion", json=plain | asked).raise_for_status().json()
        return Completion(answer["content"], tuple(answer["tokens"]), FINISH[answer["stop_type"]])


@click.command(help=__doc__)
@click.argument("vector_file", metavar="VECTOR", type=click.Path(path_type=Path, exists=True))
@click.option("--llama-server", "program", required=True, type=click.Path(path_type=Path, exists=True))
@click.option("--task", "task_name", default="wordproblems-leaps", show_default=True)
@click.option("--problems", default=40, show_default=True)
@click.option("--samples", default=8, show_default=True, help="Answers to each.")
@click.option("--threads", default=1, show_default=True)
def main(vector_file: Path, program: Path, task_name: str, problems: int, samples: int, threads: int) -> None:
    vector = es.load_vector(vector_file)
    file = gguf_for(bundled_model(), QUANT, threads=threads)
    task = es.load_task(task_name, protocol="bias-only", split="test", limit=problems)
    task = task.with_settings(samples=samples, max_tokens=LONGEST, sampling=Sampling(temperature=1.0))
    command = theirs(program, file, free_port(), threads, CONTEXT)
    with tempfile.TemporaryDirectory() as folder, es.load(file, options=EngineOptions(threads=threads)) as engine:
        exported = es.save_vector(vector, Path(folder) / "vector.gguf")
        here = es.evaluate(engine, task, {"without": None, "with it": vector.at(vector.layers[1:])}, nll=False)
        there = {
            "without": answers(command, engine, task),
            "with it": answers([*command, "--control-vector", str(exported)], engine, task),
        }
    table = []
    for place, rows in (("edge-steer", here), ("llama-server", there)):
        for name, of_method in rows.items():
            gain = compare(rows["without"], of_method).differences["accuracy"]
            accuracy = figure_text("accuracy", summarise(of_method).figures["accuracy"])
            table.append([place, name, accuracy, figure_text("accuracy", gain, signed=True)])
    print_table(["", "the control vector", "accuracy", "gain"], table)


def answers(command: list[str], engine: RunningModel, task: Task) -> list[Row]:
    """Of llama-server, begun by this command."""
    rows: list[Row] = []
    port = command[command.index("--port") + 1]
    with running(command, f"http://127.0.0.1:{port}") as server, Graders() as graders:
        complete(Served(server.url, engine), jobs_of(task), graders, rows.append, nll=False)
    return rows


if __name__ == "__main__":
    main()
