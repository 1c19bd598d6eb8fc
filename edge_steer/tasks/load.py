"""A task by its name or file, under a protocol."""

import re
from dataclasses import replace
from functools import partial
from pathlib import Path

from edge_steer.core.errors import EdgeSteerError
from edge_steer.storage.toml import TomlTable
from edge_steer.tasks import answers
from edge_steer.tasks.protocols import PROTOCOLS, Protocol, protocol_settings
from edge_steer.tasks.published import BENCHMARKS, read_rows
from edge_steer.tasks.task import Sample, Task
from edge_steer.tasks.wordproblems import DIFFICULTIES, word_problems

WORD_PROBLEM_COUNT = 500  # where no number is asked
TASKS: tuple[str, ...] = (*BENCHMARKS, *DIFFICULTIES)


def load_task(
    name: str | Path,
    *,
    protocol: Protocol = "densesteer",
    file: str | Path | None = None,
    split: str | None = None,
    limit: int | None = None,
) -> Task:
    """A task by its name in TASKS, by NAME=FILE or `file` (that task from a local file), or the path of a task.toml.

    protocol: whose way of asking the settings follow. split: of those the task has; a local file is its own split.
    Without a file a published benchmark is fetched from its pinned source once. limit: the first so many problems.
    Errors: EdgeSteerError.
    """
    if protocol not in PROTOCOLS:
        raise EdgeSteerError(f"no protocol {protocol!r}; known are {', '.join(PROTOCOLS)}")
    name, file = str(name), None if file is None else Path(file)
    known, equals, named_file = name.partition("=")
    if equals and known in TASKS:
        if file is not None:
            raise EdgeSteerError(f"{name} names a file, and {file} is another; give one")
        return load_task(known, protocol=protocol, file=named_file, split=split, limit=limit)
    if file is not None and split is not None:
        raise EdgeSteerError(f"{file} is the split to ask; leave out the split {split!r}")
    if name in DIFFICULTIES:
        task = _load_word_problems(name, protocol, file, split, limit)
    elif name in BENCHMARKS:
        task = _load_benchmark(name, protocol, file, split)
    elif name.endswith(".toml"):
        if file is not None or split is not None:
            raise EdgeSteerError(f"{name} names its own file of problems; leave out the file or split")
        task = _load_toml(Path(name), protocol)
    else:
        raise EdgeSteerError(f"no task {name!r}; known are {', '.join(TASKS)}, or the path of a task.toml")
    return task if limit is None else task.limit(limit)


def _load_word_problems(name: str, protocol: Protocol, file: Path | None, split: str | None, limit: int | None) -> Task:
    """Asked plainly in every protocol: the bundled model knows the bare question alone."""
    if file is not None:
        raise EdgeSteerError(f"{name} are generated, not read from {file}; leave out the file")
    draw = partial(word_problems, difficulty=DIFFICULTIES[name])
    samples = draw("test" if split is None else split, WORD_PROBLEM_COUNT if limit is None else limit)
    settings = protocol_settings(protocol, name, "math")
    settings = replace(settings, prompt="{question}", system=None, max_tokens=400, stop=(), context=None)
    return Task(name, samples, settings, "math", draw=draw)


def _load_benchmark(name: str, protocol: Protocol, file: Path | None, split: str | None) -> Task:
    benchmark = BENCHMARKS[name]
    if file is None and not benchmark.splits:
        raise EdgeSteerError(f"task {name} has no source to fetch it from; give its file as {name}=FILE")
    if file is None:
        try:
            file = benchmark.file(split)
        except EdgeSteerError as error:
            raise EdgeSteerError(f"task {name}: {error}; or give its file as {name}=FILE") from error
    samples = tuple(Sample(*triple) for triple in benchmark.read(file))
    settings = protocol_settings(protocol, name, benchmark.grader, benchmark.averaged)
    return Task(name, samples, settings, benchmark.grader)


def _load_toml(path: Path, protocol: Protocol) -> Task:
    """A user's task: what its TOML leaves out, the protocol says."""
    table = TomlTable(path, "a task: name, file, prompt, question, answer, grader")
    name, file, prompt = table.text("name"), path.parent / table.text("file"), table.text("prompt")
    question, answer, identity = table.text("question"), table.text("answer"), table.text("id", optional=True)
    named = table.text("grader")
    grader = next((kind for kind in answers.KINDS if kind == named), None)
    if grader is None:
        raise table.error("grader", f"allowed are {', '.join(answers.KINDS)}")
    preset = protocol_settings(protocol, name, grader)
    grading = table.text("grading") if table.has("grading") else preset.grading
    if grading not in answers.GRADINGS:
        raise table.error("grading", f"allowed are {', '.join(answers.GRADINGS)}")
    settings = replace(
        preset,
        prompt=prompt,
        system=(table.text("system") if table.has("system") else preset.system) or None,
        max_tokens=table.whole("max_tokens", preset.max_tokens),
        sampling=replace(preset.sampling, temperature=table.number("temperature", preset.sampling.temperature)),
        samples=table.whole("samples", preset.samples),
        stop=table.texts("stop", preset.stop),
        grading=grading,
    )
    table.finish()
    if name in TASKS or not re.fullmatch(r"\w[\w.-]*", name):
        raise table.error("name", f"{name!r} is a shipped task's, or holds more than letters, digits, '.', '_' and '-'")
    needed = [field for field in (question, answer, identity) if field]
    samples = tuple(
        Sample(str(row[identity]) if identity else str(number), str(row[question]), str(row[answer]))
        for number, row in enumerate(read_rows(file, *needed))
    )
    return Task(name, samples, settings, grader)
