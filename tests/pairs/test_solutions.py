from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
from heard import Heard

from edge_steer.core.backend import EngineOptions
from edge_steer.core.errors import EdgeSteerError
from edge_steer.core.progress import SILENT, Progress
from edge_steer.core.sampling import Sampling
from edge_steer.llama.engine import Engine
from edge_steer.pairs.solutions import (
    FORMAT,
    Solution,
    generate_solutions,
    read_chosen_solutions,
    read_solutions,
    solutions_header,
    usable_solutions,
)
from edge_steer.storage.records import Store
from edge_steer.tasks.answers import grade
from edge_steer.tasks.grading import Graders
from edge_steer.tasks.load import load_task

TASK = load_task("wordproblems", split="calibration", limit=24)


@pytest.fixture(scope="module")
def engine(bundled_f16: Path) -> Iterator[Engine]:
    with Engine.load(bundled_f16, EngineOptions(threads=1)) as engine:
        yield engine


@pytest.fixture(scope="module")
def graders() -> Iterator[Graders]:
    with Graders(workers=1) as graders:
        yield graders


def solution(identity: str, text: str = "a", **fields: Any) -> Solution:
    return Solution(**{
        "id": identity, "repeat": 0, "question": f"q{identity}", "prompt": "p", "system": None, "answer": "1",
        "text": text, "tokens": 1, "correct": True, "finish": "stop", **fields,
    })  # fmt: skip


def test_solutions_are_the_models_own_right_and_as_many_as_asked(
    engine: Engine, graders: Graders, tmp_path: Path
) -> None:
    task = replace(TASK, settings=replace(TASK.settings, prompt="{question}", system="Think."))
    path, heard = tmp_path / "s.jsonl", Heard()
    chosen = generate_solutions(engine, task, str(path), count=5, at_once=4, graders=graders, progress=heard)
    assert len(chosen) == 5
    solutions = read_solutions(str(path))
    assert len({solution.key for solution in solutions}) == len(solutions)
    in_order = sorted(solutions, key=lambda solution: [sample.id for sample in TASK.samples].index(solution.id))
    assert read_chosen_solutions(str(path)) == chosen == usable_solutions(in_order)[:5]
    assert heard.steps[0] == ("solving", 0, 5) and heard.steps[-1] == ("solving", 5, 5)
    for each in chosen:
        assert grade(each.text, each.answer).correct
        sample = next(sample for sample in TASK.samples if sample.id == each.id)
        assert (each.question, each.answer, each.system) == (sample.question, sample.answer, "Think.")


def test_a_stopped_run_goes_on_and_a_larger_one_begins_with_what_is_there(
    engine: Engine, graders: Graders, tmp_path: Path
) -> None:
    path = tmp_path / "s.jsonl"

    def generate(count: int, progress: Progress = SILENT) -> list[Solution]:
        return generate_solutions(engine, TASK, path, count=count, at_once=4, graders=graders, progress=progress)

    whole = generate(6)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:4]) + lines[4][:20])
    with pytest.raises(EdgeSteerError, match="is not complete"):
        read_chosen_solutions(path)
    heard = Heard()
    there = len(usable_solutions(read_solutions(path)))
    resumed = generate(6, heard)
    assert heard.steps[0] == ("solving", there, 6) and there
    assert [s.id for s in resumed] == [s.id for s in whole]
    again = path.read_bytes().splitlines(keepends=True)
    assert again[:4] == lines[:4]  # what was there is not generated again
    assert len(again) == len(lines)
    more = generate(8)
    assert more[:6] == resumed and len(more) == 8
    before = path.read_bytes()
    assert generate(8) == more
    assert path.read_bytes() == before


def test_several_samples_give_several_different_solutions(engine: Engine, graders: Graders, tmp_path: Path) -> None:
    settings = replace(TASK.settings, samples=3, sampling=Sampling(temperature=1.0, seed=1))
    task = replace(TASK, samples=TASK.samples[:2], settings=settings)
    path = tmp_path / "s.jsonl"
    chosen = generate_solutions(engine, task, path, count=9, per_problem=2, wrong=True, graders=graders)
    texts = [solution.text for solution in chosen]
    assert len(texts) == len(set(texts)) == 4
    assert len(read_solutions(path)) == 6


def test_a_file_of_another_task_is_not_mixed_in(engine: Engine, graders: Graders, tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    with Store.open(path, solutions_header(TASK, engine.provenance)) as store:
        store.append(asdict(solution(TASK.samples[0].id)))
    with pytest.raises(EdgeSteerError, match="another problem under the id 'calibration-0-0'"):
        generate_solutions(engine, TASK, path, count=1, graders=graders)
    with pytest.raises(EdgeSteerError, match="must be at least 1"):
        generate_solutions(engine, TASK, path, count=0, graders=graders)
    shorter = replace(TASK, settings=replace(TASK.settings, max_tokens=5))
    with pytest.raises(EdgeSteerError, match=r"task\.settings\.max_tokens is 400 there and 5 here"):
        generate_solutions(engine, shorter, path, count=1, graders=graders)


def test_what_is_usable_solutions() -> None:
    solutions = [
        solution("1", correct=False),
        solution("1", "b", repeat=1),
        solution("1", "b", repeat=2),
        solution("1", "c", repeat=3),
        solution("2", finish="length"),
        solution("3", " \n"),
        solution("4", "", finish="error", error="too long"),
        solution("5", "d"),
    ]
    assert [s.text for s in usable_solutions(solutions)] == ["b", "d"]
    assert [s.text for s in usable_solutions(solutions, per_problem=9)] == ["b", "c", "d"]
    assert [s.text for s in usable_solutions(solutions, per_problem=9, wrong=True)] == ["a", "b", "c", "d"]


def test_other_files_are_no_solutions(tmp_path: Path) -> None:
    path = tmp_path / "s.jsonl"
    path.write_text('{"format": "other"}\n{"text": 1}\n')
    with pytest.raises(EdgeSteerError, match="holds no solutions"):
        read_solutions(path)
    path.write_text(f'{{"format": "{FORMAT}"}}\n{{"text": 1}}\n')
    with pytest.raises(EdgeSteerError, match="is no solution"):
        read_solutions(path)
    path.write_text(f'{{"format": "{FORMAT}"}}\n{{"chosen": []}}\n')
    with pytest.raises(EdgeSteerError, match="none was right and whole"):
        read_chosen_solutions(path)
